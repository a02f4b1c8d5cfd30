CREATE TABLE IF NOT EXISTS projection_checkpoint (
    consumer TEXT NOT NULL,
    topic TEXT NOT NULL,
    part INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    event_at INTEGER NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (consumer, topic, part)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inbox_head (
    consumer TEXT NOT NULL,
    home_key BLOB NOT NULL,
    owner_epoch INTEGER NOT NULL,
    n INTEGER NOT NULL,
    at INTEGER NOT NULL,
    event_id BLOB,
    PRIMARY KEY (consumer, home_key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held_key (
    consumer TEXT NOT NULL,
    home_key BLOB NOT NULL,
    part INTEGER NOT NULL,
    reason TEXT NOT NULL CHECK (reason IN ('poison', 'gap', 'rewound', 'draining')),
    code TEXT NOT NULL,
    tries INTEGER NOT NULL,
    since INTEGER NOT NULL,
    last_epoch INTEGER NOT NULL,
    last_n INTEGER NOT NULL,
    PRIMARY KEY (consumer, home_key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS held_key_draining ON held_key (consumer, part) WHERE reason = 'draining';
CREATE INDEX IF NOT EXISTS held_key_since ON held_key (consumer, since);
CREATE TABLE IF NOT EXISTS held_event (
    consumer TEXT NOT NULL,
    home_key BLOB NOT NULL,
    owner_epoch INTEGER NOT NULL,
    n INTEGER NOT NULL,
    event_id BLOB NOT NULL,
    event_type TEXT NOT NULL,
    event_at INTEGER NOT NULL,
    causation BLOB,
    part INTEGER NOT NULL,
    pos INTEGER NOT NULL,
    digest BLOB NOT NULL,
    headers TEXT NOT NULL,
    payload TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (consumer, home_key, owner_epoch, n)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead_record (
    consumer TEXT NOT NULL,
    topic TEXT NOT NULL,
    part INTEGER NOT NULL,
    pos INTEGER NOT NULL,
    home_key BLOB NOT NULL,
    code TEXT NOT NULL,
    digest BLOB NOT NULL,
    headers TEXT NOT NULL,
    payload TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (consumer, topic, part, pos)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS consumer_stop (
    consumer TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    since INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS consumer_resume (
    consumer TEXT PRIMARY KEY,
    resumes INTEGER NOT NULL,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS projection_version (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    at INTEGER NOT NULL
) WITHOUT ROWID;
