-- A column may be called as a variable is: columns are told by their table, and what stands beside columns in a list of
-- arguments begins as no column does.

-- Writes one row. Alone in its unit it also enters and leaves: everything in one call. Whatever it
-- is given has a type: taking a number out of JSON costs as much as comparing it a hundred times.
CREATE OR REPLACE FUNCTION public.pim_w_{table}_{digest}(context public.pim_context, wanted uuid, next_version bigint, facility uuid,
  scope text{given_types}, parts jsonb, status bigint, answer text, records jsonb, OUT n bigint, OUT replay jsonb)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
  entered record;
  nothing text;
BEGIN
  IF context.entered IS NOT TRUE THEN
    entered := public.pim_enter(context);
    IF entered.replay IS NOT NULL THEN
      replay := entered.replay;
      RETURN;
    END IF;
  END IF;
  nothing := set_config('app.scope', scope, true);
  IF next_version = 1 THEN
    INSERT INTO public.{table}_row (id, home_key, bucket, facility_id, version, created_at, updated_at{names})
    VALUES (wanted, context.home, context.bucket, facility, 1, context.at, context.at{given_names});
  ELSE
    UPDATE public.{table}_row r
      SET version = r.version + 1, updated_at = context.at, facility_id = facility{sets}
      WHERE r.id = wanted AND r.home_key = context.home AND r.version = next_version - 1
        AND (scope = 'all' OR public.pim_sees(r.home_key, r.facility_id));
    IF NOT FOUND THEN
      RAISE EXCEPTION 'pim_guard_stale' USING ERRCODE = 'PM003', TABLE = '{table}_row';
    END IF;
  END IF;
  -- Of several rows only the last is told what comes after them.
  IF records IS NOT NULL THEN
    n := public.pim_leave(context, parts, status, answer, records);
  END IF;
END $$;

-- The same for units that share a transaction, each of one row: all of them or none. Whoever sees the same writes in one statement.
CREATE OR REPLACE FUNCTION public.pim_m_{table}_{digest}(contexts public.pim_context[], wanted uuid[], next_versions bigint[],
  facilities uuid[], scopes text[]{given_arrays}, parts jsonb[], statuses bigint[], answers text[], records jsonb[])
RETURNS TABLE (n bigint, replay jsonb) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
  heads bigint[] := public.pim_enter_all(contexts);
  scope text;
  written_scopes text[] := '{}';
  written bigint := 0;
  more bigint;
  nothing text;
BEGIN
  FOREACH scope IN ARRAY scopes LOOP
    CONTINUE WHEN scope = ANY (written_scopes);
    written_scopes := written_scopes || scope;
    nothing := set_config('app.scope', scope, true);
    IF 1 = ANY (next_versions) THEN
      INSERT INTO public.{table}_row (id, home_key, bucket, facility_id, version, created_at, updated_at{names})
        SELECT wanted[c.ordinality], c.home, c.bucket, facilities[c.ordinality], 1, c.at, c.at{given_elements}
        FROM unnest(contexts) WITH ORDINALITY AS c WHERE next_versions[c.ordinality] = 1 AND scopes[c.ordinality] = scope;
      GET DIAGNOSTICS more = ROW_COUNT;
      written := written + more;
    END IF;
    IF 1 < ANY (next_versions) THEN
      -- The id is taken out of its array before rows are looked at: that may fail, and so would come after the policy, of all rows
      -- of the home key.
      UPDATE public.{table}_row r
        SET version = r.version + 1, updated_at = c.at, facility_id = facilities[c.ordinality]{element_sets}
        FROM (SELECT u.*, wanted[u.ordinality] AS _wanted FROM unnest(contexts) WITH ORDINALITY AS u
          LIMIT cardinality(contexts)) AS c
        WHERE r.id = c._wanted AND r.home_key = c.home AND r.version = next_versions[c.ordinality] - 1
          AND scopes[c.ordinality] = scope AND (scope = 'all' OR public.pim_sees(r.home_key, r.facility_id));
      GET DIAGNOSTICS more = ROW_COUNT;
      written := written + more;
    END IF;
  END LOOP;
  IF written <> cardinality(contexts) THEN
    RAISE EXCEPTION 'pim:apart' USING ERRCODE = '55P03';
  END IF;
  FOREACH n IN ARRAY public.pim_leave_all(contexts, heads, scopes, parts, statuses, answers, records) LOOP
    RETURN NEXT;
  END LOOP;
END $$;

-- The functions below are STABLE: everything in one call is of one snapshot, so that n tells how fresh the rows are.
CREATE OR REPLACE FUNCTION public.pim_s_{table}_{digest}(_scope text, _home uuid, _behind uuid, _most bigint)
RETURNS TABLE (n bigint, id uuid, home_key uuid, facility_id uuid, version bigint, created_at bigint, updated_at bigint{typed})
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
DECLARE
  _facilities uuid[] := CASE WHEN _scope LIKE 'facilities %' THEN string_to_array(substr(_scope, 12), ',')::uuid[] END;
  _nothing text;
BEGIN
  _nothing := set_config('app.scope', _scope, true);
  -- The policy has the last word; rows of other facilities are passed by before it is asked.
  IF _home IS NULL THEN
    RETURN QUERY SELECT (SELECT k.n FROM public.key_head k WHERE k.key = r.home_key), r.id, r.home_key, r.facility_id, r.version::bigint,
        r.created_at, r.updated_at{row_names}
      FROM public.{table}_row r WHERE r.id > _behind AND (_facilities IS NULL OR r.facility_id = ANY (_facilities))
      ORDER BY r.id LIMIT _most;
  ELSE
    RETURN QUERY SELECT (SELECT k.n FROM public.key_head k WHERE k.key = r.home_key), r.id, r.home_key, r.facility_id, r.version::bigint,
        r.created_at, r.updated_at{row_names}
      FROM public.{table}_row r WHERE r.home_key = _home AND r.id > _behind AND (_facilities IS NULL OR r.facility_id = ANY (_facilities))
      ORDER BY r.id LIMIT _most;
  END IF;
END $$;

CREATE OR REPLACE FUNCTION public.pim_h_{table}_{digest}(_scope text, _wanted uuid, _instant bigint, _behind bigint, _most bigint)
RETURNS TABLE (valid_from bigint, valid_to bigint, id uuid, home_key uuid, facility_id uuid, version bigint, created_at bigint,
  updated_at bigint{typed})
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
DECLARE
  _nothing text;
BEGIN
  _nothing := set_config('app.scope', _scope, true);
  RETURN QUERY SELECT r.valid_from, r.valid_to, r.id, r.home_key, r.facility_id, r.version, r.created_at, r.updated_at{row_names}
    FROM public.{table}_history r
    WHERE r.id = _wanted AND r.valid_from > _behind
      AND (_instant IS NULL OR (r.valid_from <= _instant AND (r.valid_to IS NULL OR r.valid_to > _instant)))
    ORDER BY r.valid_from LIMIT _most;
END $$;
