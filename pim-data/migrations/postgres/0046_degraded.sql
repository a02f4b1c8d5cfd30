-- Whether this shard's primary may acknowledge commits alone. No row: it may not, and whatever it ever acknowledged alone has
-- been confirmed since by those whom commits wait for. Only the owner may say otherwise, and does so with a record in the
-- audit trail. (Nobody can be kept from asking for less than others within a transaction of their own: that is PostgreSQL's.)
CREATE TABLE pim_degraded (
  one bigint PRIMARY KEY CHECK (one = 1),
  is_on boolean NOT NULL,
  since bigint NOT NULL
);
GRANT SELECT ON pim_degraded TO pim_app;
