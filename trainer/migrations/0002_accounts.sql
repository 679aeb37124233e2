-- What was stored is counted in the commit that stores it: an account costs one row, however many labels there are.
ALTER TABLE epochs ADD COLUMN stored  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epochs ADD COLUMN settled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epochs ADD COLUMN refused INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epochs ADD COLUMN frames  INTEGER NOT NULL DEFAULT 0;
INSERT OR IGNORE INTO epochs (device, epoch) SELECT DISTINCT device, epoch FROM labels;
INSERT OR IGNORE INTO epochs (device, epoch) SELECT DISTINCT device, epoch FROM frames;
UPDATE epochs SET
    stored  = (SELECT count(*) FROM labels l WHERE l.device = epochs.device AND l.epoch = epochs.epoch),
    settled = (SELECT coalesce(sum(l.settled), 0) FROM labels l WHERE l.device = epochs.device AND l.epoch = epochs.epoch),
    refused = (SELECT count(l.refused) FROM labels l WHERE l.device = epochs.device AND l.epoch = epochs.epoch),
    frames  = (SELECT count(f.jpeg) FROM frames f WHERE f.device = epochs.device AND f.epoch = epochs.epoch);

-- How far a device's clock was ahead of the centre's when its last label came, ms; 0: not ahead, NULL: not known.
ALTER TABLE devices ADD COLUMN ahead_ms INTEGER;

-- Messages that could not be used, with the reason: the newest ones, within a stated number and size. `payload` may be cut, `bytes` is
-- what came.
CREATE TABLE quarantine (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    received_ms INTEGER NOT NULL,
    topic       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    bytes       INTEGER NOT NULL,
    payload     BLOB NOT NULL
) STRICT;
