-- Labels in numbers: by device, model and period of three hours (by receipt), counts in bins as JSON.
CREATE TABLE label_statistics (
    device TEXT COLLATE "C" NOT NULL,
    model  BIGINT NOT NULL,
    period BIGINT NOT NULL,
    counts TEXT NOT NULL,
    PRIMARY KEY (device, model, period)
);

-- How the labels of a device's newest day differ from those of its model's first days, as JSON.
CREATE TABLE drifts (
    device TEXT COLLATE "C" PRIMARY KEY,
    state  TEXT NOT NULL
);
