-- A change of a shard group's number of shards, or of a type's group. Its session holds the advisory lock
-- (class of 'reshard', 0) and, from the second step on, every shard lock of the groups concerned.

-- name: own_reshard
SELECT pg_try_advisory_lock(%(class)s::integer, 0)

-- name: be_patient
SELECT set_config('lock_timeout', '5s', false)

-- name: insert_group
INSERT INTO shard_group (namespace, name, shards, first_shard, wrap)
SELECT c.namespace, %(name)s, c.default_shards, given.first_free,
       mod(18446744073709551616::numeric, c.default_shards)
FROM cluster c, (
    SELECT coalesce(max(first_shard + shards), 0) AS first_free
    FROM (SELECT first_shard, shards FROM shard_group
          UNION ALL SELECT first_shard, shards FROM reshard_group) AS known
) AS given
WHERE c.namespace = %(namespace)s

-- name: insert_shards
INSERT INTO shard (shard_id, group_id, number)
SELECT g.first_shard + n, g.group_id, n
FROM shard_group g
CROSS JOIN LATERAL generate_series(0, g.shards - 1) AS n
WHERE g.namespace = %(namespace)s AND g.name = %(name)s

-- name: insert_reshard
INSERT INTO reshard (namespace, group_name, shards, type, phase)
VALUES (%(namespace)s, %(group)s, %(shards)s, %(type)s, 'closing')

-- name: plan_groups
-- New ids, above all that there ever were: the newest range of ids is always somebody's present one.
WITH wanted AS (
    SELECT g.group_id, w.shards, sum(w.shards) OVER (ORDER BY g.group_id) - w.shards AS before
    FROM unnest(%(names)s::text[], %(counts)s::integer[]) AS w (name, shards)
    JOIN shard_group g ON g.namespace = %(namespace)s AND g.name = w.name
), given AS (
    SELECT max(first_shard + shards) AS first_free
    FROM (SELECT first_shard, shards FROM shard_group
          UNION ALL SELECT first_shard, shards FROM reshard_group) AS known
)
INSERT INTO reshard_group (group_id, shards, first_shard, wrap)
SELECT wanted.group_id, wanted.shards, given.first_free + wanted.before,
       mod(18446744073709551616::numeric, wanted.shards)
FROM wanted, given

-- name: close_groups
UPDATE shard_group g SET open = false
FROM reshard_group r
WHERE g.group_id = r.group_id AND g.namespace = %(namespace)s

-- name: undo
-- Only while nothing is moved.
WITH undone AS (
    DELETE FROM reshard WHERE namespace = %(namespace)s AND phase = 'closing' RETURNING namespace
), opened AS (
    UPDATE shard_group g SET open = true FROM undone WHERE g.namespace = undone.namespace RETURNING g.group_id
), forgotten AS (
    DELETE FROM reshard_group r USING opened WHERE r.group_id = opened.group_id
)
SELECT 1, pg_notify(%(channel)s, '') FROM undone

-- name: read_moves
SELECT g.name, g.group_id, g.first_shard, g.shards, r.first_shard, r.shards, r.wrap
FROM shard_group g
JOIN reshard_group r ON r.group_id = g.group_id
WHERE g.namespace = %(namespace)s
ORDER BY g.group_id

-- name: read_inserting
-- Transactions that have written to the outbox, or may: a statement takes its table's lock before its
-- snapshot, so whoever has none yet will see that the group is closed.
SELECT l.virtualtransaction, l.pid, coalesce(a.application_name, '')
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = 'outbox'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())

-- name: take_shards
-- Those that this session does not hold yet, each tried once: locks stack.
SELECT w.class, w.number
FROM unnest(%(classes)s::integer[], %(numbers)s::integer[]) AS w (class, number)
WHERE pg_try_advisory_lock(w.class, w.number)

-- name: read_holders
SELECT l.pid, coalesce(r.name, nullif(a.application_name, ''), 'unknown'), count(*)
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN runner r ON r.pid = l.pid AND r.backend_start = a.backend_start
WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.mode = 'ExclusiveLock'
  AND l.classid = ANY (%(unsigned_classes)s::bigint[]::oid[]) AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY 1, 2
ORDER BY 1

-- name: begin_moving
-- A transactional turn of an owner that is gone can still be at its commit, on a connection of its own: this waits
-- for it, and whoever is not that far finds another epoch.
WITH fenced AS (
    UPDATE shard s SET epoch = s.epoch + 1
    FROM shard_group g
    JOIN reshard_group r ON r.group_id = g.group_id
    WHERE g.namespace = %(namespace)s AND s.shard_id >= g.first_shard AND s.shard_id < g.first_shard + g.shards
)
UPDATE reshard SET phase = 'moving' WHERE namespace = %(namespace)s

-- name: page_of_entities
SELECT shard_id, type, entity_id
FROM entity
WHERE shard_id >= %(first)s AND shard_id < %(end)s
  AND (shard_id, type, entity_id) > (%(after_shard)s, %(after_type)s, %(after_id)s)
ORDER BY shard_id, type, entity_id
LIMIT %(page)s

-- name: move_entities
UPDATE entity e SET shard_id = m.new_shard
FROM unnest(%(shard_ids)s::integer[], %(types)s::text[], %(entity_ids)s::text[], %(new_shards)s::integer[])
     AS m (shard_id, type, entity_id, new_shard)
WHERE e.shard_id = m.shard_id AND e.type = m.type AND e.entity_id = m.entity_id

-- name: move_pending
WITH page AS MATERIALIZED (
    SELECT p.shard_id, p.seq, p.request_id, p.entity_hash
    FROM pending p
    WHERE p.shard_id >= %(first)s AND p.shard_id < %(end)s
      AND (p.shard_id, p.seq) > (%(after_shard)s, %(after_seq)s)
    ORDER BY p.shard_id, p.seq
    LIMIT %(page)s
), moved AS (
    UPDATE pending p
    SET shard_id = t.first_shard + mod(mod(page.entity_hash, t.shards)
            + CASE WHEN page.entity_hash < 0 THEN t.wrap + t.shards ELSE 0 END, t.shards)
    FROM page
    JOIN outbox o ON o.request_id = page.request_id
    JOIN unnest(%(types)s::text[], %(new_firsts)s::integer[], %(new_counts)s::integer[], %(wraps)s::integer[])
         AS t (type, first_shard, shards, wrap) ON t.type = o.type
    WHERE p.shard_id = page.shard_id AND p.seq = page.seq
    RETURNING p.request_id
)
SELECT shard_id, seq, (SELECT count(*) FROM moved)
FROM page
ORDER BY shard_id DESC, seq DESC
LIMIT 1

-- name: move_timers
WITH page AS MATERIALIZED (
    SELECT t.shard_id, t.due_at, t.request_id, t.entity_hash
    FROM timer t
    WHERE t.shard_id >= %(first)s AND t.shard_id < %(end)s
      AND (t.shard_id, t.due_at, t.request_id) > (%(after_shard)s, %(after_due)s::timestamptz, %(after_id)s)
    ORDER BY t.shard_id, t.due_at, t.request_id
    LIMIT %(page)s
), moved AS (
    UPDATE timer
    SET shard_id = t.first_shard + mod(mod(page.entity_hash, t.shards)
            + CASE WHEN page.entity_hash < 0 THEN t.wrap + t.shards ELSE 0 END, t.shards)
    FROM page
    JOIN outbox o ON o.request_id = page.request_id
    JOIN unnest(%(types)s::text[], %(new_firsts)s::integer[], %(new_counts)s::integer[], %(wraps)s::integer[])
         AS t (type, first_shard, shards, wrap) ON t.type = o.type
    WHERE timer.shard_id = page.shard_id AND timer.due_at = page.due_at AND timer.request_id = page.request_id
    RETURNING timer.request_id
)
-- As text: Python has no infinity among its times.
SELECT shard_id, due_at::text, request_id, (SELECT count(*) FROM moved)
FROM page
ORDER BY page.shard_id DESC, page.due_at DESC, page.request_id DESC
LIMIT 1

-- name: move_outbox
-- Every row of the schema is looked at: the outbox has no index that a shard id is in.
WITH page AS MATERIALIZED (
    SELECT o.request_id, o.shard_id, o.entity_hash, o.type
    FROM outbox o
    WHERE o.request_id > %(after)s
    ORDER BY o.request_id
    LIMIT %(page)s
), moved AS (
    UPDATE outbox o
    SET shard_id = t.first_shard + mod(mod(page.entity_hash, t.shards)
            + CASE WHEN page.entity_hash < 0 THEN t.wrap + t.shards ELSE 0 END, t.shards)
    FROM page
    JOIN unnest(%(types)s::text[], %(new_firsts)s::integer[], %(new_counts)s::integer[], %(wraps)s::integer[])
         AS t (type, first_shard, shards, wrap) ON t.type = page.type
    WHERE o.request_id = page.request_id AND EXISTS (
        SELECT 1 FROM unnest(%(firsts)s::integer[], %(ends)s::integer[]) AS old (first, "end")
        WHERE page.shard_id >= old.first AND page.shard_id < old."end")
    RETURNING o.request_id
)
SELECT max(request_id), (SELECT count(*) FROM moved) FROM page

-- name: left_behind
SELECT 'entity' FROM entity e, unnest(%(firsts)s::integer[], %(ends)s::integer[]) AS old (first, "end")
WHERE e.shard_id >= old.first AND e.shard_id < old."end"
UNION
SELECT 'pending' FROM pending p, unnest(%(firsts)s::integer[], %(ends)s::integer[]) AS old (first, "end")
WHERE p.shard_id >= old.first AND p.shard_id < old."end"
UNION
SELECT 'timer' FROM timer t, unnest(%(firsts)s::integer[], %(ends)s::integer[]) AS old (first, "end")
WHERE t.shard_id >= old.first AND t.shard_id < old."end"
UNION
SELECT 'outbox' FROM outbox o, unnest(%(firsts)s::integer[], %(ends)s::integer[]) AS old (first, "end")
WHERE o.shard_id >= old.first AND o.shard_id < old."end"

-- name: read_epoch
SELECT coalesce(max(s.epoch), 0)
FROM shard s
JOIN reshard_group r ON r.group_id = s.group_id
JOIN shard_group g ON g.group_id = s.group_id
WHERE g.namespace = %(namespace)s

-- name: delete_shards
DELETE FROM shard s
USING reshard_group r, shard_group g
WHERE s.group_id = r.group_id AND g.group_id = r.group_id AND g.namespace = %(namespace)s

-- name: create_shards
-- The epochs start above all old ones.
INSERT INTO shard (shard_id, group_id, number, epoch)
SELECT r.first_shard + n, r.group_id, n, %(epoch)s
FROM reshard_group r
JOIN shard_group g ON g.group_id = r.group_id AND g.namespace = %(namespace)s
CROSS JOIN LATERAL generate_series(0, r.shards - 1) AS n

-- name: move_type
UPDATE entity_type t SET group_id = g.group_id
FROM shard_group g
WHERE t.namespace = %(namespace)s AND t.type = %(type)s
  AND g.namespace = %(namespace)s AND g.name = %(group)s

-- name: open_groups
UPDATE shard_group g
SET shards = r.shards, first_shard = r.first_shard, wrap = r.wrap, open = true
FROM reshard_group r
WHERE g.group_id = r.group_id AND g.namespace = %(namespace)s

-- name: forget_groups
DELETE FROM reshard_group r USING shard_group g
WHERE g.group_id = r.group_id AND g.namespace = %(namespace)s

-- name: forget_reshard
DELETE FROM reshard WHERE namespace = %(namespace)s
