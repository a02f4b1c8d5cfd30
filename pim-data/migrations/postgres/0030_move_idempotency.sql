-- A bucket's idempotency records move with it.
CREATE INDEX idempotency_bucket ON idempotency (bucket);
