-- Up to where each lane was purged. A record may go only when its number is not above that; the tombstone that says so is
-- signed outside of the database first. Only the owner may write one, and only the owner may delete a record.
CREATE TABLE audit_tombstone (
  lane bigint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
  seq bigint NOT NULL CHECK (seq > 0),
  hash bytea NOT NULL CHECK (length(hash) = 32)
);
GRANT SELECT ON audit_tombstone TO pim_app;
CREATE FUNCTION pim_tombstone_rises() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.seq < OLD.seq THEN RAISE EXCEPTION 'pim:audit-tombstone-must-rise' USING ERRCODE = 'PM009'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER audit_tombstone_rises BEFORE UPDATE ON audit_tombstone FOR EACH ROW EXECUTE FUNCTION pim_tombstone_rises();

CREATE OR REPLACE FUNCTION pim_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    IF EXISTS (SELECT FROM public.audit_tombstone t WHERE t.lane = OLD.lane AND OLD.seq <= t.seq) THEN RETURN OLD; END IF;
  END IF;
  RAISE EXCEPTION 'pim:audit-is-append-only' USING ERRCODE = 'PM009';
END $$;

-- From when on this database has everything; what ended before may be gone.
CREATE TABLE pim_retained (what text PRIMARY KEY CHECK (what IN ('audit', 'history')), since bigint NOT NULL);
GRANT SELECT ON pim_retained TO pim_app;
