"""What the centre has, held against what the devices made and sent."""

import hashlib
import sqlite3


def unsigned(value):
    return value & (1 << 64) - 1


def read_only(path):
    # A writer that closes last would fold the write-ahead log into the database, which after a kill is the centre's to do.
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)


def stored(path):
    """Labels in the database; None while it cannot be read."""
    try:
        database = read_only(path)
        try:
            return database.execute("SELECT count(*) FROM labels").fetchone()[0]
        finally:
            database.close()
    except sqlite3.Error:
        return None


def settle(path, device, epoch, committed, evicted, first):
    """One device's account, and what is wrong with it. `first`: hashes of what it sent, by (device, kind, epoch, sequence)."""
    database, broken = read_only(path), []
    at = (device, epoch - (1 << 64) if epoch >> 63 else epoch)
    one = lambda query: database.execute(query, at).fetchone()  # noqa: E731
    where = "WHERE device = ? AND epoch = ?"
    rows, keys, low, high, settled, wanted = one(
        "SELECT count(*), count(DISTINCT sequence), coalesce(min(sequence), 0), coalesce(max(sequence), 0), "
        f"coalesce(sum(settled), 0), coalesce(sum(wants_frame), 0) FROM labels {where}")
    frames = one(f"SELECT count(jpeg) FROM frames {where}")[0]
    repeated, conflicts = one(f"SELECT coalesce(sum(duplicates), 0), coalesce(sum(conflicts), 0) FROM epochs {where}")
    epochs = [unsigned(e) for (e,) in database.execute("SELECT DISTINCT epoch FROM labels WHERE device = ?", at[:1])]
    account = {"epoch": epoch, "committed": committed, "stored": rows, "evicted": evicted, "lost": committed - rows - evicted,
               "frames": frames, "repeated": repeated, "stored_twice": rows - keys, "conflicts": conflicts}

    def hold(good, promise):
        if not good:
            broken.append(f"{device}: {promise}")

    hold(committed > 0, "no label was made")
    hold(account["lost"] == 0, f"{committed} committed, {rows} stored, {evicted} evicted: {account['lost']} lost")
    # The schema's UNIQUE forbids it. What can go wrong behind it, another label under a known key, the payloads below tell.
    hold(rows == keys, f"{rows - keys} labels stored twice")
    hold(epochs in ([epoch], []), f"labels of epochs {epochs}, the outbox has {epoch}")
    hold(low >= 1 and high == committed and high - keys == evicted, f"{keys} sequences from {low} to {high}, there are gaps")
    hold(settled == rows and frames == wanted, f"{rows} labels, {settled} settled; {wanted} frames announced, {frames} stored")
    hold(conflicts == 0, f"{conflicts} labels came again with other bytes")
    changed = foreign = 0
    for sequence, payload in database.execute(f"SELECT sequence, payload FROM labels {where}", at):
        sent = first.get((device, "labels", epoch, sequence))
        foreign += sent is None
        changed += sent is not None and sent != hashlib.blake2b(payload, digest_size=8).digest()
    hold(foreign == 0, f"{foreign} labels stored that it did not send")
    hold(changed == 0, f"{changed} labels stored with other bytes than those first sent")
    database.close()
    return account, broken


def sound(path):
    """What SQLite says of the file: "ok", or what is wrong."""
    try:
        database = read_only(path)
        try:
            return database.execute("PRAGMA integrity_check").fetchone()[0]
        finally:
            database.close()
    except sqlite3.Error as error:
        return f"cannot be read: {error}"


def refused(events):
    """Events of the centre that no fault of the network explains: whatever it does, no message is other than it was sent."""
    return [event for event in events if event["event"] in ("rejected", "conflict", "frame_refused", "error")]


def graded(log):
    """Of a log's text, how many lines of each grade there are, the last errors, and what panicked."""
    lines = log.splitlines()
    errors = [line[:300] for line in lines if " ERROR " in line]
    return {"warnings": sum(" WARN " in line for line in lines), "errors": len(errors), "last_errors": errors[-5:],
            "panics": [line[:300] for line in lines if "panicked at" in line]}
