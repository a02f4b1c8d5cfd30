-- Up to where each lane was purged. A record may go only when its number is not above that; the tombstone that says so is
-- signed outside of the database first.
CREATE TABLE audit_tombstone (
  lane INTEGER PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
  seq INTEGER NOT NULL CHECK (seq > 0),
  hash BLOB NOT NULL CHECK (length(hash) = 32)
);
CREATE TRIGGER audit_tombstone_rises BEFORE UPDATE ON audit_tombstone WHEN NEW.seq < OLD.seq BEGIN
  SELECT RAISE(ABORT, 'pim:audit-tombstone-must-rise');
END;
DROP TRIGGER audit_no_delete;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
WHEN NOT EXISTS (SELECT 1 FROM audit_tombstone t WHERE t.lane = OLD.lane AND OLD.seq <= t.seq) BEGIN
  SELECT RAISE(ABORT, 'pim:audit-is-append-only');
END;

-- From when on this database has everything; what ended before may be gone.
CREATE TABLE pim_retained (what TEXT PRIMARY KEY CHECK (what IN ('audit', 'history')), since INTEGER NOT NULL);
