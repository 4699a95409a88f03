-- name: list_dead_letters
SELECT request_id, died_at, type, entity_id, message, attempts, error_type, error, requeued_at, requeued_by
FROM dead_letter
WHERE namespace = %(namespace)s AND requeued_at IS NULL
  AND (%(type)s::text IS NULL OR type = %(type)s::text)
  AND (%(since)s::timestamptz IS NULL OR died_at >= %(since)s::timestamptz)
  AND (%(error)s::text IS NULL OR strpos(lower(error_type || ': ' || error), lower(%(error)s::text)) > 0)
ORDER BY died_at DESC, request_id DESC
LIMIT %(most)s

-- name: read_dead_letters
-- All of one request: it can have died more than once.
SELECT request_id, died_at, type, entity_id, message, attempts, error_type, error, requeued_at, requeued_by, cause
FROM dead_letter
WHERE namespace = %(namespace)s AND request_id = %(request_id)s
ORDER BY died_at DESC

-- name: requeue
-- The reply is taken back and the request is pending again, with a new seq and as if it had never been tried.
-- Rows are locked in the order of their ids, so that two operators cannot deadlock. A request whose outbox row is
-- gone, or whose group is closed, stays a dead letter.
WITH wanted AS MATERIALIZED (
    SELECT request_id, died_at
    FROM dead_letter
    WHERE namespace = %(namespace)s AND request_id = ANY (%(request_ids)s::bigint[]) AND requeued_at IS NULL
    ORDER BY request_id
    FOR UPDATE
), numbered AS MATERIALIZED (
    SELECT nextval('outbox_seq') AS seq, w.*
    FROM (
        SELECT wanted.request_id, wanted.died_at
        FROM wanted
        JOIN outbox o ON o.request_id = wanted.request_id
        JOIN entity_type t ON t.namespace = %(namespace)s AND t.type = o.type
        JOIN shard_group g ON g.group_id = t.group_id AND g.open
        WHERE octet_length(o.reply) > 0
        ORDER BY wanted.died_at, wanted.request_id
    ) w
), opened AS (
    UPDATE outbox o
    SET reply = NULL, replied_at = NULL, epoch = NULL, seq = n.seq
    FROM numbered n
    WHERE o.request_id = n.request_id AND octet_length(o.reply) > 0
    RETURNING o.request_id, o.shard_id, o.seq, o.entity_hash
), queued AS (
    INSERT INTO pending (shard_id, seq, request_id, entity_hash)
    SELECT shard_id, seq, request_id, entity_hash FROM opened
), waited AS (
    -- What it has waited for in vain may come now; the values that came stay.
    DELETE FROM signal s USING opened WHERE s.request_id = opened.request_id AND s.value IS NULL
), marked AS (
    UPDATE dead_letter d
    SET requeued_at = clock_timestamp(), requeued_by = %(by)s
    FROM opened, numbered n
    WHERE n.request_id = opened.request_id AND d.request_id = n.request_id AND d.died_at = n.died_at
)
SELECT request_id, shard_id FROM opened

-- name: discard
DELETE FROM dead_letter
WHERE namespace = %(namespace)s AND request_id = ANY (%(request_ids)s::bigint[]) AND requeued_at IS NULL
RETURNING request_id

-- name: why_not
-- What is in the way of those that were left out.
SELECT d.request_id, bool_or(d.requeued_at IS NULL) AS waits, bool_or(octet_length(o.reply) > 0) AS kept,
       min(g.name) FILTER (WHERE NOT g.open) AS closed
FROM dead_letter d
LEFT JOIN outbox o ON o.request_id = d.request_id
LEFT JOIN entity_type t ON t.namespace = d.namespace AND t.type = o.type
LEFT JOIN shard_group g ON g.group_id = t.group_id
WHERE d.namespace = %(namespace)s AND d.request_id = ANY (%(request_ids)s::bigint[])
GROUP BY d.request_id
