-- A limit of turns at once in the cluster is so many advisory locks. A session that ends, however it does, has
-- none of them any more.

-- name: try_permits
-- CASE, and not AND: what this session has would be locked once more.
SELECT n FROM generate_series(1, %(count)b::integer) AS s (n)
WHERE CASE WHEN n = ANY (%(held)b::integer[]) THEN false ELSE pg_try_advisory_lock(%(class)b::integer, n) END
LIMIT %(wanted)b::bigint

-- name: give_permits_back
SELECT n, pg_advisory_unlock(%(class)b::integer, n) FROM unnest(%(numbers)b::integer[]) AS s (n)

-- name: put_off
-- Tasks that wait for their limit where too many wait already: they come back as timers do, and nothing has been
-- tried. Looked up once, then written by place, as in commit_turns.
WITH late AS (
    SELECT * FROM unnest(
        %(shard_ids)b::integer[], %(seqs)b::bigint[], %(request_ids)b::bigint[], %(delays)b::float8[]
    ) AS l (shard_id, seq, request_id, delay)
), found AS MATERIALIZED (
    SELECT l.delay, p.place
    FROM late l
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM pending
        WHERE pending.shard_id = l.shard_id AND pending.seq = l.seq AND pending.request_id = l.request_id
          AND NOT pending.cancelled
        OFFSET 0
    ) p
), moved AS (
    DELETE FROM pending p
    USING found f
    WHERE p.ctid = f.place AND NOT p.cancelled
    RETURNING p.shard_id, p.request_id, p.entity_hash, p.attempts, p.retries, p.failing_since, f.delay
), parked AS (
    INSERT INTO timer (shard_id, due_at, request_id, entity_hash, attempts, retries, failing_since)
    SELECT shard_id, clock_timestamp() + make_interval(secs => delay), request_id, entity_hash, attempts,
           retries, failing_since
    FROM moved
)
SELECT request_id FROM moved
