-- The statements of a runner's heart, on a connection of its own. Classes of locks are unsigned, as pg_locks
-- shows them, except where one is locked.

-- name: begin_heartbeat
-- A heartbeat that a crash of the server forgets is harmless, because the crash ends every session, and all
-- locks with them: it must not wait for the disk, or for a standby.
SELECT set_config('synchronous_commit', 'off', false),
       set_config('application_name', 'entityq:' || %(incarnation)b::bigint || ' heart', false)

-- name: beat
-- Writes, then reads: `holder` is evaluated for the row that the update returned, so whoever finds itself
-- in it had its locks after its counter was raised. No rows: the runner's own row is gone.
-- Of a session, the row that it wrote itself: pids are used again, pid and backend_start together are not.
WITH beat AS MATERIALIZED (
    UPDATE runner SET heartbeat = coalesce(heartbeat, 0) + 1, lease_time = %(lease_time)b
    WHERE incarnation = %(incarnation)b
    RETURNING heartbeat
)
SELECT holder.pid, a.backend_start, coalesce(a.application_name, ''), holder.number, holder.shards,
       r.incarnation, coalesce(r.name, ''), coalesce(r.host, ''), coalesce(r.draining, false), r.heartbeat,
       r.lease_time
FROM beat
CROSS JOIN LATERAL (
    SELECT l.pid,
           min(l.objid::bigint) FILTER (WHERE l.classid = (%(runner_class)b::bigint)::oid) AS number,
           count(*) FILTER (WHERE l.classid <> (%(runner_class)b::bigint)::oid) AS shards
    FROM pg_locks l
    WHERE beat.heartbeat > 0
      AND l.locktype = 'advisory'
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.classid = ANY (%(classes)b::bigint[]::oid[])
      AND l.objsubid = 2 AND l.granted AND l.mode = 'ExclusiveLock'
    GROUP BY l.pid
) holder
LEFT JOIN LATERAL pg_stat_get_activity(holder.pid) a ON true
LEFT JOIN runner r
    ON r.namespace = %(namespace)b AND r.pid = holder.pid AND r.backend_start = a.backend_start

-- name: await_end
SELECT runner_ended(%(class)b::integer, %(number)b::integer, %(wait_ms)b::integer)

-- name: read_departed
-- Of a runner that left in order, the row is gone or says that it was draining.
SELECT name, host FROM runner WHERE incarnation = %(incarnation)b AND NOT draining

-- name: evict_runner
-- The row lock keeps the counter from moving until the backend was told to end: a runner that has beaten
-- successfully cannot be evicted for its silence before. Skipped where a beat, or another runner's eviction,
-- has the row. No rows: nothing was ended.
WITH silent AS MATERIALIZED (
    SELECT r.pid, r.backend_start
    FROM runner r
    WHERE r.incarnation = %(incarnation)b AND r.pid = %(pid)b AND r.backend_start = %(backend_start)b
      AND r.heartbeat = %(heartbeat)b
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT pg_terminate_backend(a.pid, %(wait_ms)b::bigint)
FROM silent
CROSS JOIN LATERAL pg_stat_get_activity(silent.pid) a
WHERE a.backend_start = silent.backend_start

-- name: end_turns
-- Of an incarnation whose lease session was ended: nothing of its transactional turns can commit, but their locks,
-- also those of the handlers' own statements, are in the way of the next owner.
SELECT count(pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE datname = current_database()
  AND (application_name = %(turns)b OR starts_with(application_name, %(commits)b))

-- name: evict_session
-- A runner's session without a row: it never joined, or its row was removed.
SELECT pg_terminate_backend(a.pid, %(wait_ms)b::bigint)
FROM pg_stat_get_activity(%(pid)b) a
WHERE a.backend_start = %(backend_start)b AND a.application_name = %(application)b
  AND NOT EXISTS (SELECT 1 FROM runner r WHERE r.pid = a.pid AND r.backend_start = a.backend_start)
