SELECT i.body, i.status, i.answer, i.n AS answered, k.n, r.id, r.home_key, r.facility_id, r.version, r.created_at,
  r.updated_at{row_names}
FROM (SELECT ?::bytea AS submission, ?::uuid AS home) c
  LEFT JOIN public.idempotency i ON i.scope = c.submission
  LEFT JOIN public.key_head k ON k.key = c.home
  LEFT JOIN public.{table}_row r ON r.home_key = c.home
    AND r.id = (SELECT CASE WHEN set_config('app.scope', ?, true) <> '' THEN ?::uuid END)
