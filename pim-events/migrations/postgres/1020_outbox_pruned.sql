-- When the youngest event was written that has gone: a log that is older than that misses it.
CREATE TABLE outbox_pruned (id bigint PRIMARY KEY CHECK (id = 0), youngest_at bigint);
INSERT INTO outbox_pruned (id) VALUES (0);
GRANT SELECT ON outbox_pruned TO pim_app;

-- As before, and remembers.
CREATE OR REPLACE FUNCTION pim_outbox_prune(behind bigint, before bigint, page bigint, OUT last bigint, OUT is_old boolean, OUT removed bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  youngest bigint;
BEGIN
  SELECT e.seq, e.at < before INTO last, is_old
    FROM (SELECT o.seq, o.at FROM outbox_event o WHERE o.seq > behind ORDER BY o.seq LIMIT page) e ORDER BY e.seq DESC LIMIT 1;
  removed := 0;
  IF last IS NULL THEN RETURN; END IF;
  WITH gone AS (
    DELETE FROM outbox_event e USING outbox_cursor c
      WHERE e.seq > behind AND e.seq <= last AND e.at < before AND c.lane = e.lane
        AND (pg_visible_in_snapshot(e.xid, c.low)
          OR (c.high IS NOT NULL AND pg_visible_in_snapshot(e.xid, c.high) AND e.seq <= c.last_seq))
        AND NOT EXISTS (SELECT FROM outbox_held h WHERE h.seq = e.seq)
      RETURNING e.at)
  SELECT count(*), max(gone.at) INTO removed, youngest FROM gone;
  IF removed > 0 THEN
    UPDATE outbox_pruned p SET youngest_at = greatest(p.youngest_at, youngest);
  END IF;
END $$;
