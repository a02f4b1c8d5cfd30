-- How long a lease may be. One that lies further ahead than twice as long was written before the clock was set back, and nobody
-- may live who would renew it. Whoever does has lost nothing: what is sent again does no harm.
ALTER TABLE outbox_cursor ADD COLUMN lease_ms bigint NOT NULL DEFAULT 3600000;
ALTER TABLE outbox_relay ADD COLUMN lease_ms bigint NOT NULL DEFAULT 3600000;

CREATE FUNCTION pim_outbox_lasts(until_ms bigint, lease_ms bigint) RETURNS boolean LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN until_ms BETWEEN public.pim_now_ms() AND public.pim_now_ms() + 2 * lease_ms;

-- As it was, by that.
CREATE OR REPLACE FUNCTION pim_outbox_lease(relay uuid, length_ms bigint, held bigint)
RETURNS TABLE (share bigint, lane bigint, epoch bigint, low text, high text, last_seq bigint) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
  fair bigint;
BEGIN
  INSERT INTO public.outbox_relay AS r (owner, until_ms, lease_ms) VALUES (relay, public.pim_now_ms() + length_ms, length_ms)
    ON CONFLICT (owner) DO UPDATE SET until_ms = excluded.until_ms, lease_ms = excluded.lease_ms;
  -- Whoever lives is at its own row, and may be about to take this one away in the same way.
  DELETE FROM public.outbox_relay r WHERE r.owner IN (SELECT o.owner FROM public.outbox_relay o
    WHERE o.owner <> relay AND o.until_ms NOT BETWEEN public.pim_now_ms() - 60000 AND public.pim_now_ms() + 2 * o.lease_ms
    FOR UPDATE SKIP LOCKED);
  SELECT (63 + count(*)) / count(*) INTO fair FROM public.outbox_relay r
    WHERE r.owner = relay OR public.pim_outbox_lasts(r.until_ms, r.lease_ms);
  RETURN QUERY
  WITH free AS MATERIALIZED (
    SELECT c.lane FROM public.outbox_cursor c WHERE c.owner IS NULL OR NOT public.pim_outbox_lasts(c.lease_until_ms, c.lease_ms)
      ORDER BY c.lane LIMIT greatest(fair - held, 0) FOR UPDATE SKIP LOCKED),
  taken AS (
    UPDATE public.outbox_cursor c
      SET owner = relay, epoch = c.epoch + 1, lease_until_ms = public.pim_now_ms() + length_ms, lease_ms = length_ms
      FROM free WHERE c.lane = free.lane
      RETURNING c.lane, c.epoch, c.low::text, c.high::text, c.last_seq)
  SELECT fair, t.lane, t.epoch, t.low, t.high, t.last_seq FROM (SELECT 1) one LEFT JOIN taken t ON true;
END $$;
