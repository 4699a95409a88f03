-- name: insert_requests
-- One statement for many concurrent sends. The shard is computed from the cluster's facts, never from
-- the client's configuration. `seq` is drawn in the order of sending (the inner ORDER BY keeps the
-- planner from moving nextval below the sort); rows are inserted sorted by key, so that two batches
-- that share keys cannot deadlock. Rows that are not returned met a conflict (see read_conflicts), or their
-- group is closed (see closed_groups).
-- What is not due yet, by this clock, goes to timer; the owner of its shard is told only of what is due sooner than
-- its next look. (The arrays of times are empty where no request has one: that costs an ordinary batch next to
-- nothing.)
WITH sent AS (
    SELECT r.request_id, r.type, r.entity_id, r.entity_hash, r.message, r.key_digest, r.payload_hash, r.envelope,
           CASE WHEN (%(due_ats)b::timestamptz[])[r.position::integer] > statement_timestamp()
                THEN (%(due_ats)b::timestamptz[])[r.position::integer]
                WHEN (%(delays)b::float8[])[r.position::integer] > 0
                THEN statement_timestamp() + make_interval(secs => (%(delays)b::float8[])[r.position::integer])
           END AS due_at,
           g.first_shard + mod(mod(r.entity_hash, g.shards)
            + CASE WHEN r.entity_hash < 0 THEN g.wrap + g.shards ELSE 0 END, g.shards) AS shard_id
    FROM unnest(
        %(request_ids)b::bigint[], %(types)b::text[], %(entity_ids)b::text[], %(entity_hashes)b::bigint[],
        %(messages)b::text[], %(key_digests)b::bytea[], %(payload_hashes)b::bytea[], %(envelopes)b::bytea[]
    ) WITH ORDINALITY AS r (
        request_id, type, entity_id, entity_hash, message, key_digest, payload_hash, envelope, position
    )
    JOIN entity_type t ON t.namespace = %(namespace)b AND t.type = r.type
    JOIN shard_group g ON g.group_id = t.group_id AND g.open
    ORDER BY r.position
), numbered AS MATERIALIZED (
    SELECT nextval('outbox_seq') AS seq, sent.* FROM sent
), inserted AS (
    INSERT INTO outbox (request_id, shard_id, seq, entity_hash, type, entity_id, message,
                        key_digest, payload_hash, envelope)
    SELECT request_id, shard_id, seq, entity_hash, type, entity_id, message, key_digest, payload_hash, envelope
    FROM numbered
    ORDER BY key_digest, request_id
    ON CONFLICT DO NOTHING
    RETURNING request_id, shard_id, seq, entity_hash
), queued AS (
    INSERT INTO pending (shard_id, seq, request_id, entity_hash)
    SELECT shard_id, seq, request_id, entity_hash FROM inserted
    WHERE (seq IN (SELECT seq FROM numbered WHERE due_at IS NOT NULL)) IS NOT TRUE
), timed AS (
    INSERT INTO timer (shard_id, due_at, request_id, entity_hash)
    SELECT shard_id, due_at, request_id, entity_hash FROM numbered
    WHERE due_at IS NOT NULL AND (seq IN (SELECT seq FROM inserted)) IS TRUE
    RETURNING shard_id, due_at, request_id
)
SELECT request_id, shard_id, seq, (request_id IN (SELECT request_id FROM timed)) IS TRUE AS timed FROM inserted
UNION ALL
SELECT NULL, NULL, length(pg_notify(%(timers_channel)b, soon.told)::text), NULL
FROM (
    SELECT shard_id || ':' || (extract(epoch FROM min(due_at)) * 1000)::bigint AS told FROM timed
    WHERE due_at < statement_timestamp() + make_interval(secs => %(told_within)b)
    GROUP BY shard_id
) soon

-- name: read_conflicts
-- A second statement, and so a fresh snapshot: it sees the rows that insert_requests met. Both request
-- ids and key digests are asked for, because either can have been the conflict.
SELECT o.request_id, o.shard_id, o.seq, o.type, o.entity_id, o.message, o.key_digest, o.payload_hash, o.reply
FROM unnest(%(request_ids)b::bigint[]) AS asked (request_id)
CROSS JOIN LATERAL (SELECT * FROM outbox WHERE outbox.request_id = asked.request_id OFFSET 0) o
UNION
SELECT o.request_id, o.shard_id, o.seq, o.type, o.entity_id, o.message, o.key_digest, o.payload_hash, o.reply
FROM unnest(%(key_digests)b::bytea[]) AS asked (key_digest)
CROSS JOIN LATERAL (SELECT * FROM outbox WHERE outbox.key_digest = asked.key_digest OFFSET 0) o

-- name: closed_groups
SELECT t.type, g.name
FROM entity_type t
JOIN shard_group g ON g.group_id = t.group_id
WHERE t.namespace = %(namespace)b AND t.type = ANY (%(types)b::text[]) AND NOT g.open

-- name: read_replies
SELECT request_id, reply FROM outbox WHERE request_id = ANY (%(request_ids)b::bigint[])

-- name: read_position
-- The last seq drawn so far. Read before the pages of a pass: whoever holds a later seq committed, or
-- will commit, all its earlier ones in its own order.
SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_seq

-- name: read_pending
-- Times are seconds from now, by this clock: that of a runner may be another. ('infinity' minus something is
-- an error before PostgreSQL 17.)
-- One page of the unanswered requests of each of these shards, each in outbox order. Whatever would follow the
-- first `most_bytes` of envelopes is left out; the length of a large one is known without reading it.
-- (OFFSET 0: a lookup by key, also where the statistics say that the outbox has but a row.)
SELECT shard_id, seq, request_id, type, entity_id, envelope, attempts, retries, failing, wait, suspended, cancelled
FROM (
    SELECT s.place, s.shard_id, p.seq, o.request_id, o.type, o.entity_id, o.envelope, p.attempts, p.retries,
           p.suspended, p.cancelled,
           extract(epoch FROM clock_timestamp() - p.failing_since)::float8 AS failing,
           CASE WHEN isfinite(p.resume_at) THEN extract(epoch FROM p.resume_at - clock_timestamp())::float8
                ELSE extract(epoch FROM p.resume_at)::float8 END AS wait,
           sum(octet_length(o.envelope)) OVER (ORDER BY s.place, p.seq) - octet_length(o.envelope) AS before
    FROM unnest(%(shard_ids)b::integer[], %(afters)b::bigint[], %(positions)b::bigint[])
         WITH ORDINALITY AS s (shard_id, after, position, place)
    CROSS JOIN LATERAL (
        SELECT seq, request_id, attempts, retries, failing_since, resume_at, suspended, cancelled FROM pending
        WHERE pending.shard_id = s.shard_id AND pending.seq > s.after AND pending.seq <= s.position
        ORDER BY pending.seq
        LIMIT %(page)b
    ) p
    CROSS JOIN LATERAL (SELECT * FROM outbox WHERE outbox.request_id = p.request_id OFFSET 0) o
) found
WHERE before < %(most_bytes)b
ORDER BY place, seq

-- name: read_pending_of_entity
-- The same for one entity, always from its oldest one: one statement is one snapshot, in which whoever
-- sees a request of a sender sees that sender's earlier ones too.
SELECT seq, request_id, type, entity_id, envelope, attempts, retries, failing, wait, suspended, cancelled
FROM (
    SELECT p.seq, o.request_id, o.type, o.entity_id, o.envelope, p.attempts, p.retries,
           p.suspended, p.cancelled,
           extract(epoch FROM clock_timestamp() - p.failing_since)::float8 AS failing,
           CASE WHEN isfinite(p.resume_at) THEN extract(epoch FROM p.resume_at - clock_timestamp())::float8
                ELSE extract(epoch FROM p.resume_at)::float8 END AS wait,
           sum(octet_length(o.envelope)) OVER (ORDER BY p.seq) - octet_length(o.envelope) AS before
    FROM pending p
    CROSS JOIN LATERAL (SELECT * FROM outbox WHERE outbox.request_id = p.request_id OFFSET 0) o
    WHERE p.shard_id = %(shard_id)b AND p.entity_hash = %(entity_hash)b
      AND o.type = %(type)b AND o.entity_id = %(entity_id)b
    ORDER BY p.seq
    LIMIT %(page)b
) found
WHERE before < %(most_bytes)b
ORDER BY seq

-- name: sweep
-- Per owned shard, its oldest unanswered requests with after < seq <= position: what an earlier sweep already
-- could see.
SELECT s.shard_id, p.seq, p.request_id, p.entity_hash, p.cancelled
FROM unnest(%(shard_ids)b::integer[], %(afters)b::bigint[]) AS s (shard_id, after)
CROSS JOIN LATERAL (
    SELECT seq, request_id, entity_hash, cancelled FROM pending
    WHERE pending.shard_id = s.shard_id AND pending.seq > s.after AND pending.seq <= %(position)b
    ORDER BY pending.seq
    LIMIT %(page)b
) p

-- name: estimate_pending
-- Cheap, a little late, over all namespaces of the schema: only when it is high is count_pending worth its price.
SELECT coalesce(pg_stat_get_live_tuples('pending'::regclass), 0)

-- name: count_pending
SELECT count(*) FROM (
    SELECT 1
    FROM shard_group g
    JOIN pending p ON p.shard_id >= g.first_shard AND p.shard_id < g.first_shard + g.shards
    WHERE g.namespace = %(namespace)b AND g.name = %(shard_group)b
    LIMIT %(at_most)b
) counted

-- name: entity_status
-- While the group is closed, nobody can say in which shard the entity is. Of its pending requests the oldest one
-- decides: what is behind one that waits for a signal waits with it.
SELECT e.outcome, e.updated_at, head.request_id IS NOT NULL AS processing,
       CASE WHEN NOT place.open THEN place.name END AS closed, waited.request_id, waited.name
FROM (
    SELECT g.name, g.open, g.first_shard + mod(mod(%(entity_hash)b::bigint, g.shards)
            + CASE WHEN %(entity_hash)b::bigint < 0 THEN g.wrap + g.shards ELSE 0 END, g.shards) AS shard_id
    FROM entity_type t
    JOIN shard_group g ON g.group_id = t.group_id
    WHERE t.namespace = %(namespace)b AND t.type = %(type)b
) place
LEFT JOIN entity e ON e.shard_id = place.shard_id AND e.type = %(type)b AND e.entity_id = %(entity_id)b
LEFT JOIN LATERAL (
    SELECT p.request_id, p.suspended AND p.resume_at > clock_timestamp() AS suspended
    FROM pending p
    CROSS JOIN LATERAL (SELECT * FROM outbox WHERE outbox.request_id = p.request_id OFFSET 0) o
    WHERE p.shard_id = place.shard_id AND p.entity_hash = %(entity_hash)b
      AND o.type = %(type)b AND o.entity_id = %(entity_id)b
    ORDER BY p.seq
    LIMIT 1
) head ON true
LEFT JOIN LATERAL (
    SELECT t.request_id
    FROM timer t
    CROSS JOIN LATERAL (SELECT * FROM outbox WHERE outbox.request_id = t.request_id OFFSET 0) o
    WHERE t.shard_id = place.shard_id AND t.entity_hash = %(entity_hash)b AND t.suspended
      AND o.type = %(type)b AND o.entity_id = %(entity_id)b
    ORDER BY o.seq
    LIMIT 1
) parked ON head.request_id IS NULL
LEFT JOIN LATERAL (
    SELECT s.request_id, s.name
    FROM signal s
    WHERE s.request_id = CASE WHEN head.suspended THEN head.request_id ELSE parked.request_id END
      AND s.waiting AND s.signalled_at IS NULL
    LIMIT 1
) waited ON true

-- name: notify_unpublished
SELECT pg_notify(%(channel)b, %(payload)b)

-- name: begin
BEGIN

-- name: commit
COMMIT

-- name: rollback
ROLLBACK

-- name: set_lock_timeout
SELECT set_config('lock_timeout', %(lock_timeout)b, false),
       set_config('statement_timeout', %(statement_timeout)b, false)
