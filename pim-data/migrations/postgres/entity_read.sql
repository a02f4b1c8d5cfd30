SELECT {n} AS n, r.id, r.home_key, r.facility_id, r.version,
  r.created_at, r.updated_at{row_names}
FROM public.{table}_row r
WHERE r.id = (SELECT CASE WHEN set_config('app.scope', ?, true) <> '' THEN ?::uuid END)
