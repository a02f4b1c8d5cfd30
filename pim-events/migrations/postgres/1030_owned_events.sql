-- As rows do, events and what commands have done live where their bucket does, whoever writes them.
CREATE TRIGGER outbox_event_owned BEFORE INSERT ON outbox_event FOR EACH ROW EXECUTE FUNCTION pim_owned();
ALTER TABLE outbox_event ADD CONSTRAINT outbox_event_of_bucket CHECK (bucket = pim_bucket_of(home_key));
CREATE TRIGGER command_inbox_owned BEFORE INSERT ON command_inbox FOR EACH ROW EXECUTE FUNCTION pim_owned();
