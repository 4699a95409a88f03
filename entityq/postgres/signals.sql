-- The first four are sent as one message: one transaction, in which each has a snapshot of its own, and whose locks do
-- not wait for the process that has sent it.

-- name: hold_reshard
-- Before the first snapshot: `entityq reshard` waits for whoever has this lock, and whoever gets it later sees that
-- the group is closed.
LOCK TABLE outbox IN ROW EXCLUSIVE MODE

-- name: store_signal
-- Only the first value counts. Whoever comes first makes the row, the turn that waits (see `suspend`) or this: the
-- row's lock decides, and who comes second finds what the first has written.
INSERT INTO signal (request_id, name, value, signalled_at)
SELECT o.request_id, %(name)s, %(value)s, clock_timestamp()
FROM outbox o
JOIN entity_type t ON t.namespace = %(namespace)s AND t.type = o.type
JOIN shard_group g ON g.group_id = t.group_id AND g.open
WHERE o.request_id = %(request_id)s AND o.reply IS NULL
ON CONFLICT (request_id, name) DO UPDATE SET value = excluded.value, signalled_at = excluded.signalled_at
WHERE signal.signalled_at IS NULL
RETURNING request_id

-- name: wake
-- In the same transaction, and after `store_signal` has the row's lock, with a snapshot of its own: a suspension that
-- was stored just before is seen. Nothing happens unless this transaction has stored the value (xmin), and a turn has
-- waited for it.
WITH signalled AS MATERIALIZED (
    SELECT o.shard_id, o.seq, o.request_id, o.type, o.entity_id
    FROM signal s
    CROSS JOIN LATERAL (SELECT * FROM outbox WHERE outbox.request_id = s.request_id OFFSET 0) o
    WHERE s.request_id = %(request_id)s AND s.name = %(name)s AND s.waiting
      AND s.xmin = pg_current_xact_id()::xid
), resumed AS (
    UPDATE pending
    SET suspended = false, resume_at = NULL
    WHERE shard_id = (SELECT shard_id FROM signalled) AND seq = (SELECT seq FROM signalled)
      AND request_id = (SELECT request_id FROM signalled) AND suspended
    RETURNING shard_id
), due AS (
    UPDATE timer
    SET suspended = false, due_at = clock_timestamp()
    WHERE request_id = (SELECT request_id FROM signalled) AND suspended
    RETURNING shard_id, due_at
)
SELECT pg_notify(%(signals_channel)s, concat_ws(E'\n', resumed.shard_id, type, entity_id))::text
FROM resumed, signalled
UNION ALL
SELECT pg_notify(%(timers_channel)s, shard_id || ':' || (extract(epoch FROM due_at) * 1000)::bigint)::text FROM due

-- name: read_signalled
-- What became of it. No row: the request is not kept (any more).
SELECT o.reply IS NOT NULL AS answered, CASE WHEN NOT g.open THEN g.name END AS closed, s.value,
       s.signalled_at IS NOT NULL AS ended
FROM outbox o
JOIN entity_type t ON t.namespace = %(namespace)s AND t.type = o.type
JOIN shard_group g ON g.group_id = t.group_id
LEFT JOIN signal s ON s.request_id = o.request_id AND s.name = %(name)s
WHERE o.request_id = %(request_id)s

-- name: suspend
-- Attempts that wait for a signal, on the session that holds the leases. For each, either the signal has come
-- (`signalled`), or from now on it waits: under block in pending, under park in timer. The locks of both rows are taken
-- in the order in which whoever signals takes them, so that nothing is lost between the two. Waiting is no failure:
-- attempts are counted anew after it.
WITH ended AS (
    SELECT * FROM unnest(
        %(shard_ids)b::integer[], %(seqs)b::bigint[], %(request_ids)b::bigint[], %(names)b::text[],
        %(timeouts)b::float8[], %(parked)b::boolean[]
    ) AS e (shard_id, seq, request_id, name, timeout, parked)
), here AS MATERIALIZED (
    SELECT ended.*, p.place,
           CASE WHEN timeout IS NULL THEN timestamptz 'infinity'
                ELSE clock_timestamp() + make_interval(secs => timeout) END AS until
    FROM ended
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM pending
        WHERE pending.shard_id = ended.shard_id AND pending.seq = ended.seq
          AND pending.request_id = ended.request_id AND NOT pending.cancelled
        OFFSET 0
    ) p
), waited AS (
    INSERT INTO signal (request_id, name, waiting)
    SELECT request_id, name, true FROM here ORDER BY request_id
    ON CONFLICT (request_id, name) DO UPDATE SET waiting = true
    RETURNING request_id, signalled_at IS NOT NULL AS signalled
), kept AS (
    UPDATE pending p
    SET suspended = true, resume_at = here.until, retries = 0, failing_since = NULL, started = NULL
    FROM here
    JOIN waited ON waited.request_id = here.request_id AND NOT waited.signalled
    WHERE NOT here.parked AND p.ctid = here.place
    RETURNING p.request_id
), moved AS (
    DELETE FROM pending p
    USING here
    JOIN waited ON waited.request_id = here.request_id AND NOT waited.signalled
    WHERE here.parked AND p.ctid = here.place
    RETURNING p.shard_id, p.request_id, p.entity_hash, p.attempts, here.until
), parked AS (
    INSERT INTO timer (shard_id, due_at, request_id, entity_hash, attempts, suspended)
    SELECT shard_id, until, request_id, entity_hash, attempts, true FROM moved
)
SELECT request_id, true AS signalled FROM waited WHERE signalled
UNION ALL
SELECT request_id, false FROM kept
UNION ALL
SELECT request_id, false FROM moved

-- name: end_wait
-- The time of its wait has passed: from now on the signal is refused, unless it came just before.
UPDATE signal SET signalled_at = clock_timestamp()
WHERE request_id = %(request_id)b AND waiting AND signalled_at IS NULL

-- name: read_signals
SELECT name, value, signalled_at IS NOT NULL AS ended FROM signal WHERE request_id = %(request_id)b

-- name: has_waited
SELECT EXISTS (SELECT FROM signal WHERE request_id = %(request_id)b AND waiting)
