-- name: record_attempt
-- Before a process ends that a turn of this request has blocked. No row: it was answered meanwhile. Whoever takes
-- the shards over need not count anything: it is known whose fault it was.
WITH left_shards AS (
    UPDATE shard SET incarnation = NULL WHERE incarnation = %(incarnation)b
)
UPDATE pending SET attempts = attempts + 1
WHERE shard_id = %(shard_id)b AND seq = %(seq)b AND request_id = %(request_id)b
RETURNING attempts

-- name: set_back
-- Failed attempts, with the time of the next one. `retries` is what the runner took it to be: another number,
-- or no row, means that it read the row before somebody else wrote it. One that is cancelled is not tried
-- again. A parked request is no pending one until
-- it is due. Looked up once, then written by place, as in commit_turns.
WITH failed AS (
    SELECT * FROM unnest(
        %(shard_ids)b::integer[], %(seqs)b::bigint[], %(request_ids)b::bigint[], %(retries)b::smallint[],
        %(delays)b::float8[], %(lasted)b::float8[], %(parked)b::boolean[]
    ) AS f (shard_id, seq, request_id, retries, delay, lasted, parked)
), found AS MATERIALIZED (
    SELECT f.delay, f.lasted, f.parked, f.retries, p.place
    FROM failed f
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM pending
        WHERE pending.shard_id = f.shard_id AND pending.seq = f.seq AND pending.request_id = f.request_id
          AND pending.retries = f.retries AND NOT pending.cancelled
        OFFSET 0
    ) p
), kept AS (
    UPDATE pending p
    SET retries = least(p.retries::integer + 1, 32767)::smallint,
        failing_since = coalesce(p.failing_since, clock_timestamp() - make_interval(secs => f.lasted)),
        resume_at = clock_timestamp() + make_interval(secs => f.delay), started = NULL,
        suspended = false
    FROM found f
    WHERE NOT f.parked AND p.ctid = f.place AND p.retries = f.retries AND NOT p.cancelled
    RETURNING p.request_id
), moved AS (
    DELETE FROM pending p
    USING found f
    WHERE f.parked AND p.ctid = f.place AND p.retries = f.retries AND NOT p.cancelled
    RETURNING p.shard_id, p.request_id, p.entity_hash, p.attempts, p.retries, p.failing_since, f.delay, f.lasted
), parked AS (
    INSERT INTO timer (shard_id, due_at, request_id, entity_hash, attempts, retries, failing_since)
    SELECT shard_id, clock_timestamp() + make_interval(secs => delay), request_id, entity_hash, attempts,
           least(retries::integer + 1, 32767)::smallint,
           coalesce(failing_since, clock_timestamp() - make_interval(secs => lasted))
    FROM moved
)
SELECT request_id FROM kept
UNION ALL
SELECT request_id FROM moved

-- name: mark_started
-- Before the turn of a suspect. No row: it was answered meanwhile.
UPDATE pending SET started = %(incarnation)b
WHERE shard_id = %(shard_id)b AND seq = %(seq)b AND request_id = %(request_id)b
RETURNING request_id

-- name: clear_started
-- Its turn has ended, and not in a reply.
UPDATE pending SET started = NULL
WHERE shard_id = %(shard_id)b AND seq = %(seq)b AND request_id = %(request_id)b
