-- The application's login roles are members of pim_app: it owns nothing and bypasses nothing. Roles belong to the
-- server, so another database of it, or another program at this moment, may have made it.
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pim_app') THEN
    CREATE ROLE pim_app NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
  END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
DO $$ BEGIN
  -- A temporary table could stand in for one of ours.
  EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
  REVOKE CREATE ON SCHEMA public FROM PUBLIC;
END $$;
GRANT USAGE ON SCHEMA public TO pim_app;

-- Which buckets this database owns, and under which epoch. A write quotes the epoch; a stale router is refused by it.
CREATE TABLE pim_bucket_owned (
  bucket bigint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 4095),
  epoch bigint NOT NULL CHECK (epoch > 0),
  state text NOT NULL CHECK (state IN ('owned', 'incoming', 'draining', 'moved')),
  moved_to bigint,
  map_version bigint NOT NULL
);
GRANT SELECT ON pim_bucket_owned, pim_migration, pim_routine TO pim_app;

-- The bucket that a minted id carries: the three hexadecimal digits behind the version digit of a UUIDv8. In PL/pgSQL, because
-- the body of an SQL function in a CHECK is parsed and planned anew by every statement that writes.
CREATE FUNCTION pim_bucket_of(id uuid) RETURNS bigint LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
  RETURN ('x' || substr(id::text, 16, 3))::bit(12)::int::bigint;
END $$;

-- Whether a scope that is not 'all' reaches a row. A scope is the setting app.scope, for one transaction: 'all', 'own ID', or
-- 'facilities ID,ID'; anything else, and none, reaches nothing. A function, because a policy's every call is prepared anew by
-- each statement, also where it is not made; dear, so that what a query asks itself is looked at first.
CREATE FUNCTION pim_sees(home uuid, facility uuid) RETURNS boolean LANGUAGE plpgsql STABLE PARALLEL SAFE COST 1000 AS $$
DECLARE
  scope text := current_setting('app.scope', true);
BEGIN
  RETURN scope = 'own ' || home OR (scope LIKE 'facilities %' AND position(facility::text IN scope) > 0);
END $$;

-- What records and trail are checked for is checked by types: a table's own CHECK is read from its text and planned by each
-- statement that writes.
CREATE DOMAIN pim_ordinal AS bigint CHECK (VALUE > 0);
CREATE DOMAIN pim_digest AS bytea CHECK (length(VALUE) = 32);
CREATE DOMAIN pim_lane AS bigint CHECK (VALUE BETWEEN 0 AND 63);

-- Refuses rows of a bucket that this database neither owns nor receives; made whole with the routines.
CREATE FUNCTION pim_owned() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM pim_bucket_owned WHERE bucket = NEW.bucket AND state IN ('owned', 'incoming')) THEN
    RAISE EXCEPTION 'pim:bucket-not-owned' USING ERRCODE = 'PM007';
  END IF;
  RETURN NEW;
END $$;

-- The dense number of each home key's events: order, gap guard, optimistic check and read-your-writes token in one.
CREATE TABLE key_head (
  key uuid PRIMARY KEY,
  bucket bigint NOT NULL,
  n bigint NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX key_head_bucket ON key_head (bucket);
CREATE TRIGGER key_head_owned BEFORE INSERT OR UPDATE ON key_head FOR EACH ROW EXECUTE FUNCTION pim_owned();
-- The number begins above zero and only rises; whoever would take it back would reuse the numbers of events that are out already.
CREATE FUNCTION pim_head_rises() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.n <= coalesce(OLD.n, 0) THEN RAISE EXCEPTION 'pim:key-head-must-rise' USING ERRCODE = 'PM010'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER key_head_rises BEFORE INSERT OR UPDATE ON key_head FOR EACH ROW EXECUTE FUNCTION pim_head_rises();
GRANT SELECT, INSERT, UPDATE ON key_head TO pim_app;

-- What makes a retry the same request, and the answer that it gets; n is the home key's number after it.
CREATE TABLE idempotency (
  scope pim_digest PRIMARY KEY,
  bucket bigint NOT NULL,
  body pim_digest NOT NULL,
  status bigint NOT NULL,
  answer text NOT NULL,
  n bigint NOT NULL,
  request_id uuid NOT NULL,
  created_at bigint NOT NULL
);
CREATE INDEX idempotency_created ON idempotency (created_at);
GRANT SELECT, INSERT, DELETE ON idempotency TO pim_app;

-- One hash chain a lane. The body is canonical JSON, kept as text; hash = SHA-256(previous || body).
CREATE TABLE audit (
  lane pim_lane NOT NULL,
  seq pim_ordinal NOT NULL,
  previous pim_digest NOT NULL,
  hash pim_digest NOT NULL,
  body text NOT NULL,
  at bigint NOT NULL,
  request_id uuid NOT NULL,
  user_id text NOT NULL,
  home_key uuid NOT NULL,
  entity text NOT NULL,
  entity_id uuid NOT NULL,
  PRIMARY KEY (lane, seq),
  UNIQUE (lane, previous)
);
CREATE INDEX audit_request ON audit (request_id);
CREATE INDEX audit_user ON audit (user_id, at);
CREATE INDEX audit_entity ON audit (entity_id, at);
CREATE FUNCTION pim_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'pim:audit-is-append-only' USING ERRCODE = 'PM009';
END $$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION pim_append_only();
CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION pim_append_only();
GRANT SELECT, INSERT ON audit TO pim_app;

-- Which database this is, so that a swapped connection string is noticed.
CREATE TABLE pim_identity (one bigint PRIMARY KEY CHECK (one = 1), keyspace text NOT NULL, shard bigint NOT NULL);
GRANT SELECT ON pim_identity TO pim_app;

-- Who writes where, and under which conditions; the same for every call of a unit.
CREATE TYPE pim_context AS (
  bucket bigint,
  epoch bigint,
  home uuid,
  -- Microseconds since the Unix epoch.
  at bigint,
  user_id text,
  role text,
  request uuid,
  trace text,
  -- On whose behalf, and because of which event, if so.
  behalf text,
  cause uuid,
  -- The home key's number when the unit began to read; none if it has not.
  head bigint,
  -- What makes a retry the same request: the digests of its scope and of its body.
  submission bytea,
  body bytea,
  -- Whoever was the primary before this term refuses the unit.
  term bigint,
  -- Whether the database is asked if it need wait for no standby; whether the unit has been entered in this transaction;
  -- whether the transaction keeps everybody else out.
  alone boolean,
  entered boolean,
  bulk boolean
);

-- The parts of a unit of work that other crates fill: name, and the function (context pim_context, data jsonb, n_first bigint)
-- that writes them. Registering one makes the dispatcher anew, with a plain call of each: dynamic SQL costs half a
-- millisecond a unit.
CREATE TABLE pim_unit_part (name text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]*$'), function text NOT NULL CHECK (function ~ '^[a-z][a-z0-9_]*$'));
GRANT SELECT ON pim_unit_part TO pim_app;

CREATE FUNCTION pim_register_part(part text, writer text) RETURNS void LANGUAGE plpgsql AS $make$
DECLARE
  calls text;
BEGIN
  INSERT INTO public.pim_unit_part VALUES (part, writer) ON CONFLICT (name) DO UPDATE SET function = excluded.function;
  SELECT string_agg(format(E'    WHEN %L THEN nothing := public.%I(context, part->''data'', n + 1);\n', name, function), '' ORDER BY name)
    INTO calls FROM public.pim_unit_part;
  EXECUTE format($body$
CREATE OR REPLACE FUNCTION public.pim_write_parts(context public.pim_context, parts jsonb, n bigint) RETURNS bigint LANGUAGE plpgsql AS $f$
DECLARE
  part jsonb;
  nothing text;
BEGIN
  FOR place IN 0 .. jsonb_array_length(parts) - 1 LOOP
    part := parts->place;
    CASE part->>'part'
%s    ELSE RAISE EXCEPTION 'pim:unknown-part' USING ERRCODE = 'PM008';
    END CASE;
    n := n + (part->>'facts')::bigint;
  END LOOP;
  RETURN n;
END $f$ $body$, calls);
END $make$;
REVOKE EXECUTE ON FUNCTION pim_register_part(text, text) FROM PUBLIC;

-- Until another crate registers one.
CREATE FUNCTION pim_write_parts(context public.pim_context, parts jsonb, n bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
  IF jsonb_array_length(parts) > 0 THEN RAISE EXCEPTION 'pim:unknown-part' USING ERRCODE = 'PM008'; END IF;
  RETURN n;
END $$;
