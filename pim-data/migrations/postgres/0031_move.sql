-- One row a move of buckets between shards: what goes from where to where, and how far it has come.
CREATE TABLE pim_move (
  id uuid PRIMARY KEY,
  buckets text NOT NULL,
  source bigint NOT NULL,
  target bigint NOT NULL CHECK (target <> source),
  step text NOT NULL CHECK (step IN ('planned', 'copying', 'fenced', 'activating', 'activated', 'done', 'cancelled')),
  map_version bigint NOT NULL,
  reverses uuid,
  report text NOT NULL,
  request_id uuid NOT NULL,
  user_id text NOT NULL,
  began_at bigint NOT NULL,
  changed_at bigint NOT NULL
);
CREATE INDEX pim_move_began ON pim_move (began_at);
GRANT SELECT, INSERT, UPDATE ON pim_move TO pim_app;
