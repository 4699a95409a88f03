-- name: fire_timers
-- What is due in these shards becomes pending, as a new request would: with new seqs, in the order of the times
-- and, where these are equal, of sending. Runs on the session that holds the shards' locks: whoever has lost them
-- fires nothing, and whoever gets them finds what was fired in pending. The rows are those of read_pending.
--   each, page, most_bytes   bounds: rows of a shard, of all shards, and bytes of envelopes
-- One row more, the last one, without a shard id: this clock, when the next of these timers is due, both as
-- seconds since 1970, and whether more is due already.
WITH owned AS (
    SELECT shard_id FROM unnest(%(shard_ids)b::integer[]) AS s (shard_id)
), due AS MATERIALIZED (
    SELECT t.shard_id, t.due_at, t.request_id
    FROM owned
    CROSS JOIN LATERAL (
        SELECT shard_id, due_at, request_id FROM timer
        WHERE timer.shard_id = owned.shard_id AND timer.due_at <= statement_timestamp()
        ORDER BY timer.due_at, timer.request_id
        LIMIT %(each)b
    ) t
    ORDER BY t.due_at, t.request_id
    LIMIT %(page)b
), chosen AS MATERIALIZED (
    -- A row that somebody has locked (to cancel it) keeps nobody else waiting. One without an unanswered request
    -- (its type is null) goes, and nothing comes of it.
    SELECT * FROM (
        SELECT t.*, o.seq AS sent_seq, o.place AS outbox_place, o.type, o.entity_id, o.envelope,
               coalesce(sum(octet_length(o.envelope)) OVER (ORDER BY t.due_at, o.seq, t.request_id), 0)
                   - coalesce(octet_length(o.envelope), 0) AS before
        FROM due
        CROSS JOIN LATERAL (
            SELECT *, ctid AS place FROM timer
            WHERE timer.shard_id = due.shard_id AND timer.due_at = due.due_at AND timer.request_id = due.request_id
            FOR UPDATE SKIP LOCKED
        ) t
        LEFT JOIN LATERAL (
            SELECT seq, type, entity_id, envelope, ctid AS place FROM outbox
            WHERE outbox.request_id = t.request_id AND outbox.reply IS NULL
            OFFSET 0
        ) o ON true
    ) bounded
    WHERE before < %(most_bytes)b
), fired AS (
    DELETE FROM timer t
    USING chosen c
    WHERE t.ctid = c.place
    RETURNING t.request_id
), numbered AS MATERIALIZED (
    SELECT nextval('outbox_seq') AS seq, c.*
    FROM (
        SELECT * FROM chosen
        WHERE type IS NOT NULL AND (request_id IN (SELECT request_id FROM fired)) IS TRUE
        ORDER BY due_at, sent_seq
    ) c
), queued AS (
    INSERT INTO pending (shard_id, seq, request_id, entity_hash, attempts, retries, failing_since, suspended)
    SELECT shard_id, seq, request_id, entity_hash, attempts, retries, failing_since, suspended FROM numbered
), renumbered AS (
    UPDATE outbox o SET seq = numbered.seq FROM numbered WHERE o.ctid = numbered.outbox_place
)
SELECT shard_id, seq, request_id, type, entity_id, envelope, attempts, retries,
       extract(epoch FROM clock_timestamp() - failing_since)::float8 AS failing, 0::float8 AS wait, suspended,
       NULL::float8 AS now, NULL::float8 AS next, NULL::boolean AS more
FROM numbered
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       extract(epoch FROM statement_timestamp())::float8,
       (SELECT extract(epoch FROM min(t.due_at))::float8
        FROM owned
        CROSS JOIN LATERAL (
            SELECT due_at FROM timer
            WHERE timer.shard_id = owned.shard_id
              AND timer.due_at > statement_timestamp() AND timer.due_at < 'infinity'
            ORDER BY timer.due_at
            LIMIT 1
        ) t),
       (SELECT count(*) FROM due) >= %(page)b
       OR EXISTS (SELECT FROM due GROUP BY shard_id HAVING count(*) >= %(each)b)
       OR EXISTS (SELECT FROM due WHERE (request_id IN (SELECT request_id FROM fired)) IS NOT TRUE)
