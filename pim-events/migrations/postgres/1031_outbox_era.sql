-- Snapshots mean something only as long as the server gives out no transaction id twice. A standby that is promoted, and a
-- server after a crash, do: of transactions that left nothing in the log they know nothing. An unlogged table lasts as
-- long as the ids do: it is empty after every recovery, and a standby's copy of the rest does not bring it along. A clean
-- stop keeps both.
CREATE UNLOGGED TABLE outbox_era (one bigint PRIMARY KEY CHECK (one = 1), id uuid NOT NULL);
GRANT SELECT ON outbox_era TO pim_app;

-- The era that the server is in; whoever asks first names it.
CREATE FUNCTION pim_outbox_era() RETURNS uuid LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
  present uuid;
BEGIN
  SELECT e.id INTO present FROM outbox_era e;
  IF NOT FOUND THEN
    INSERT INTO outbox_era (one, id) VALUES (1, gen_random_uuid()) ON CONFLICT (one) DO NOTHING;
    SELECT e.id INTO STRICT present FROM outbox_era e;
  END IF;
  RETURN present;
END $$;
REVOKE EXECUTE ON FUNCTION pim_outbox_era() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pim_outbox_era() TO pim_app;
