-- name: request_cancel
-- A pending request gets its mark, and its owner is told of it by the commit. The lock of the pending row decides
-- between this and the commit of its turn: who comes second finds no row, or a mark that the commit ignores.
-- No row: the namespace has no such request. Neither a reply nor a mark: it has a timer, or is on its way from one
-- table to the other.
WITH asked AS (
    SELECT o.shard_id, o.seq, o.type, o.entity_id, o.message, o.reply
    FROM (SELECT * FROM outbox WHERE request_id = %(request_id)s OFFSET 0) o
    JOIN shard s ON s.shard_id = o.shard_id
    JOIN shard_group g ON g.group_id = s.group_id
    WHERE g.namespace = %(namespace)s
), marked AS (
    UPDATE pending p
    SET cancelled = true
    FROM (
        SELECT found.place
        FROM asked
        CROSS JOIN LATERAL (
            SELECT ctid AS place FROM pending
            WHERE pending.shard_id = asked.shard_id AND pending.seq = asked.seq
              AND pending.request_id = %(request_id)s
            OFFSET 0
        ) found
    ) place
    WHERE p.ctid = place.place
    RETURNING p.shard_id, p.seq
)
SELECT asked.type, asked.entity_id, asked.message, asked.reply, marked.seq IS NOT NULL AS marked,
       CASE WHEN marked.seq IS NOT NULL
            THEN pg_notify(%(channel)s, marked.shard_id || ':' || marked.seq)::text END
FROM asked
LEFT JOIN marked ON true

-- name: answer_timed
-- A request that nobody runs, because its time has not come, is answered at once. Whoever fires timers takes their
-- rows first, too: the row's lock decides, and who comes second finds none.
WITH removed AS (
    DELETE FROM timer WHERE request_id = %(request_id)s RETURNING request_id
), replied AS (
    UPDATE outbox o
    SET reply = %(reply)b, replied_at = now()
    FROM removed
    CROSS JOIN LATERAL (SELECT ctid AS place FROM outbox WHERE outbox.request_id = removed.request_id OFFSET 0) found
    WHERE o.ctid = found.place AND o.reply IS NULL
    RETURNING o.request_id
)
SELECT count(*) FROM replied

-- name: read_cancelled
-- Of these pending requests, those that are cancelled; the columns are those of read_pending.
SELECT p.shard_id, p.seq, o.request_id, o.type, o.entity_id, o.envelope, p.attempts, p.retries,
       NULL::float8 AS failing, NULL::float8 AS wait, p.suspended, p.cancelled
FROM unnest(%(shard_ids)b::integer[], %(seqs)b::bigint[]) AS asked (shard_id, seq)
CROSS JOIN LATERAL (
    SELECT * FROM pending WHERE pending.shard_id = asked.shard_id AND pending.seq = asked.seq OFFSET 0
) p
CROSS JOIN LATERAL (SELECT * FROM outbox WHERE outbox.request_id = p.request_id OFFSET 0) o
WHERE p.cancelled
ORDER BY p.shard_id, p.seq
