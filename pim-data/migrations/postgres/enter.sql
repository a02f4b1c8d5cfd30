-- What is called for its effect is assigned to `nothing` in all functions of the write and read path: an assignment is
-- evaluated in place, where PERFORM starts a query, which takes several times as long as what it calls. For the same reason
-- arrays are walked by their index.

-- While degrading is on, this transaction's end waits for no standby. The lock comes before the look that counts: whoever
-- turns it off holds the lock exclusively, so that what commits alone has done so before, and only a statement that begins
-- afterwards sees that it is off. Whoever will wait for a standby holds nothing that turning it off waits for.
-- Programs call this while they believe that it is on; the database has the last word.
CREATE OR REPLACE FUNCTION public.pim_alone() RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  nothing text;
BEGIN
  IF NOT EXISTS (SELECT FROM public.pim_degraded d WHERE d.is_on) THEN
    RETURN current_setting('synchronous_commit');
  END IF;
  nothing := pg_advisory_xact_lock_shared(7463, 0);
  IF EXISTS (SELECT FROM public.pim_degraded d WHERE d.is_on) THEN
    RETURN set_config('synchronous_commit', 'local', true);
  END IF;
  RETURN current_setting('synchronous_commit');
END $$;

-- Writes something that means nothing, so that this transaction's end waits for the standbys that a commit waits for. What
-- it has read is then as safe as if it had been committed now: after a crash a row can be there that no standby ever had.
CREATE OR REPLACE FUNCTION public.pim_settle() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  nothing text;
BEGIN
  nothing := public.pim_alone();
  PERFORM pg_logical_emit_message(true, 'pim', '');
END $$;

-- Refuses rows of a bucket that this database neither owns nor receives, from whoever does not say that they have entered. A row that was typed by
-- hand holds its bucket as a unit does, so that a fence waits for it; who has all buckets already needs no single one.
-- It runs as whoever writes: who may not read the ownership may not write rows either. A unit has held its bucket and seen
-- that it is owned since it entered, and says so until its transaction ends.
CREATE OR REPLACE FUNCTION public.pim_owned() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  standing text;
  nothing text;
BEGIN
  IF position(',' || NEW.bucket || ',' IN current_setting('app.bucket', true)) > 0 THEN
    RETURN NEW;
  END IF;
  -- A snapshot from before the lock may show an owner that is none any more.
  IF 'read committed' <> current_setting('transaction_isolation') THEN
    RAISE EXCEPTION 'pim:isolation-must-be-read-committed' USING ERRCODE = 'PM006';
  END IF;
  IF current_setting('app.bulk', true) IS DISTINCT FROM 'on' THEN
    nothing := pg_advisory_xact_lock_shared(7461, NEW.bucket::int);
  END IF;
  SELECT o.state INTO standing FROM public.pim_bucket_owned o WHERE o.bucket = NEW.bucket;
  IF standing IS NULL OR standing NOT IN ('owned', 'incoming') THEN
    RAISE EXCEPTION 'pim:bucket-not-owned' USING ERRCODE = 'PM007';
  END IF;
  -- A row that went to another key would leave a bucket that may be fenced, and its history without an end.
  IF TG_OP = 'UPDATE' AND NEW.bucket <> OLD.bucket THEN
    RAISE EXCEPTION 'pim:bucket-changed' USING ERRCODE = 'PM007';
  END IF;
  RETURN NEW;
END $$;

DROP FUNCTION IF EXISTS public.pim_hold(jsonb);

-- How units that share a transaction begin, all of them or none; to their keys' numbers. Nobody is waited for here: whoever waited would
-- keep all of them waiting, and whoever it waits for might wait for one of them. All are held before anything is written, so that whoever
-- asks what became of one waits for all. And none of them is told what is not as it expects, a stored answer neither: all are
-- refused at once, each goes alone then, and is told. Each look is a scalar one, which is an index's whatever the tables' sizes
-- were when it was planned.
CREATE OR REPLACE FUNCTION public.pim_enter_all(contexts public.pim_context[]) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  context public.pim_context := contexts[1];
  buckets text := ',';
  heads bigint[];
  nothing text;
BEGIN
  -- Term and degrading are what whoever sends them knows, and so the same for all.
  IF pg_is_in_recovery() OR context.term > public.pim_timeline()
      OR current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'pim:apart' USING ERRCODE = '55P03';
  END IF;
  IF context.alone THEN
    nothing := public.pim_alone();
  END IF;
  FOREACH context IN ARRAY contexts LOOP
    IF NOT (pg_try_advisory_xact_lock_shared(7461, context.bucket::int)
            AND pg_try_advisory_xact_lock(uuid_hash_extended(context.home, 7461))) THEN
      RAISE EXCEPTION 'pim:held' USING ERRCODE = '55P03';
    END IF;
    buckets := buckets || context.bucket || ',';
  END LOOP;
  -- Behind the locks, as for whoever goes alone.
  heads := ARRAY(SELECT given.n FROM (
      SELECT c.*, coalesce((SELECT k.n FROM public.key_head k WHERE k.key = c.home), 0) AS n
        FROM unnest(contexts) WITH ORDINALITY AS c) given
    WHERE (SELECT o.epoch FROM public.pim_bucket_owned o WHERE o.bucket = given.bucket AND o.state = 'owned') = given.epoch
      AND given.n = coalesce(given.head, given.n)
      AND (given.submission IS NULL OR given.head IS NOT NULL
        OR (SELECT i.n FROM public.idempotency i WHERE i.scope = given.submission) IS NULL)
    ORDER BY given.ordinality);
  IF cardinality(heads) <> cardinality(contexts) THEN
    RAISE EXCEPTION 'pim:apart' USING ERRCODE = '55P03';
  END IF;
  -- Where they wait even so, for a row that somebody holds by hand or a unique value, they give way soon: sooner than a deadlock
  -- is looked for, so that whoever is alone is not its victim.
  nothing := set_config('lock_timeout', '100ms', true) || set_config('app.bucket', buckets, true);
  RETURN heads;
END $$;

-- How every write begins. The bucket's lock comes first, alone; whoever fences the bucket holds it exclusively. Only a
-- statement that begins afterwards has a snapshot that can show the new epoch: one statement that did both would let a
-- stale writer through. Then nobody else is on the home key until this transaction ends.
CREATE OR REPLACE FUNCTION public.pim_enter(context public.pim_context, OUT n bigint, OUT replay jsonb) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  owned record;
  known record;
  nothing text;
BEGIN
  -- A standby, and whoever was the primary once, are told before anything has an effect.
  IF pg_is_in_recovery() THEN
    RAISE EXCEPTION 'pim:standby' USING ERRCODE = '25006';
  ELSIF context.term > public.pim_timeline() THEN
    RAISE EXCEPTION 'pim:former-primary' USING ERRCODE = 'PM011', DETAIL = public.pim_timeline()::text;
  ELSIF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'pim:isolation-must-be-read-committed' USING ERRCODE = 'PM006';
  END IF;
  IF context.alone THEN
    nothing := public.pim_alone();
  END IF;
  IF context.bulk THEN
    nothing := pg_advisory_xact_lock_shared(7461, 4096);
  ELSE
    nothing := pg_advisory_xact_lock_shared(7461, context.bucket::int);
  END IF;
  SELECT o.epoch, o.state, o.map_version, o.moved_to INTO owned FROM public.pim_bucket_owned o WHERE o.bucket = context.bucket;
  IF NOT FOUND OR owned.state = 'moved' OR (owned.state = 'owned' AND owned.epoch <> context.epoch) THEN
    RAISE EXCEPTION 'pim:stale-route' USING ERRCODE = 'PM001',
      DETAIL = coalesce(owned.map_version, 0) || ' ' || coalesce(owned.moved_to::text, '-');
  ELSIF owned.state <> 'owned' THEN
    RAISE EXCEPTION 'pim:bucket-draining' USING ERRCODE = 'PM002',
      DETAIL = owned.map_version || ' ' || coalesce(owned.moved_to::text, '-');
  END IF;
  IF context.bulk IS NOT TRUE THEN
    nothing := pg_advisory_xact_lock(uuid_hash_extended(context.home, 7461));
  END IF;
  nothing := set_config('app.user', context.user_id, true) || set_config('app.role', context.role, true)
    || set_config('app.request', context.request::text, true) || set_config('app.trace', context.trace, true)
    || set_config('app.bucket', ',' || context.bucket || ',', true);
  SELECT k.n INTO n FROM public.key_head k WHERE k.key = context.home;
  n := coalesce(n, 0);
  -- Whoever has read the key's number has looked for an answer in the same snapshot. Where the number is still that one, nobody
  -- has answered since on this key; the record's primary key refuses what was answered elsewhere.
  IF context.submission IS NOT NULL AND (context.head IS NULL OR n <> context.head OR context.bulk) THEN
    SELECT encode(i.body, 'hex') AS body, i.status, i.answer, i.n INTO known FROM public.idempotency i
      WHERE i.scope = context.submission;
    IF FOUND THEN
      replay := jsonb_build_object('body', known.body, 'status', known.status, 'answer', known.answer, 'n', known.n);
      PERFORM public.pim_settle();
      RETURN;
    END IF;
  END IF;
  IF n <> context.head THEN
    RAISE EXCEPTION 'pim:conflict' USING ERRCODE = 'PM004';
  END IF;
END $$;

-- How every write ends: the parts of other crates, the home key's number, the idempotency record, and the audit lane
-- last, because its lock is the one that most others wait for.
CREATE OR REPLACE FUNCTION public.pim_leave(context public.pim_context, parts jsonb, status bigint, answer text, records jsonb)
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  -- What entering has compared, if the unit read it; nobody else has been on the key since.
  before bigint := context.head;
  reached bigint;
  record jsonb;
  lane_no bigint := context.bucket & 63;
  last_seq bigint;
  last_hash bytea;
  content text;
  nothing text;
BEGIN
  IF before IS NULL THEN
    SELECT k.n INTO before FROM public.key_head k WHERE k.key = context.home;
    before := coalesce(before, 0);
  END IF;
  reached := public.pim_write_parts(context, parts, before);
  IF before = 0 AND reached > 0 THEN
    INSERT INTO public.key_head (key, bucket, n) VALUES (context.home, context.bucket, reached);
  ELSIF reached > before THEN
    UPDATE public.key_head k SET n = reached WHERE k.key = context.home;
  END IF;
  IF status IS NOT NULL THEN
    INSERT INTO public.idempotency (scope, bucket, body, status, answer, n, request_id, created_at)
    VALUES (context.submission, context.bucket, context.body, status, answer, reached, context.request, context.at);
  END IF;
  IF context.bulk IS NOT TRUE THEN
    nothing := pg_advisory_xact_lock(7462, lane_no::int);
  END IF;
  SELECT a.seq, a.hash INTO last_seq, last_hash FROM public.audit a WHERE a.lane = lane_no ORDER BY a.seq DESC LIMIT 1;
  IF NOT FOUND THEN
    last_seq := 0;
    last_hash := decode(repeat('00', 32), 'hex');
  END IF;
  FOR place IN 0 .. jsonb_array_length(records) - 1 LOOP
    record := records->place;
    -- The number of the home key stands between the two halves: only the database knows it.
    content := (record->>'head') || reached || (record->>'tail');
    INSERT INTO public.audit AS a (lane, seq, previous, hash, body, at, request_id, user_id, home_key, entity, entity_id)
    VALUES (lane_no, last_seq + 1, last_hash, sha256(last_hash || convert_to(content, 'UTF8')), content, context.at,
            context.request, context.user_id, context.home, record->>'entity', (record->>'id')::uuid)
    RETURNING a.seq, a.hash INTO last_seq, last_hash;
  END LOOP;
  RETURN reached;
END $$;

-- How units that share a transaction end: each as it would alone, and each table in one statement. They are in the order of their lanes, so
-- that whoever waits for one holds none that comes after it, and nothing else is waited for once one is held. The rows of `contexts` are
-- said to be few (LIMIT), so that indexes find what each of them means.
CREATE OR REPLACE FUNCTION public.pim_leave_all(contexts public.pim_context[], heads bigint[], scopes text[],
  parts jsonb[], statuses bigint[], answers text[], records jsonb[]) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  reached bigint[] := heads;
  context public.pim_context;
  lane_no bigint;
  held_no bigint;
  last_seq bigint;
  last_hash bytea;
  previous bytea;
  record jsonb;
  content text;
  trail public.audit[] := '{}';
  nothing text;
BEGIN
  FOR place IN 1 .. cardinality(contexts) LOOP
    -- A part sees what its unit sees.
    IF scopes[place] IS DISTINCT FROM scopes[place - 1] THEN
      nothing := set_config('app.scope', scopes[place], true);
    END IF;
    reached[place] := public.pim_write_parts(contexts[place], parts[place], heads[place]);
  END LOOP;
  IF 0 = ANY (heads) THEN
    INSERT INTO public.key_head (key, bucket, n) SELECT c.home, c.bucket, reached[c.ordinality]
      FROM unnest(contexts) WITH ORDINALITY AS c WHERE heads[c.ordinality] = 0 AND reached[c.ordinality] > 0;
  END IF;
  UPDATE public.key_head k SET n = reached[c.ordinality]
    FROM (SELECT * FROM unnest(contexts) WITH ORDINALITY LIMIT cardinality(contexts)) AS c
    WHERE k.key = c.home AND heads[c.ordinality] > 0 AND reached[c.ordinality] > heads[c.ordinality];
  INSERT INTO public.idempotency (scope, bucket, body, status, answer, n, request_id, created_at)
    SELECT c.submission, c.bucket, c.body, statuses[c.ordinality], answers[c.ordinality], reached[c.ordinality], c.request, c.at
    FROM unnest(contexts) WITH ORDINALITY AS c WHERE statuses[c.ordinality] IS NOT NULL;
  FOR place IN 1 .. cardinality(contexts) LOOP
    context := contexts[place];
    lane_no := context.bucket & 63;
    IF lane_no IS DISTINCT FROM held_no THEN
      nothing := pg_advisory_xact_lock(7462, lane_no::int);
      held_no := lane_no;
      SELECT a.seq, a.hash INTO last_seq, last_hash FROM public.audit a WHERE a.lane = lane_no ORDER BY a.seq DESC LIMIT 1;
      IF NOT FOUND THEN
        last_seq := 0;
        last_hash := decode(repeat('00', 32), 'hex');
      END IF;
    END IF;
    FOR number IN 0 .. jsonb_array_length(records[place]) - 1 LOOP
      record := records[place]->number;
      content := (record->>'head') || reached[place] || (record->>'tail');
      previous := last_hash;
      last_hash := sha256(previous || convert_to(content, 'UTF8'));
      last_seq := last_seq + 1;
      trail := trail || ROW(lane_no, last_seq, previous, last_hash, content, context.at, context.request, context.user_id, context.home,
        record->>'entity', (record->>'id')::uuid)::public.audit;
    END LOOP;
  END LOOP;
  INSERT INTO public.audit SELECT * FROM unnest(trail);
  RETURN reached;
END $$;

-- What became of a unit whose COMMIT was not answered: waits until nobody is on the home key any more.
CREATE OR REPLACE FUNCTION public.pim_outcome(context public.pim_context) RETURNS TABLE (request_id uuid, n bigint) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(uuid_hash_extended(context.home, 7461));
  -- Its own number: others may have written to the key since.
  RETURN QUERY SELECT i.request_id, i.n FROM public.idempotency i WHERE i.scope = context.submission;
  IF FOUND THEN
    PERFORM public.pim_settle();
  END IF;
END $$;

-- Locks buckets against every writer: the exclusive lock waits for those in flight and keeps others out until this
-- transaction ends. Each element begins with the bucket's number.
CREATE OR REPLACE FUNCTION public.pim_fence(buckets jsonb) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  bucket_no bigint;
BEGIN
  PERFORM set_config('lock_timeout', '10s', true);
  PERFORM pg_advisory_xact_lock(7461, 4096);
  FOR bucket_no IN SELECT (value->>0)::bigint FROM jsonb_array_elements(buckets) ORDER BY 1 LOOP
    PERFORM pg_advisory_xact_lock(7461, bucket_no::int);
  END LOOP;
END $$;
REVOKE EXECUTE ON FUNCTION public.pim_fence(jsonb) FROM PUBLIC;

-- Fences buckets for a move, and says how many of them this database owns: nothing is fenced unless that is all of them.
-- Whoever writes to them has committed before, or is refused.
CREATE OR REPLACE FUNCTION public.pim_drain(buckets jsonb) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  owned bigint;
BEGIN
  PERFORM public.pim_fence(buckets);
  SELECT count(*) INTO owned FROM public.pim_bucket_owned o
    WHERE o.bucket IN (SELECT (value->>0)::bigint FROM jsonb_array_elements(buckets)) AND o.state IN ('owned', 'draining');
  IF owned = jsonb_array_length(buckets) THEN
    UPDATE public.pim_bucket_owned o SET state = 'draining'
      WHERE o.bucket IN (SELECT (value->>0)::bigint FROM jsonb_array_elements(buckets));
  END IF;
  RETURN owned;
END $$;
REVOKE EXECUTE ON FUNCTION public.pim_drain(jsonb) FROM PUBLIC;

-- Takes a fence back. Behind the locks of one that its caller has left waiting: that one would be there afterwards.
CREATE OR REPLACE FUNCTION public.pim_lift(buckets jsonb) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  PERFORM public.pim_fence(buckets);
  UPDATE public.pim_bucket_owned o SET state = 'owned'
    WHERE o.bucket IN (SELECT (value->>0)::bigint FROM jsonb_array_elements(buckets)) AND o.state = 'draining';
END $$;
REVOKE EXECUTE ON FUNCTION public.pim_lift(jsonb) FROM PUBLIC;

DROP FUNCTION IF EXISTS public.pim_give(jsonb, bigint);

-- Gives buckets away, unless one of them may not go, which it names then. Each element is [bucket, new owner, whether its rows
-- are there]: a bucket whose rows are not there must have none, and one whose rows are must have been fenced since. The lock
-- comes first and the look in a statement of its own, so that no row slips in between.
CREATE OR REPLACE FUNCTION public.pim_hand_over(buckets jsonb, version bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  hindered bigint;
BEGIN
  PERFORM public.pim_fence(buckets);
  SELECT k.bucket INTO hindered FROM public.key_head k
    WHERE k.bucket IN (SELECT (value->>0)::bigint FROM jsonb_array_elements(buckets) WHERE NOT (value->>2)::boolean) LIMIT 1;
  IF hindered IS NULL THEN
    SELECT o.bucket INTO hindered FROM public.pim_bucket_owned o WHERE o.state NOT IN ('draining', 'moved')
      AND o.bucket IN (SELECT (value->>0)::bigint FROM jsonb_array_elements(buckets) WHERE (value->>2)::boolean) LIMIT 1;
  END IF;
  IF hindered IS NULL THEN
    UPDATE public.pim_bucket_owned o SET state = 'moved', map_version = version, moved_to = (given.value->>1)::bigint
      FROM jsonb_array_elements(buckets) AS given(value) WHERE o.bucket = (given.value->>0)::bigint;
  END IF;
  RETURN hindered;
END $$;
REVOKE EXECUTE ON FUNCTION public.pim_hand_over(jsonb, bigint) FROM PUBLIC;

-- Writes what a map says of some buckets, each [bucket, epoch]; those that it says already are not fenced.
CREATE OR REPLACE FUNCTION public.pim_take(buckets jsonb, version bigint) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  changed jsonb;
BEGIN
  SELECT jsonb_agg(taken.value) INTO changed FROM jsonb_array_elements(buckets) AS taken(value)
    WHERE NOT EXISTS (SELECT FROM public.pim_bucket_owned o WHERE o.bucket = (taken.value->>0)::bigint
      AND o.epoch = (taken.value->>1)::bigint AND o.state = 'owned');
  IF changed IS NULL THEN RETURN; END IF;
  PERFORM public.pim_fence(changed);
  INSERT INTO public.pim_bucket_owned AS o (bucket, epoch, state, map_version)
    SELECT (taken.value->>0)::bigint, (taken.value->>1)::bigint, 'owned', version FROM jsonb_array_elements(changed) AS taken(value)
    ON CONFLICT (bucket) DO UPDATE SET epoch = excluded.epoch, state = 'owned', moved_to = NULL, map_version = excluded.map_version;
END $$;
REVOKE EXECUTE ON FUNCTION public.pim_take(jsonb, bigint) FROM PUBLIC;

-- Gives up whatever is owned and not listed.
CREATE OR REPLACE FUNCTION public.pim_retire(buckets jsonb, version bigint) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  gone jsonb;
BEGIN
  SELECT jsonb_agg(jsonb_build_array(o.bucket)) INTO gone FROM public.pim_bucket_owned o
    WHERE o.state = 'owned' AND o.bucket NOT IN (SELECT (value->>0)::bigint FROM jsonb_array_elements(buckets));
  IF gone IS NULL THEN RETURN; END IF;
  PERFORM public.pim_fence(gone);
  UPDATE public.pim_bucket_owned o SET state = 'moved', map_version = version
    FROM jsonb_array_elements(gone) AS lost(value) WHERE o.bucket = (lost.value->>0)::bigint;
END $$;
REVOKE EXECUTE ON FUNCTION public.pim_retire(jsonb, bigint) FROM PUBLIC;

-- Fails unless this database says `wanted` of all these buckets, and keeps it from saying anything else until this
-- transaction ends: whoever would own one of them again waits, or has come first and is seen. The elements are the
-- buckets' numbers.
CREATE OR REPLACE FUNCTION public.pim_require(buckets jsonb, wanted text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  PERFORM 1 FROM public.pim_bucket_owned o
    WHERE o.bucket IN (SELECT value::bigint FROM jsonb_array_elements_text(buckets)) ORDER BY o.bucket FOR SHARE;
  IF EXISTS (SELECT FROM public.pim_bucket_owned o WHERE o.state <> wanted
             AND o.bucket IN (SELECT value::bigint FROM jsonb_array_elements_text(buckets))) THEN
    RAISE EXCEPTION 'pim:bucket-is-owned' USING ERRCODE = 'PM012';
  END IF;
END $$;
REVOKE EXECUTE ON FUNCTION public.pim_require(jsonb, text) FROM PUBLIC;

-- How buckets are moved: by the owner, whom row-level security binds as well, so these let it see every row until they end.
-- Both take text from nobody but the mover, and run with no more rights than whoever calls them.

-- Asks one question of all tables, in one snapshot and one trip; `keys` is its first parameter.
CREATE OR REPLACE FUNCTION public.pim_look(question text, keys jsonb) RETURNS TABLE (a bigint, b uuid, c uuid, d text)
LANGUAGE plpgsql STABLE AS $$
BEGIN
  PERFORM set_config('app.scope', 'all', true);
  RETURN QUERY EXECUTE question USING ARRAY(SELECT value::uuid FROM jsonb_array_elements_text(keys));
END $$;
REVOKE EXECUTE ON FUNCTION public.pim_look(text, jsonb) FROM PUBLIC;

-- Does all of the work or nothing; each element is [statement, what it is given as its first parameter].
CREATE OR REPLACE FUNCTION public.pim_do(work jsonb) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  PERFORM set_config('app.scope', 'all', true);
  FOR place IN 0 .. jsonb_array_length(work) - 1 LOOP
    EXECUTE work->place->>0 USING work->place->1;
  END LOOP;
END $$;
REVOKE EXECUTE ON FUNCTION public.pim_do(jsonb) FROM PUBLIC;
