-- The centre's store. Unsigned 64-bit numbers (epochs, frame ids) are kept bit for bit in signed columns.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;

CREATE TABLE devices (
    device     TEXT PRIMARY KEY,
    seen_ms    INTEGER NOT NULL,
    epoch      INTEGER,
    online     INTEGER NOT NULL DEFAULT 0,
    model      INTEGER NOT NULL DEFAULT 0,
    frames     INTEGER NOT NULL DEFAULT 0,
    bad_frames INTEGER NOT NULL DEFAULT 0,
    confirmed  INTEGER NOT NULL DEFAULT 0,
    trial      INTEGER,
    refused    INTEGER,
    reason     TEXT NOT NULL DEFAULT ''
) STRICT;

-- One outbox of one device: what it says of itself, and what arrived more than once.
CREATE TABLE epochs (
    device     TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    committed  INTEGER NOT NULL DEFAULT 0,
    pending    INTEGER NOT NULL DEFAULT 0,
    evicted    INTEGER NOT NULL DEFAULT 0,
    duplicates INTEGER NOT NULL DEFAULT 0,
    conflicts  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (device, epoch)
) STRICT, WITHOUT ROWID;

-- Every label once. `payload` holds the bytes as they came. `settled`: nothing more is awaited (its frame is here, or none follows).
CREATE TABLE labels (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    device      TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    sequence    INTEGER NOT NULL,
    frame       INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    captured_ms INTEGER NOT NULL,
    model       INTEGER NOT NULL,
    instances   INTEGER NOT NULL,
    kept        INTEGER NOT NULL,
    wants_frame INTEGER NOT NULL,
    settled     INTEGER NOT NULL,
    refused     TEXT,
    payload     BLOB NOT NULL,
    UNIQUE (device, epoch, sequence)
) STRICT;
CREATE INDEX labels_by_model ON labels (model, id);

-- Frames lie in the database, so that one commit covers a label and its pixels. `jpeg` is NULL for a refused frame.
CREATE TABLE frames (
    device      TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    sequence    INTEGER NOT NULL,
    frame       INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    sha256      BLOB NOT NULL,
    refused     TEXT,
    jpeg        BLOB,
    UNIQUE (device, epoch, sequence)
) STRICT;

-- Settled sequences as inclusive runs; the watermark is the end of the run that starts at 1.
CREATE TABLE runs (
    device TEXT NOT NULL,
    epoch  INTEGER NOT NULL,
    first  INTEGER NOT NULL,
    last   INTEGER NOT NULL,
    PRIMARY KEY (device, epoch, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE histograms (
    device      TEXT NOT NULL,
    model       INTEGER NOT NULL,
    frames      INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    scores      TEXT NOT NULL,
    PRIMARY KEY (device, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE rounds (
    round      INTEGER PRIMARY KEY,
    last_label INTEGER NOT NULL,
    ended      INTEGER NOT NULL DEFAULT 0,
    state      TEXT NOT NULL
) STRICT;

CREATE TABLE releases (
    counter    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    bundle     TEXT NOT NULL,
    manifest   BLOB NOT NULL,
    signature  BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    round      INTEGER UNIQUE
) STRICT;
