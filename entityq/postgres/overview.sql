-- What people ask about a cluster. Nothing here is on a hot path, and nothing here waits for one.

-- name: read_joined
SELECT incarnation, joined_at FROM runner WHERE namespace = %(namespace)s

-- name: read_held
-- The shard locks of every session, by group: the locks are the ownership, not the rows of shard. A class is
-- an unsigned oid in pg_locks.
SELECT g.name, l.pid, count(*),
       (SELECT a.application_name FROM pg_stat_activity a WHERE a.pid = l.pid)
FROM unnest(%(names)s::text[], %(unsigned_classes)s::bigint[]) AS g (name, class)
JOIN pg_locks l ON l.classid = g.class::oid
WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.mode = 'ExclusiveLock'
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY g.name, l.pid

-- name: read_backlog
-- The oldest request is looked for at the head of each shard only, so that a long backlog costs one count.
SELECT g.name, g.shards, g.open, backlog.pending, extract(epoch FROM now() - backlog.oldest)::double precision,
       (SELECT count(*) FROM timer t WHERE t.shard_id >= g.first_shard AND t.shard_id < g.first_shard + g.shards)
FROM shard_group g
CROSS JOIN LATERAL (
    SELECT (SELECT count(*) FROM pending p
            WHERE p.shard_id >= g.first_shard AND p.shard_id < g.first_shard + g.shards) AS pending,
           min(head.created_at) AS oldest
    FROM generate_series(g.first_shard, g.first_shard + g.shards - 1) AS s (shard_id)
    CROSS JOIN LATERAL (
        SELECT o.created_at
        FROM pending p
        JOIN outbox o ON o.request_id = p.request_id
        WHERE p.shard_id = s.shard_id
        ORDER BY p.seq
        LIMIT 1
    ) head
) backlog
WHERE g.namespace = %(namespace)s
ORDER BY g.name

-- name: count_dead_letters
-- Those that nobody has handled.
SELECT count(*) FROM dead_letter WHERE namespace = %(namespace)s AND requeued_at IS NULL

-- name: read_namespaces
SELECT namespace FROM cluster ORDER BY namespace

-- name: find_request
-- While `entityq reshard` moves a group's rows, each is in the old or in the new range of its shard ids.
SELECT o.request_id, o.type, o.entity_id, o.message, o.created_at, o.reply, o.replied_at,
       g.name, o.shard_id - place.first_shard
FROM outbox o
JOIN (SELECT group_id, first_shard, shards FROM shard_group
      UNION ALL SELECT group_id, first_shard, shards FROM reshard_group) AS place
  ON o.shard_id >= place.first_shard AND o.shard_id < place.first_shard + place.shards
JOIN shard_group g ON g.group_id = place.group_id
WHERE o.request_id = %(request_id)s AND g.namespace = %(namespace)s

-- name: read_reshard
SELECT group_name, shards, type, phase, started_at FROM reshard WHERE namespace = %(namespace)s
