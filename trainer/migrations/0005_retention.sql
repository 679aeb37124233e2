-- What retention has dropped: labels and pictures are counted once when they come and once when they go, so that accounts stay exact.
ALTER TABLE epochs ADD COLUMN dropped          INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epochs ADD COLUMN dropped_refused  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epochs ADD COLUMN dropped_pictures INTEGER NOT NULL DEFAULT 0;
-- Bytes of the pictures that are here.
ALTER TABLE epochs ADD COLUMN picture_bytes    INTEGER NOT NULL DEFAULT 0;
UPDATE epochs SET picture_bytes =
    (SELECT coalesce(sum(length(f.jpeg)), 0) FROM frames f WHERE f.device = epochs.device AND f.epoch = epochs.epoch);

-- The oldest pictures first.
CREATE INDEX pictures_by_age ON frames (received_ms, device, epoch, sequence) WHERE jpeg IS NOT NULL;
