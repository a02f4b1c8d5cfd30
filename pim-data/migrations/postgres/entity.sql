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

-- History is written by the database itself, so that hand-typed SQL leaves a trace too; once for all rows of a statement. A period
-- begins at least one microsecond after the one before it, whatever the clock says. It runs as the owner, so whatever it names is named
-- with its schema, operators too: who calls it cannot have it find something else. A search path of its own would do the same, and
-- would cost as much as one of its statements.
-- Only the newest period can be open. It is looked up as that, so that a row of a thousand versions costs no more than a new one. It has
-- the row as it was, and with it the instant of the last change. A row may come again after it went. Columns have any name that begins with no
-- underscore. A session keeps the plan of the first statement: that of pooled connections reads no whole table, however many rows it had.
CREATE FUNCTION {table}_remember() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
#variable_conflict use_variable
BEGIN
  WITH given AS MATERIALIZED (
    SELECT r.*, newest._place, newest._open, greatest(
        CASE WHEN r.updated_at OPERATOR(pg_catalog.>) newest._changed_at OR TG_OP OPERATOR(pg_catalog.=) 'INSERT' THEN r.updated_at
          ELSE (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::bigint END,
        newest._earliest) AS _begins
      FROM changed r LEFT JOIN LATERAL (
        SELECT h.ctid AS _place, h.valid_to IS NULL AS _open, h.updated_at AS _changed_at,
            coalesce(h.valid_to, h.valid_from OPERATOR(pg_catalog.+) 1) AS _earliest
          FROM public.{table}_history h WHERE h.id OPERATOR(pg_catalog.=) r.id ORDER BY h.valid_from DESC LIMIT 1) newest ON true),
  closed AS (
    UPDATE public.{table}_history h SET valid_to = g._begins FROM given g
      WHERE h.ctid OPERATOR(pg_catalog.=) g._place AND g._open)
  INSERT INTO public.{table}_history (id, home_key, bucket, facility_id, version, created_at, updated_at{names}, valid_from)
    SELECT g.id, g.home_key, g.bucket, g.facility_id, g.version, g.created_at, g.updated_at{given_row_names}, g._begins FROM given g;
  RETURN NULL;
END $$;
CREATE TRIGGER {table}_remember_new AFTER INSERT ON {table}_row REFERENCING NEW TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION {table}_remember();
CREATE TRIGGER {table}_remember_changed AFTER UPDATE ON {table}_row REFERENCING NEW TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION {table}_remember();

-- Row by row, so that what a statement deletes and writes again is closed before it is opened. Units delete nothing.
CREATE FUNCTION {table}_remember_gone() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
#variable_conflict use_variable
DECLARE
  -- An expression would keep the index from being read backwards.
  row_id uuid := OLD.id;
BEGIN
  UPDATE public.{table}_history h SET valid_to = greatest(
      (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::bigint,
      h.valid_from OPERATOR(pg_catalog.+) 1)
    WHERE h.ctid OPERATOR(pg_catalog.=) (SELECT p.ctid FROM public.{table}_history p
        WHERE p.id OPERATOR(pg_catalog.=) row_id ORDER BY p.valid_from DESC LIMIT 1)
      AND h.valid_to IS NULL;
  RETURN NULL;
END $$;
CREATE TRIGGER {table}_remember_gone AFTER DELETE ON {table}_row
  FOR EACH ROW EXECUTE FUNCTION {table}_remember_gone();

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
