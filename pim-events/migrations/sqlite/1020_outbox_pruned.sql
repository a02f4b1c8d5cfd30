-- When the youngest event was written that has gone: a log that is older than that misses it.
CREATE TABLE outbox_pruned (id INTEGER PRIMARY KEY CHECK (id = 0), youngest_at INTEGER);
INSERT INTO outbox_pruned (id) VALUES (0);
