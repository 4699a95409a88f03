-- name: live_runners
-- A row is a claim; its runner is alive only while the session that wrote it holds the exclusive lock on
-- its number. The class is an unsigned oid in pg_locks.
WITH alive AS MATERIALIZED (
    SELECT l.objid::bigint AS number, l.pid
    FROM pg_locks l
    WHERE l.locktype = 'advisory'
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.classid = (%(unsigned_class)b::bigint)::oid AND l.objsubid = 2
      AND l.granted AND l.mode = 'ExclusiveLock'
)
SELECT r.incarnation, r.number, r.name, r.pid, r.groups, r.types, r.weight, r.draining,
       ARRAY(SELECT g.name
             FROM entity_type t JOIN shard_group g ON g.group_id = t.group_id
             WHERE t.namespace = r.namespace AND t.type = ANY (r.types)),
       r.host, r.healthy, r.place
FROM runner r JOIN alive ON alive.number = r.number AND alive.pid = r.pid
WHERE r.namespace = %(namespace)b
ORDER BY r.incarnation
