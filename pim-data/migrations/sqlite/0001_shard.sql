-- Which buckets this database owns, and under which epoch. A write quotes the epoch; a stale router is refused by it.
CREATE TABLE pim_bucket_owned (
  bucket INTEGER PRIMARY KEY CHECK (bucket BETWEEN 0 AND 4095),
  epoch INTEGER NOT NULL CHECK (epoch > 0),
  state TEXT NOT NULL CHECK (state IN ('owned', 'incoming', 'draining', 'moved')),
  moved_to INTEGER,
  map_version INTEGER NOT NULL
);

-- The dense number of each home key's events: order, gap guard, optimistic check and read-your-writes token in one.
CREATE TABLE key_head (
  key BLOB PRIMARY KEY CHECK (length(key) = 16),
  bucket INTEGER NOT NULL,
  n INTEGER NOT NULL CHECK (n > 0)
) WITHOUT ROWID;
CREATE INDEX key_head_bucket ON key_head (bucket);
-- The number only rises; whoever would take it back would reuse the numbers of events that are out already.
CREATE TRIGGER key_head_rises BEFORE UPDATE ON key_head WHEN NEW.n <= OLD.n BEGIN
  SELECT RAISE(ABORT, 'pim:key-head-must-rise');
END;

-- What makes a retry the same request, and the answer that it gets; n is the home key's number after it.
CREATE TABLE idempotency (
  scope BLOB PRIMARY KEY CHECK (length(scope) = 32),
  bucket INTEGER NOT NULL,
  body BLOB NOT NULL CHECK (length(body) = 32),
  status INTEGER NOT NULL,
  answer TEXT NOT NULL,
  n INTEGER NOT NULL CHECK (n >= 0),
  request_id BLOB NOT NULL,
  created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX idempotency_created ON idempotency (created_at);

-- One hash chain a lane. The body is canonical JSON; hash = SHA-256(previous || body).
CREATE TABLE audit (
  lane INTEGER NOT NULL CHECK (lane BETWEEN 0 AND 63),
  seq INTEGER NOT NULL CHECK (seq > 0),
  previous BLOB NOT NULL CHECK (length(previous) = 32),
  hash BLOB NOT NULL CHECK (length(hash) = 32),
  body TEXT NOT NULL,
  at INTEGER NOT NULL,
  request_id BLOB NOT NULL,
  user_id TEXT NOT NULL,
  home_key BLOB NOT NULL,
  entity TEXT NOT NULL,
  entity_id BLOB NOT NULL,
  PRIMARY KEY (lane, seq),
  UNIQUE (lane, previous)
) WITHOUT ROWID;
CREATE INDEX audit_request ON audit (request_id);
CREATE INDEX audit_user ON audit (user_id, at);
CREATE INDEX audit_entity ON audit (entity_id, at);

CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'pim:audit-is-append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'pim:audit-is-append-only'); END;

-- A row inserted here aborts the transaction: how a statement says that the one before it did not change one row.
CREATE TABLE pim_guard (broken TEXT NOT NULL CONSTRAINT pim_guard_stale CHECK (broken IS NULL));

-- Which database this is, so that a swapped file is noticed.
CREATE TABLE pim_identity (only INTEGER PRIMARY KEY CHECK (only = 1), keyspace TEXT NOT NULL, shard INTEGER NOT NULL);
