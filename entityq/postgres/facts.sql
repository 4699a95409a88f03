-- name: insert_cluster
INSERT INTO cluster (namespace, format_version, default_shards)
VALUES (%(namespace)s, %(format_version)s, %(shards)s)
ON CONFLICT (namespace) DO NOTHING

-- name: read_cluster
SELECT cluster_id, format_version, default_shards, signal_key FROM cluster WHERE namespace = %(namespace)s

-- name: read_groups
SELECT name, group_id, shards, first_shard, open FROM shard_group WHERE namespace = %(namespace)s ORDER BY name

-- name: read_types
SELECT t.type, g.name
FROM entity_type t
JOIN shard_group g ON g.group_id = t.group_id
WHERE t.namespace = %(namespace)s
ORDER BY t.type

-- name: wait_longer
-- Registering is rare and short, and a client that starts must not fail because another one starts too.
SELECT set_config('lock_timeout', '5s', true)

-- name: lock_groups
-- Shard ids are one sequence for all namespaces of the schema: who reads its end must be alone. Readers go on.
LOCK TABLE shard_group IN SHARE ROW EXCLUSIVE MODE

-- name: insert_groups
-- 2^64 is computed as numeric: no integer type of Postgres holds it.
WITH taken AS (
    SELECT coalesce(max(first_shard + shards), 0) AS first_free
    FROM (SELECT first_shard, shards FROM shard_group
          UNION ALL SELECT first_shard, shards FROM reshard_group) AS given
)
INSERT INTO shard_group (namespace, name, shards, first_shard, wrap)
SELECT c.namespace, g.name, c.default_shards,
       taken.first_free + (g.place - 1) * c.default_shards,
       mod(18446744073709551616::numeric, c.default_shards)
FROM taken, cluster c, unnest(%(names)s::text[]) WITH ORDINALITY AS g (name, place)
WHERE c.namespace = %(namespace)s

-- name: insert_shards
INSERT INTO shard (shard_id, group_id, number)
SELECT g.first_shard + n, g.group_id, n
FROM shard_group g
CROSS JOIN LATERAL generate_series(0, g.shards - 1) AS n
WHERE g.namespace = %(namespace)s AND g.name = ANY (%(names)s::text[])

-- name: insert_types
INSERT INTO entity_type (namespace, type, group_id)
SELECT %(namespace)s, t.type, g.group_id
FROM unnest(%(types)s::text[], %(groups)s::text[]) AS t (type, name)
JOIN shard_group g ON g.namespace = %(namespace)s AND g.name = t.name

-- name: notify_changed
SELECT pg_notify(%(channel)s, '')
