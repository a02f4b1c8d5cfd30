SELECT i.body, i.status, i.answer, i.n AS answered, k.n, r.*
FROM (SELECT set_config('app.scope', ?, true), set_config('app.own', ?, true), set_config('app.facilities', ?, true),
    ?::bytea AS submission, ?::uuid AS home, ?::uuid AS wanted OFFSET 0) c
  LEFT JOIN public.idempotency i ON i.scope = c.submission
  LEFT JOIN public.key_head k ON k.key = c.home
  LEFT JOIN LATERAL (SELECT r.id, r.home_key, r.facility_id, r.version, r.created_at, r.updated_at{row_names}
    FROM public.{table}_row r WHERE r.id = c.wanted AND r.home_key = c.home OFFSET 0) r ON true
