-- One row a move of buckets between shards: what goes from where to where, and how far it has come.
CREATE TABLE pim_move (
  id BLOB PRIMARY KEY CHECK (length(id) = 16),
  buckets TEXT NOT NULL,
  source INTEGER NOT NULL,
  target INTEGER NOT NULL CHECK (target <> source),
  step TEXT NOT NULL CHECK (step IN ('planned', 'copying', 'fenced', 'activating', 'activated', 'done', 'cancelled')),
  map_version INTEGER NOT NULL,
  reverses BLOB,
  report TEXT NOT NULL,
  request_id BLOB NOT NULL,
  user_id TEXT NOT NULL,
  began_at INTEGER NOT NULL,
  changed_at INTEGER NOT NULL
);
CREATE INDEX pim_move_began ON pim_move (began_at);
