SELECT r.*
FROM (SELECT set_config('app.scope', ?, true), set_config('app.own', ?, true), set_config('app.facilities', ?, true),
    ?::uuid AS wanted OFFSET 0) c,
  LATERAL (SELECT (SELECT k.n FROM public.key_head k WHERE k.key = r.home_key) AS n, r.id, r.home_key, r.facility_id, r.version,
      r.created_at, r.updated_at{row_names}
    FROM public.{table}_row r WHERE r.id = c.wanted OFFSET 0) r
