CREATE TABLE IF NOT EXISTS bus_log (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    part INTEGER NOT NULL,
    next_offset INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, part)
);
-- The id is log and offset in one number (log * 2^40 + offset). A composite key would make this an index of rows above a
-- quarter of a page, and each of those spills into an overflow page of its own.
CREATE TABLE IF NOT EXISTS bus_record (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    at INTEGER NOT NULL,
    headers TEXT NOT NULL,
    payload TEXT NOT NULL
);
CREATE TRIGGER IF NOT EXISTS bus_record_is_immutable BEFORE UPDATE ON bus_record
BEGIN
    SELECT RAISE(ABORT, 'bus records are never changed');
END;
-- What has been moved out of bus_record, in files beside this one. A row here is the moment of the move: from then on its offsets
-- are read from the file, and the records here may go.
CREATE TABLE IF NOT EXISTS bus_segment (
    log INTEGER NOT NULL,
    first_offset INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    file TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (log, first_offset)
) WITHOUT ROWID;
