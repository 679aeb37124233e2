-- What people said of labels, each word once. Of a label the highest version holds; `verdict` NULL takes back what was said before.
-- `people` is JSON: whom the picture shows, by who accepted or corrected the label.
CREATE TABLE verdicts (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    label   INTEGER NOT NULL REFERENCES labels (id),
    version INTEGER NOT NULL,
    verdict TEXT,
    people  TEXT,
    role    TEXT NOT NULL,
    peer    TEXT NOT NULL,
    at_ms   INTEGER NOT NULL,
    UNIQUE (label, version)
) STRICT;
CREATE INDEX verdicts_by_word ON verdicts (verdict, label);

-- Labels that come with a picture, the most doubtful in the lowest places: sorted when somebody asks for them.
CREATE TABLE doubts (
    label INTEGER PRIMARY KEY,
    place INTEGER NOT NULL
) STRICT;
CREATE INDEX doubts_by_place ON doubts (place, label DESC);
