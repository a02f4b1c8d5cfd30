-- A bucket's inbox moves with it.
CREATE INDEX command_inbox_bucket ON command_inbox (bucket);
