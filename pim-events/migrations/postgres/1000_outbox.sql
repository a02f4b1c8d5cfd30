-- Append-only. seq is the order of writing; xid tells which snapshot sees a row: seq is taken before its transaction
-- commits, so a cursor that went by seq alone would skip whoever commits late.
CREATE TABLE outbox_event (
  seq bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
  xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  bucket bigint NOT NULL CHECK (bucket BETWEEN 0 AND 4095),
  lane bigint NOT NULL CHECK (lane = bucket & 63),
  owner_epoch bigint NOT NULL,
  home_key uuid NOT NULL,
  n bigint NOT NULL CHECK (n > 0),
  event_id uuid NOT NULL,
  topic text NOT NULL,
  event_type text NOT NULL,
  schema_version bigint NOT NULL,
  aggregate text NOT NULL,
  aggregate_id uuid NOT NULL,
  aggregate_version bigint NOT NULL,
  correlation uuid NOT NULL,
  causation uuid,
  traceparent text NOT NULL,
  actor text NOT NULL,
  role text NOT NULL,
  at bigint NOT NULL,
  payload text NOT NULL,
  UNIQUE (home_key, n)
);
-- Finds a window. The lane stands second: one look is over all lanes that a relay leases, and these share their window.
CREATE INDEX outbox_event_window ON outbox_event (xid, lane);
CREATE FUNCTION pim_outbox_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'pim:outbox-events-are-never-changed' USING ERRCODE = 'PM020';
END $$;
CREATE TRIGGER outbox_event_is_immutable BEFORE UPDATE ON outbox_event
  FOR EACH ROW EXECUTE FUNCTION pim_outbox_is_immutable();
GRANT SELECT, INSERT ON outbox_event TO pim_app;

-- Where the relay of a lane is: everything that `low` sees is on the bus, or held. While a window is being sent `high` is
-- its end, and of what `high` sees and `low` does not, everything up to last_seq is on the bus as well.
CREATE TABLE outbox_cursor (
  lane bigint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
  low pg_snapshot NOT NULL DEFAULT '1:1:',
  high pg_snapshot,
  last_seq bigint NOT NULL DEFAULT 0,
  owner uuid,
  epoch bigint NOT NULL DEFAULT 0,
  lease_until_ms bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 30);
INSERT INTO outbox_cursor (lane) SELECT generate_series(0, 63);
GRANT SELECT, UPDATE ON outbox_cursor TO pim_app;

-- Relays that are alive: each leases its share of the lanes.
CREATE TABLE outbox_relay (owner uuid PRIMARY KEY, until_ms bigint NOT NULL);
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_relay TO pim_app;

-- Events that the bus refused, and their successors in the key.
CREATE TABLE outbox_held (
  seq bigint PRIMARY KEY,
  home_key uuid NOT NULL,
  code text NOT NULL,
  retry bigint NOT NULL DEFAULT 0,
  at bigint NOT NULL
);
CREATE INDEX outbox_held_key ON outbox_held (home_key, seq);
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_held TO pim_app;

-- Commands that events drove: once for each consumer, event and target.
CREATE TABLE command_inbox (
  consumer text NOT NULL,
  event_id uuid NOT NULL,
  target_key uuid NOT NULL,
  bucket bigint NOT NULL CHECK (bucket BETWEEN 0 AND 4095),
  at bigint NOT NULL,
  PRIMARY KEY (consumer, event_id, target_key)
);
GRANT SELECT, INSERT ON command_inbox TO pim_app;

CREATE FUNCTION pim_now_ms() RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN (extract(epoch FROM clock_timestamp()) * 1000)::bigint;

-- The part of a unit of work that holds its events. Not in plain SQL: such a function is planned anew in each transaction.
CREATE FUNCTION pim_outbox_append(context pim_context, data jsonb, n_first bigint) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  INSERT INTO public.outbox_event (bucket, lane, owner_epoch, home_key, n, event_id, topic, event_type, schema_version,
      aggregate, aggregate_id, aggregate_version, correlation, causation, traceparent, actor, role, at, payload)
  SELECT context.bucket, context.bucket & 63, context.epoch, context.home, n_first + given.place - 1,
      (given.event->>'id')::uuid, given.event->>'topic', given.event->>'type', (given.event->>'version')::bigint, given.event->>'aggregate',
      (given.event->>'aggregate_id')::uuid, (given.event->>'aggregate_version')::bigint, context.request,
      context.cause, context.trace, coalesce(context.behalf, context.user_id), context.role, context.at,
      given.event->>'payload'
    FROM jsonb_array_elements(data) WITH ORDINALITY AS given(event, place) ORDER BY given.place;
END $$;
SELECT pim_register_part('outbox', 'pim_outbox_append');

-- The part that makes a command happen once. No ON CONFLICT: a second commit of the same command fails as a whole.
CREATE FUNCTION pim_command_enter(context pim_context, data jsonb, n_first bigint) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  INSERT INTO public.command_inbox (consumer, event_id, target_key, bucket, at)
  VALUES (data->>'consumer', (data->>'event')::uuid, context.home, context.bucket, context.at);
END $$;
SELECT pim_register_part('command_inbox', 'pim_command_enter');

-- The end of the window behind `low`: what this statement's own snapshot sees, or, where that is more than `most` rows,
-- the same snapshot cut at a transaction. So a backlog is sent in windows that are cheap to sort.
CREATE FUNCTION pim_outbox_end(low pg_snapshot, most bigint) RETURNS pg_snapshot LANGUAGE plpgsql STABLE AS $$
DECLARE
  seen pg_snapshot := pg_current_snapshot();
  first_xid xid8;
  cut xid8;
  running text;
BEGIN
  SELECT e.xid INTO cut FROM public.outbox_event e WHERE e.xid >= pg_snapshot_xmax(low) AND e.xid < pg_snapshot_xmax(seen)
    ORDER BY e.xid OFFSET most LIMIT 1;
  IF NOT FOUND THEN RETURN seen; END IF;
  SELECT e.xid INTO first_xid FROM public.outbox_event e WHERE e.xid >= pg_snapshot_xmax(low) ORDER BY e.xid LIMIT 1;
  IF cut = first_xid THEN
    -- One transaction wrote them all; it is not divided.
    cut := (cut::text::bigint + 1)::text::xid8;
  END IF;
  SELECT string_agg(x::text, ',' ORDER BY x) INTO running FROM pg_snapshot_xip(seen) x WHERE x < cut;
  RETURN (least(pg_snapshot_xmin(seen), cut)::text || ':' || cut::text || ':' || coalesce(running, ''))::pg_snapshot;
END $$;

-- The next events of some lanes, in the order of writing: those that `high` sees and `low` does not. What was in progress
-- when `low` was taken is looked up one by one, so that a transaction that stays open for long makes nobody look at
-- everything since it began. Without `high` a new window is opened. One row at least, which names the window's end.
CREATE FUNCTION pim_outbox_next(lanes jsonb, low_text text, high_text text, behind bigint, most bigint)
RETURNS TABLE (seq bigint, bucket bigint, owner_epoch bigint, home_key uuid, n bigint, event_id uuid, topic text,
  event_type text, schema_version bigint, aggregate text, aggregate_id uuid, aggregate_version bigint, correlation uuid,
  causation uuid, traceparent text, actor text, role text, at bigint, payload text, high text)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
  low pg_snapshot := low_text::pg_snapshot;
  upto pg_snapshot := coalesce(high_text::pg_snapshot, public.pim_outbox_end(low_text::pg_snapshot, 10000));
  leased bigint[] := ARRAY(SELECT value::bigint FROM jsonb_array_elements_text(lanes));
BEGIN
  RETURN QUERY
  WITH found AS MATERIALIZED (
    SELECT e.seq FROM public.outbox_event e
      WHERE e.xid >= pg_snapshot_xmax(low) AND e.xid < pg_snapshot_xmax(upto) AND e.lane = ANY (leased) AND e.seq > behind
        AND pg_visible_in_snapshot(e.xid, upto)
    UNION ALL
    SELECT e.seq FROM pg_snapshot_xip(low) late JOIN public.outbox_event e ON e.xid = late
      WHERE e.lane = ANY (leased) AND e.seq > behind AND pg_visible_in_snapshot(e.xid, upto))
  SELECT e.seq, e.bucket, e.owner_epoch, e.home_key, e.n, e.event_id, e.topic, e.event_type, e.schema_version, e.aggregate,
      e.aggregate_id, e.aggregate_version, e.correlation, e.causation, e.traceparent, e.actor, e.role, e.at, e.payload,
      upto::text
    FROM (SELECT 1) one LEFT JOIN
      (SELECT w.* FROM public.outbox_event w WHERE w.seq = ANY (ARRAY(SELECT f.seq FROM found f ORDER BY f.seq LIMIT most))) e
      ON true
    ORDER BY e.seq;
END $$;

-- Events that the cursor of their lane has not passed; not more than `most`, if that is given.
CREATE FUNCTION pim_outbox_unsent(most bigint) RETURNS TABLE (seq bigint, at bigint, bucket bigint) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
  since xid8;
  late xid8[] := ARRAY(SELECT DISTINCT x FROM public.outbox_cursor c, pg_snapshot_xip(c.low) x);
BEGIN
  SELECT pg_snapshot_xmax(c.low) INTO since FROM public.outbox_cursor c ORDER BY 1 LIMIT 1;
  RETURN QUERY
  SELECT e.seq, e.at, e.bucket FROM public.outbox_event e JOIN public.outbox_cursor c ON c.lane = e.lane
    WHERE (e.xid >= since OR e.xid = ANY (late)) AND NOT pg_visible_in_snapshot(e.xid, c.low)
      AND (c.high IS NULL OR NOT pg_visible_in_snapshot(e.xid, c.high) OR e.seq > c.last_seq)
    LIMIT most;
END $$;

-- Says that a relay is alive and leases to it what is free of its share of the lanes. One row at least, with the share.
CREATE FUNCTION pim_outbox_lease(relay uuid, length_ms bigint, held bigint)
RETURNS TABLE (share bigint, lane bigint, epoch bigint, low text, high text, last_seq bigint) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
  fair bigint;
BEGIN
  INSERT INTO public.outbox_relay AS r (owner, until_ms) VALUES (relay, public.pim_now_ms() + length_ms)
    ON CONFLICT (owner) DO UPDATE SET until_ms = excluded.until_ms;
  DELETE FROM public.outbox_relay r WHERE r.until_ms < public.pim_now_ms() - 60000;
  SELECT (63 + count(*)) / count(*) INTO fair FROM public.outbox_relay r WHERE r.until_ms >= public.pim_now_ms() OR r.owner = relay;
  RETURN QUERY
  WITH free AS MATERIALIZED (
    SELECT c.lane FROM public.outbox_cursor c WHERE c.owner IS NULL OR c.lease_until_ms < public.pim_now_ms()
      ORDER BY c.lane LIMIT greatest(fair - held, 0) FOR UPDATE SKIP LOCKED),
  taken AS (
    UPDATE public.outbox_cursor c SET owner = relay, epoch = c.epoch + 1, lease_until_ms = public.pim_now_ms() + length_ms
      FROM free WHERE c.lane = free.lane
      RETURNING c.lane, c.epoch, c.low::text, c.high::text, c.last_seq)
  SELECT fair, t.lane, t.epoch, t.low, t.high, t.last_seq FROM (SELECT 1) one LEFT JOIN taken t ON true;
END $$;

-- Removes a page of events that are on the bus and old; answers the last seq that was looked at, whether it is old as
-- well, and how many went. It runs as the owner: the application's role removes no event in any other way.
CREATE FUNCTION pim_outbox_prune(behind bigint, before bigint, page bigint, OUT last bigint, OUT is_old boolean, OUT removed bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  SELECT e.seq, e.at < before INTO last, is_old
    FROM (SELECT o.seq, o.at FROM outbox_event o WHERE o.seq > behind ORDER BY o.seq LIMIT page) e ORDER BY e.seq DESC LIMIT 1;
  removed := 0;
  IF last IS NULL THEN RETURN; END IF;
  DELETE FROM outbox_event e USING outbox_cursor c
    WHERE e.seq > behind AND e.seq <= last AND e.at < before AND c.lane = e.lane
      AND (pg_visible_in_snapshot(e.xid, c.low)
        OR (c.high IS NOT NULL AND pg_visible_in_snapshot(e.xid, c.high) AND e.seq <= c.last_seq))
      AND NOT EXISTS (SELECT FROM outbox_held h WHERE h.seq = e.seq);
  GET DIAGNOSTICS removed = ROW_COUNT;
END $$;
REVOKE EXECUTE ON FUNCTION pim_outbox_prune(bigint, bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pim_outbox_prune(bigint, bigint, bigint) TO pim_app;
