-- A kept picture that lies in the object store of `store.pictures`: `outside` has its bytes' number, `jpeg` is empty, `sha256` is its name there.
ALTER TABLE frames ADD COLUMN outside BIGINT;

-- Which pictures are referred to, by their names.
CREATE INDEX frames_outside ON frames (sha256) WHERE outside IS NOT NULL AND jpeg IS NOT NULL;
