CREATE TABLE IF NOT EXISTS projection_checkpoint (
    consumer text NOT NULL,
    topic text NOT NULL,
    part bigint NOT NULL,
    next_offset bigint NOT NULL,
    event_at bigint NOT NULL,
    at bigint NOT NULL,
    PRIMARY KEY (consumer, topic, part)
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS inbox_head (
    consumer text NOT NULL,
    home_key uuid NOT NULL,
    owner_epoch bigint NOT NULL,
    n bigint NOT NULL,
    at bigint NOT NULL,
    event_id uuid,
    PRIMARY KEY (consumer, home_key)
) WITH (fillfactor = 80);
CREATE TABLE IF NOT EXISTS held_key (
    consumer text NOT NULL,
    home_key uuid NOT NULL,
    part bigint NOT NULL,
    reason text NOT NULL CHECK (reason IN ('poison', 'gap', 'rewound', 'draining')),
    code text NOT NULL,
    tries bigint NOT NULL,
    since bigint NOT NULL,
    last_epoch bigint NOT NULL,
    last_n bigint NOT NULL,
    PRIMARY KEY (consumer, home_key)
);
CREATE INDEX IF NOT EXISTS held_key_draining ON held_key (consumer, part) WHERE reason = 'draining';
CREATE INDEX IF NOT EXISTS held_key_since ON held_key (consumer, since);
CREATE TABLE IF NOT EXISTS held_event (
    consumer text NOT NULL,
    home_key uuid NOT NULL,
    owner_epoch bigint NOT NULL,
    n bigint NOT NULL,
    event_id uuid NOT NULL,
    event_type text NOT NULL,
    event_at bigint NOT NULL,
    causation uuid,
    part bigint NOT NULL,
    pos bigint NOT NULL,
    digest bytea NOT NULL,
    headers text NOT NULL,
    payload text NOT NULL,
    at bigint NOT NULL,
    PRIMARY KEY (consumer, home_key, owner_epoch, n)
);
CREATE TABLE IF NOT EXISTS dead_record (
    consumer text NOT NULL,
    topic text NOT NULL,
    part bigint NOT NULL,
    pos bigint NOT NULL,
    home_key uuid NOT NULL,
    code text NOT NULL,
    digest bytea NOT NULL,
    headers text NOT NULL,
    payload text NOT NULL,
    at bigint NOT NULL,
    PRIMARY KEY (consumer, topic, part, pos)
);
CREATE TABLE IF NOT EXISTS consumer_stop (
    consumer text PRIMARY KEY,
    reason text NOT NULL,
    since bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS consumer_resume (
    consumer text PRIMARY KEY,
    resumes bigint NOT NULL,
    at bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS projection_version (
    name text PRIMARY KEY,
    version bigint NOT NULL,
    state text NOT NULL,
    at bigint NOT NULL
);
