-- AUTOINCREMENT: a plain rowid is reused after a delete, and a reused seq is one that the cursor has passed.
CREATE TABLE outbox_event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    bucket INTEGER NOT NULL CHECK (bucket BETWEEN 0 AND 4095),
    lane INTEGER NOT NULL CHECK (lane = bucket & 63),
    owner_epoch INTEGER NOT NULL,
    home_key BLOB NOT NULL,
    n INTEGER NOT NULL CHECK (n > 0),
    event_id BLOB NOT NULL,
    topic TEXT NOT NULL,
    event_type TEXT NOT NULL,
    schema_version INTEGER NOT NULL,
    aggregate TEXT NOT NULL,
    aggregate_id BLOB NOT NULL,
    aggregate_version INTEGER NOT NULL,
    correlation BLOB NOT NULL,
    causation BLOB,
    traceparent TEXT NOT NULL,
    actor TEXT NOT NULL,
    role TEXT NOT NULL,
    at INTEGER NOT NULL,
    payload TEXT NOT NULL,
    UNIQUE (home_key, n)
);
CREATE TRIGGER outbox_event_is_immutable BEFORE UPDATE ON outbox_event
BEGIN
    SELECT RAISE(ABORT, 'outbox events are never changed');
END;

-- One row: this engine has one writer, so that seq > last_seq misses nothing and lanes need no cursors of their own.
CREATE TABLE outbox_cursor (
    lane INTEGER PRIMARY KEY CHECK (lane = 0),
    last_seq INTEGER NOT NULL DEFAULT 0,
    owner BLOB,
    epoch INTEGER NOT NULL DEFAULT 0,
    lease_until_ms INTEGER NOT NULL DEFAULT 0
);
INSERT INTO outbox_cursor (lane) VALUES (0);

-- Events that the bus refused, and their successors in the key.
CREATE TABLE outbox_held (
    seq INTEGER PRIMARY KEY,
    home_key BLOB NOT NULL,
    code TEXT NOT NULL,
    retry INTEGER NOT NULL DEFAULT 0,
    at INTEGER NOT NULL
);
CREATE INDEX outbox_held_key ON outbox_held (home_key, seq);

-- Commands that events drove: once for each consumer, event and target.
CREATE TABLE command_inbox (
    consumer TEXT NOT NULL,
    event_id BLOB NOT NULL,
    target_key BLOB NOT NULL,
    bucket INTEGER NOT NULL CHECK (bucket BETWEEN 0 AND 4095),
    at INTEGER NOT NULL,
    PRIMARY KEY (consumer, event_id, target_key)
) WITHOUT ROWID;
