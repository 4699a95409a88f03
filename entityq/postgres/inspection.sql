-- What people ask about one entity or one request. Nothing here is on a hot path, and nothing waits for it.

-- name: read_place
-- Where an entity lives. A runner whose session holds the shard's lock is its owner, whatever the rows say; a
-- class is an unsigned oid in pg_locks.
SELECT place.name, place.shard_id - place.first_shard, place.shard_id, place.open, s.epoch, s.acquired_at
FROM (
    SELECT g.name, g.open, g.first_shard, g.first_shard + mod(mod(%(entity_hash)s::bigint, g.shards)
            + CASE WHEN %(entity_hash)s::bigint < 0 THEN g.wrap + g.shards ELSE 0 END, g.shards) AS shard_id
    FROM entity_type t
    JOIN shard_group g ON g.group_id = t.group_id
    WHERE t.namespace = %(namespace)s AND t.type = %(type)s
) place
LEFT JOIN shard s ON s.shard_id = place.shard_id

-- name: read_owner
SELECT r.incarnation, r.name
FROM pg_locks l
JOIN pg_stat_activity a ON a.pid = l.pid
JOIN runner r ON r.pid = l.pid AND r.backend_start = a.backend_start AND r.namespace = %(namespace)s
WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.mode = 'ExclusiveLock'
  AND l.classid = %(unsigned_class)s::bigint::oid AND l.objid = %(number)s::bigint::oid
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())

-- name: read_entity
SELECT version, state_version, outcome, state, updated_at
FROM entity
WHERE shard_id = %(shard_id)s AND type = %(type)s AND entity_id = %(entity_id)s

-- name: count_waiting
-- Accepted, not answered, and their time has come. The second number is of those that wait for a signal.
SELECT count(*), count(*) FILTER (WHERE p.suspended)
FROM pending p
JOIN outbox o ON o.request_id = p.request_id
WHERE p.shard_id = %(shard_id)s AND p.entity_hash = %(entity_hash)s
  AND o.type = %(type)s AND o.entity_id = %(entity_id)s

-- name: read_timers
-- Infinity: no time at all, which Python has no value for.
SELECT t.request_id, o.message, nullif(t.due_at, 'infinity'), t.suspended
FROM timer t
JOIN outbox o ON o.request_id = t.request_id
WHERE t.shard_id = %(shard_id)s AND t.entity_hash = %(entity_hash)s
  AND o.type = %(type)s AND o.entity_id = %(entity_id)s
ORDER BY t.due_at, t.request_id
LIMIT %(at_most)s

-- name: read_signals_waited_for
SELECT s.name
FROM pending p
JOIN outbox o ON o.request_id = p.request_id
JOIN signal s ON s.request_id = p.request_id
WHERE p.shard_id = %(shard_id)s AND p.entity_hash = %(entity_hash)s AND p.suspended AND s.waiting
  AND o.type = %(type)s AND o.entity_id = %(entity_id)s AND s.signalled_at IS NULL
ORDER BY p.seq, s.name

-- name: count_dead_letters_of_entity
SELECT count(*) FROM dead_letter
WHERE namespace = %(namespace)s AND type = %(type)s AND entity_id = %(entity_id)s AND requeued_at IS NULL

-- name: read_last_requests
-- Of every type with this id the newest come first; the hash leaves few others.
SELECT request_id, message, created_at, replied_at, reply
FROM outbox
WHERE entity_hash = %(entity_hash)s AND shard_id = %(shard_id)s
  AND type = %(type)s AND entity_id = %(entity_id)s
ORDER BY entity_hash, seq DESC
LIMIT %(at_most)s

-- name: read_request
-- While `entityq reshard` moves a group's rows, each is in the old or in the new range of its shard ids.
SELECT o.type, o.entity_id, o.message, g.name, o.shard_id - place.first_shard, o.seq, o.created_at,
       o.envelope, o.reply, o.replied_at, o.epoch, coalesce(p.attempts, t.attempts, 0),
       coalesce(p.retries, t.retries, 0), coalesce(p.failing_since, t.failing_since), nullif(p.resume_at, 'infinity'),
       coalesce(p.suspended, t.suspended, false), coalesce(p.cancelled, false), nullif(t.due_at, 'infinity'), t.request_id IS NOT NULL
FROM outbox o
JOIN (SELECT group_id, first_shard, shards FROM shard_group
      UNION ALL SELECT group_id, first_shard, shards FROM reshard_group) AS place
  ON o.shard_id >= place.first_shard AND o.shard_id < place.first_shard + place.shards
JOIN shard_group g ON g.group_id = place.group_id
LEFT JOIN pending p ON p.shard_id = o.shard_id AND p.request_id = o.request_id AND p.entity_hash = o.entity_hash
LEFT JOIN timer t ON t.request_id = o.request_id
WHERE o.request_id = %(request_id)s AND g.namespace = %(namespace)s

-- name: read_dead_letters
SELECT died_at, attempts, error_type, error, requeued_at, requeued_by
FROM dead_letter
WHERE request_id = %(request_id)s
ORDER BY died_at

-- name: read_signals
SELECT name, waiting, signalled_at
FROM signal
WHERE request_id = %(request_id)s
ORDER BY name
