-- name: store_chunks
-- Of many streams in one statement, on the session that holds the shards' locks: whoever has lost them cannot write.
-- No row of a request: it has been answered meanwhile.
WITH told AS (
    SELECT * FROM unnest(
        %(shard_ids)b::integer[], %(seqs)b::bigint[], %(request_ids)b::bigint[], %(numbers)b::integer[],
        %(values)b::bytea[]
    ) AS t (shard_id, seq, request_id, number, value)
), found AS MATERIALIZED (
    SELECT told.request_id, told.number, told.value
    FROM told
    CROSS JOIN LATERAL (
        SELECT FROM pending
        WHERE pending.shard_id = told.shard_id AND pending.seq = told.seq AND pending.request_id = told.request_id
        OFFSET 0
    ) p
), stored AS (
    INSERT INTO chunk (request_id, number, value)
    SELECT request_id, number, value FROM found
    RETURNING request_id
)
SELECT DISTINCT request_id FROM stored

-- name: read_progress
-- How far a stream has come: its last chunk, and the last one that a caller has acknowledged.
SELECT last.number, last.value, acknowledged.number
FROM (SELECT %(request_id)b::bigint AS request_id) asked
LEFT JOIN LATERAL (
    SELECT number, value FROM chunk
    WHERE chunk.request_id = asked.request_id
    ORDER BY chunk.request_id DESC, chunk.number DESC
    LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT number FROM chunk
    WHERE chunk.request_id = asked.request_id AND chunk.acknowledged
    ORDER BY chunk.request_id DESC, chunk.number DESC
    LIMIT 1
) acknowledged ON true

-- name: read_chunks
-- A page of a stream, at most so many chunks, and bytes (but for one).
SELECT number, value
FROM (
    SELECT page.*, sum(octet_length(page.value)) OVER (ORDER BY page.number) - octet_length(page.value) AS before
    FROM (
        SELECT number, value FROM chunk
        WHERE request_id = %(request_id)s AND number > %(after)s
        ORDER BY request_id, number
        LIMIT %(page)s
    ) page
) counted
WHERE before < %(page_bytes)s
ORDER BY number

-- name: acknowledge_chunk
-- The runners are told; which of them it is for, they know.
WITH marked AS (
    UPDATE chunk
    SET acknowledged = true
    WHERE request_id = %(request_id)s AND number = %(number)s AND NOT acknowledged
    RETURNING request_id, number
)
SELECT pg_notify(%(channel)s, request_id || ':' || number)::text FROM marked
