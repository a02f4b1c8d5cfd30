-- The term of a primary is the timeline of its log, which rises with each promotion; a standby has none.
CREATE FUNCTION pim_timeline() RETURNS bigint LANGUAGE sql VOLATILE
RETURN ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint;

-- Of which term the primary was whose rows these are. A standby hands it on: by it one tells whom it follows.
CREATE TABLE pim_term (one bigint PRIMARY KEY CHECK (one = 1), term bigint NOT NULL);
GRANT SELECT ON pim_term TO pim_app;

-- A primary writes its term down. That waits for no standby: it is written again when it should be lost.
CREATE FUNCTION pim_take_office() RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
  present bigint := public.pim_timeline();
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  INSERT INTO pim_term AS t (one, term) VALUES (1, present)
    ON CONFLICT (one) DO UPDATE SET term = excluded.term WHERE t.term <> excluded.term;
  RETURN present;
END $$;
