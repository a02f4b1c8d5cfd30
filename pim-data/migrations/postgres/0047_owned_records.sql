-- As rows do, records and numbers of keys live where their bucket does, whoever writes them.
CREATE TRIGGER idempotency_owned BEFORE INSERT ON idempotency FOR EACH ROW EXECUTE FUNCTION pim_owned();
ALTER TABLE key_head ADD CONSTRAINT key_head_of_bucket CHECK (bucket = pim_bucket_of(key));
