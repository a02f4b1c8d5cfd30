CREATE TABLE IF NOT EXISTS bus_log (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    part INTEGER NOT NULL,
    next_offset INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, part)
);
CREATE TABLE IF NOT EXISTS bus_record (
    log INTEGER NOT NULL REFERENCES bus_log (id),
    pos INTEGER NOT NULL,
    key BLOB NOT NULL,
    at INTEGER NOT NULL,
    headers TEXT NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (log, pos)
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS bus_record_is_immutable BEFORE UPDATE ON bus_record
BEGIN
    SELECT RAISE(ABORT, 'bus records are never changed');
END;
