-- One entity: base table, history, the triggers that keep both honest, and who may see what. Filled in from its declaration.
-- Pages keep some room, so that a new version of a row stands beside the old one and no index has to be told.
CREATE TABLE {table}_row (
  id uuid PRIMARY KEY,
  home_key uuid NOT NULL,
  bucket bigint NOT NULL,
  facility_id uuid,
  version pim_ordinal NOT NULL,
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL{columns},
  CONSTRAINT {table}_bucket CHECK (bucket = public.pim_bucket_of(id))
) WITH (fillfactor = 85);
CREATE INDEX {table}_home ON {table}_row (home_key, id);
CREATE INDEX {table}_bucket_index ON {table}_row (bucket);
CREATE TRIGGER {table}_owned BEFORE INSERT OR UPDATE ON {table}_row FOR EACH ROW EXECUTE FUNCTION public.pim_owned();

CREATE TABLE {table}_history (
  history_seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id uuid NOT NULL,
  home_key uuid NOT NULL,
  bucket bigint NOT NULL,
  facility_id uuid,
  version bigint NOT NULL,
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL{history_columns},
  valid_from bigint NOT NULL,
  valid_to bigint
) WITH (fillfactor = 85);
CREATE INDEX {table}_history_id ON {table}_history (id, valid_from);
CREATE INDEX {table}_history_home ON {table}_history (home_key);

-- History is written by the database itself, so that hand-typed SQL leaves a trace too. A period begins at least one
-- microsecond after the one before it, whatever the clock says. It runs as the owner, so whatever it names is named with its
-- schema, operators too: who calls it cannot have it find something else. A search path of its own would do the same, and
-- would cost as much as one of its statements.
CREATE FUNCTION {table}_remember() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
#variable_conflict use_variable
DECLARE
  row_id uuid := coalesce(NEW.id, OLD.id);
  last_to bigint;
  begins bigint;
BEGIN
  IF TG_OP OPERATOR(pg_catalog.=) 'INSERT'
      OR (TG_OP OPERATOR(pg_catalog.=) 'UPDATE' AND NEW.updated_at OPERATOR(pg_catalog.>) OLD.updated_at) THEN
    begins := NEW.updated_at;
  ELSE
    begins := pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000;
  END IF;
  -- Only the newest period can be open. It is looked up as that, so that a row of a thousand versions costs no more than a
  -- new one; the id is a variable, because an expression would keep the index from being read backwards.
  UPDATE public.{table}_history h SET valid_to = greatest(begins, h.valid_from OPERATOR(pg_catalog.+) 1)
    WHERE h.ctid OPERATOR(pg_catalog.=) (SELECT p.ctid FROM public.{table}_history p
        WHERE p.id OPERATOR(pg_catalog.=) row_id ORDER BY p.valid_from DESC LIMIT 1)
      AND h.valid_to IS NULL RETURNING h.valid_to INTO last_to;
  IF NOT FOUND THEN
    -- A row may come again after it went.
    SELECT h.valid_to INTO last_to FROM public.{table}_history h WHERE h.id OPERATOR(pg_catalog.=) row_id
      ORDER BY h.valid_from DESC LIMIT 1;
  END IF;
  begins := greatest(begins, last_to);
  IF TG_OP OPERATOR(pg_catalog.<>) 'DELETE' THEN
    INSERT INTO public.{table}_history (id, home_key, bucket, facility_id, version, created_at, updated_at{names}, valid_from)
    VALUES (NEW.id, NEW.home_key, NEW.bucket, NEW.facility_id, NEW.version, NEW.created_at, NEW.updated_at{new_names}, begins);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER {table}_remember AFTER INSERT OR UPDATE OR DELETE ON {table}_row
  FOR EACH ROW EXECUTE FUNCTION {table}_remember();

-- Row-level security binds the owner too. The setting stands in a sub-select: whoever may see all asks for it once a
-- statement, and others again for each row.
ALTER TABLE {table}_row ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table}_row FORCE ROW LEVEL SECURITY;
CREATE POLICY {table}_scope ON {table}_row USING (
  CASE (SELECT current_setting('app.scope', true)) WHEN 'all' THEN true ELSE public.pim_sees(home_key, facility_id) END);
ALTER TABLE {table}_history ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table}_history FORCE ROW LEVEL SECURITY;
CREATE POLICY {table}_history_scope ON {table}_history FOR SELECT USING (
  CASE (SELECT current_setting('app.scope', true)) WHEN 'all' THEN true ELSE public.pim_sees(home_key, facility_id) END);
-- For the trigger above, which runs as the owner.
CREATE POLICY {table}_history_keeper ON {table}_history TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE VIEW {table} WITH (security_invoker = true) AS SELECT * FROM {table}_row;
CREATE VIEW {table}_past WITH (security_invoker = true) AS SELECT * FROM {table}_history;
GRANT SELECT, INSERT, UPDATE ON {table}_row TO pim_app;
GRANT SELECT ON {table}_history, {table}, {table}_past TO pim_app;
