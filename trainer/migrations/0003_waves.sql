-- How a release goes out: the state of its waves as JSON. NULL: by a version of the centre that knew no waves, to all at once.
ALTER TABLE releases ADD COLUMN waves TEXT;
-- Which model made a device's last label: counter and hash. NULL: not known.
ALTER TABLE devices ADD COLUMN label_model INTEGER;
ALTER TABLE devices ADD COLUMN label_hash INTEGER;
-- The page looks at the labels of one device, newest first.
CREATE INDEX labels_by_device ON labels (device, id);
