-- Labels in numbers: by device, model and period of three hours (by receipt), counts in bins as JSON.
CREATE TABLE label_statistics (
    device TEXT NOT NULL,
    model  INTEGER NOT NULL,
    period INTEGER NOT NULL,
    counts TEXT NOT NULL,
    PRIMARY KEY (device, model, period)
) STRICT, WITHOUT ROWID;

-- How the labels of a device's newest day differ from those of its model's first days, as JSON.
CREATE TABLE drifts (
    device TEXT PRIMARY KEY,
    state  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
