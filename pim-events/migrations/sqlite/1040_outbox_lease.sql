-- How long a lease may be: one that lies further ahead was written before the clock was set back.
ALTER TABLE outbox_cursor ADD COLUMN lease_ms INTEGER NOT NULL DEFAULT 3600000;
