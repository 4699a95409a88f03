-- The lease session's own statements. Lock keys are (class, number): for a shard, class is
-- lock_class(schema, namespace, 'shard', group); for a runner's number, lock_class(schema, namespace,
-- 'runner', ''). pg_locks shows the class as an unsigned oid, so it is passed as bigint where it is compared.

-- name: end_ghost
-- The backend of the same runner's earlier session can still hold the locks. Pids are used again;
-- pid and backend_start together are not.
SELECT pg_terminate_backend(pid, %(wait_ms)b::bigint)
FROM pg_stat_activity
WHERE pid = %(pid)b AND backend_start = %(backend_start)b

-- name: begin_incarnation
SELECT i.incarnation, a.pid, a.backend_start,
       set_config('application_name', 'entityq:' || i.incarnation, false)
FROM nextval('incarnation') AS i (incarnation), pg_stat_activity a
WHERE a.pid = pg_backend_pid()

-- name: take_number
-- LIMIT stops the scan at the first number that was free: the filter locks one row at a time, and no sort
-- or join stands between it and the limit.
SELECT mod(%(start)b::integer + i, %(numbers)b::integer)
FROM generate_series(0, %(numbers)b::integer - 1) AS i
WHERE pg_try_advisory_lock(%(class)b::integer, mod(%(start)b::integer + i, %(numbers)b::integer))
LIMIT 1

-- name: join_cluster
-- Runs after the number is locked, so a row without its lock is a dead runner's: whoever sees the row looks
-- at pg_locks later than its runner took the lock. A row with our own number is a dead one's too, whatever
-- its pid.
WITH alive AS MATERIALIZED (
    SELECT l.objid::bigint AS number, l.pid
    FROM pg_locks l
    WHERE l.locktype = 'advisory'
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.classid = (%(unsigned_class)b::bigint)::oid AND l.objsubid = 2
      AND l.granted AND l.mode = 'ExclusiveLock'
), dead AS (
    SELECT r.incarnation
    FROM runner r
    WHERE r.namespace = %(namespace)b
      AND (r.number = %(number)b
           OR NOT EXISTS (SELECT 1 FROM alive WHERE alive.number = r.number AND alive.pid = r.pid))
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM runner USING dead WHERE runner.incarnation = dead.incarnation
)
-- The first heartbeat is written with the row, and so before the first lock of a shard.
INSERT INTO runner (incarnation, namespace, number, name, place, host, pid, backend_start, groups, types, weight,
                    heartbeat)
VALUES (%(incarnation)b, %(namespace)b, %(number)b, %(name)b, %(place)b, %(host)b, %(pid)b, %(backend_start)b,
        %(groups)b::text[], %(types)b::text[], %(weight)b, 0)

-- name: acquire_shards
-- Lock, then epoch, in one round trip. `locked` is materialized so that every lock is tried exactly once
-- (locks stack), whatever the planner does with the rest. The snapshot is older than the locks, so the row
-- that it shows can lack the last owner's increment: FOR NO KEY UPDATE and UPDATE both go on to the newest
-- committed version of the row (READ COMMITTED), and the last owner committed its increment before it could
-- unlock. A row that somebody else has locked is skipped, because this connection must not wait: its shard
-- comes back without an epoch, and the caller unlocks it; so does a shard whose group is closed, and one that
-- is gone: `entityq reshard` gives a group's new shards new ids.
-- `previous`: who had the shard and did not leave it in order. Its process may have been ended by a turn, so the
-- oldest request of each entity among the first of the shard has lost an attempt: see runner/attempts.py for
-- which of them count. A row that somebody writes is skipped, too.
WITH locked AS MATERIALIZED (
    SELECT w.shard_id, pg_try_advisory_lock(w.class, w.number) AS mine
    FROM unnest(%(shard_ids)b::integer[], %(classes)b::integer[], %(numbers)b::integer[])
         AS w (shard_id, class, number)
), free AS MATERIALIZED (
    SELECT s.shard_id, s.incarnation AS previous
    FROM locked
    JOIN shard s ON s.shard_id = locked.shard_id
    JOIN shard_group g ON g.group_id = s.group_id
    WHERE locked.mine AND g.open
    FOR NO KEY UPDATE OF s SKIP LOCKED
), taken AS (
    UPDATE shard s
    SET epoch = s.epoch + 1, incarnation = %(incarnation)b, acquired_at = now()
    FROM free
    WHERE s.shard_id = free.shard_id
    RETURNING s.shard_id, s.epoch, free.previous
), lost AS MATERIALIZED (
    SELECT head.shard_id, head.seq
    FROM taken
    CROSS JOIN LATERAL (
        SELECT DISTINCT ON (first.entity_hash) first.*
        FROM (
            SELECT shard_id, seq, entity_hash, attempts, resume_at, started FROM pending
            WHERE pending.shard_id = taken.shard_id
            ORDER BY pending.seq
            LIMIT %(heads)b
        ) first
        ORDER BY first.entity_hash, first.seq
    ) head
    WHERE taken.previous IS NOT NULL
      AND (head.resume_at IS NULL OR head.resume_at <= clock_timestamp())
      AND (head.attempts < %(suspect)b::smallint OR head.started = taken.previous)
), culpable AS MATERIALIZED (
    SELECT p.shard_id, p.seq
    FROM lost
    JOIN pending p ON p.shard_id = lost.shard_id AND p.seq = lost.seq
    FOR UPDATE OF p SKIP LOCKED
), counted AS (
    UPDATE pending p
    SET attempts = least(p.attempts::integer + 1, 32767)::smallint
    FROM culpable c
    WHERE p.shard_id = c.shard_id AND p.seq = c.seq
)
SELECT locked.shard_id, taken.epoch
FROM locked LEFT JOIN taken ON taken.shard_id = locked.shard_id
WHERE locked.mine

-- name: end_overdue_turns
-- Of shards whose lock is ours and whose row was locked: by a transactional turn of an owner before us, which is at
-- its commit, on a connection of its own. That takes milliseconds, unless its process is frozen.
SELECT w.shard_id, a.pid, pg_terminate_backend(a.pid)
FROM unnest(%(shard_ids)b::integer[]) AS w (shard_id)
JOIN pg_stat_activity a
    ON a.application_name LIKE 'entityq:%% commit ' || %(cluster)b::bigint || ' ' || w.shard_id
WHERE a.datname = current_database()
  AND a.state_change < clock_timestamp() - make_interval(secs => %(overdue)b)

-- name: unlock_shards
SELECT w.shard_id, pg_advisory_unlock(w.class, w.number)
FROM unnest(%(shard_ids)b::integer[], %(classes)b::integer[], %(numbers)b::integer[])
     AS w (shard_id, class, number)

-- name: read_held
SELECT l.classid::bigint, l.objid::bigint
FROM pg_locks l
WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.objsubid = 2 AND l.granted AND l.mode = 'ExclusiveLock'

-- name: leave_shards
-- In order: no turn of theirs runs any more. Committed before the unlock, because the next owner's statement
-- skips a row that somebody writes.
UPDATE shard SET incarnation = NULL
WHERE shard_id = ANY (%(shard_ids)b::integer[]) AND incarnation = %(incarnation)b

-- name: leave_membership
UPDATE runner SET draining = true WHERE incarnation = %(incarnation)b

-- name: remove_runner
DELETE FROM runner WHERE incarnation = %(incarnation)b
