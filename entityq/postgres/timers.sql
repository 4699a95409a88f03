-- name: fire_timers
-- What is due in these shards becomes pending, as a new request would: in the order of the times, with new seqs.
WITH due AS MATERIALIZED (
    SELECT t.*
    FROM unnest(%(shard_ids)b::integer[]) AS s (shard_id)
    CROSS JOIN LATERAL (
        SELECT shard_id, due_at, request_id FROM timer
        WHERE timer.shard_id = s.shard_id AND timer.due_at <= clock_timestamp()
        ORDER BY timer.due_at
        LIMIT %(page)b
    ) t
), fired AS (
    DELETE FROM timer t
    USING due
    WHERE t.shard_id = due.shard_id AND t.due_at = due.due_at AND t.request_id = due.request_id
    RETURNING t.*
), numbered AS MATERIALIZED (
    SELECT nextval('outbox_seq') AS seq, f.* FROM (SELECT * FROM fired ORDER BY due_at, request_id) f
), queued AS (
    INSERT INTO pending (shard_id, seq, request_id, entity_hash, attempts, retries, failing_since, suspended)
    SELECT shard_id, seq, request_id, entity_hash, attempts, retries, failing_since, suspended FROM numbered
)
SELECT DISTINCT shard_id FROM fired

-- name: next_timer
-- Seconds until the next one of these shards is due; no row: there is none.
SELECT extract(epoch FROM min(t.due_at) - clock_timestamp())::float8
FROM unnest(%(shard_ids)b::integer[]) AS s (shard_id)
CROSS JOIN LATERAL (
    SELECT due_at FROM timer
    WHERE timer.shard_id = s.shard_id AND timer.due_at < 'infinity'
    ORDER BY timer.due_at
    LIMIT 1
) t
HAVING min(t.due_at) IS NOT NULL
