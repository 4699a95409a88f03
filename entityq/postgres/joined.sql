-- Statements for connections that are not entityq's own, in transactions of their owners. Nothing is assumed about
-- them: table names are qualified ({schema} stands for the quoted schema, whatever the search_path is), parameters
-- are cast in the SQL (drivers have different ideas of them), nothing is prepared. A colon would be a parameter for
-- SQLAlchemy: CAST(x AS y) instead.

-- name: insert_joined
-- Like insert_requests (outbox.sql), and: all of the given requests go in or, where one of their groups is closed
-- or full or not known, none of them, and the result says why. Who was not stored has met a known request. The
-- notification is part of the transaction: nothing of it is heard before the commit, or after a rollback. What is
-- not due yet goes to timer; its shard's owner is told of it, because the commit may come when it is due.
-- The first of the two bounds is an estimate, cheap and a little late; near the limit it is counted.
WITH given AS (
    SELECT r.*
    FROM unnest(
        CAST(%(request_ids)s AS bigint[]), CAST(%(types)s AS text[]), CAST(%(entity_ids)s AS text[]),
        CAST(%(entity_hashes)s AS bigint[]), CAST(%(messages)s AS text[]), CAST(%(key_digests)s AS bytea[]),
        CAST(%(payload_hashes)s AS bytea[]), CAST(%(envelopes)s AS bytea[]),
        CAST(CAST(%(due_ats)s AS text[]) AS timestamptz[]), CAST(%(delays)s AS double precision[])
    ) WITH ORDINALITY AS r (
        request_id, type, entity_id, entity_hash, message, key_digest, payload_hash, envelope, due, delay, position
    )
), place AS MATERIALIZED (
    SELECT t.type, g.name, g.open, g.shards, g.first_shard, g.wrap,
           coalesce(pg_stat_get_live_tuples(CAST('{schema}.pending' AS regclass)), 0)
               < CAST(%(max_pending)s AS bigint) / 2
           OR (SELECT count(*) FROM (
                   SELECT 1 FROM {schema}.pending p
                   WHERE p.shard_id >= g.first_shard AND p.shard_id < g.first_shard + g.shards
                   LIMIT CAST(%(max_pending)s AS bigint)
               ) counted) < CAST(%(max_pending)s AS bigint) AS room
    FROM {schema}.entity_type t
    JOIN {schema}.shard_group g ON g.group_id = t.group_id
    WHERE t.namespace = CAST(%(namespace)s AS text) AND t.type = ANY (CAST(%(types)s AS text[]))
), placed AS MATERIALIZED (
    SELECT given.*,
           CASE WHEN given.due > statement_timestamp() THEN given.due
                WHEN given.delay > 0 THEN statement_timestamp() + given.delay * interval '1 second' END AS due_at,
           place.name AS shard_group, place.open, place.room,
           place.first_shard + mod(mod(given.entity_hash, place.shards)
               + CASE WHEN given.entity_hash < 0 THEN place.wrap + place.shards ELSE 0 END, place.shards) AS shard_id
    FROM given
    LEFT JOIN place ON place.type = given.type
), numbered AS MATERIALIZED (
    SELECT nextval('{schema}.outbox_seq') AS seq, sent.*
    FROM (
        SELECT * FROM placed
        WHERE (SELECT bool_and(coalesce(open AND room, false)) FROM placed)
        ORDER BY position
    ) sent
), inserted AS (
    INSERT INTO {schema}.outbox (request_id, shard_id, seq, entity_hash, type, entity_id, message,
                                 key_digest, payload_hash, envelope)
    SELECT request_id, shard_id, seq, entity_hash, type, entity_id, message, key_digest, payload_hash, envelope
    FROM numbered
    ORDER BY key_digest, request_id
    ON CONFLICT DO NOTHING
    RETURNING request_id, shard_id, seq, entity_hash
), queued AS (
    INSERT INTO {schema}.pending (shard_id, seq, request_id, entity_hash)
    SELECT shard_id, seq, request_id, entity_hash FROM inserted
    WHERE (seq IN (SELECT seq FROM numbered WHERE due_at IS NOT NULL)) IS NOT TRUE
), timed AS (
    INSERT INTO {schema}.timer (shard_id, due_at, request_id, entity_hash)
    SELECT shard_id, due_at, request_id, entity_hash FROM numbered
    WHERE due_at IS NOT NULL AND (seq IN (SELECT seq FROM inserted)) IS TRUE
    RETURNING request_id, shard_id, due_at
), told AS MATERIALIZED (
    SELECT request_id, CAST(pg_notify(CAST(%(channel)s AS text), CAST(shard_id AS text)) AS text) AS told
    FROM inserted
    WHERE (request_id IN (SELECT request_id FROM timed)) IS NOT TRUE
    UNION ALL
    SELECT request_id, CAST(pg_notify(
        CAST(%(timers_channel)s AS text),
        CONCAT(shard_id, CHR(58), CAST(extract(epoch FROM due_at) * 1000 AS bigint))) AS text)
    FROM timed
)
SELECT placed.request_id, told.told IS NOT NULL AS stored, placed.shard_group, placed.open, placed.room,
       current_setting('transaction_isolation') AS isolation
FROM placed
LEFT JOIN told ON told.request_id = placed.request_id

-- name: read_known
-- What the requests that were not stored have met. A statement of its own: where the transaction reads what is
-- committed, it has a fresh snapshot; where it has one snapshot for all, the insert has failed with a
-- serialization error if it met what the snapshot does not show.
SELECT request_id, shard_id, seq, type, entity_id, message, key_digest, payload_hash,
       CASE WHEN octet_length(reply) = 0 THEN reply END AS expired
FROM {schema}.outbox
WHERE request_id = ANY (CAST(%(request_ids)s AS bigint[]))
UNION ALL
SELECT request_id, shard_id, seq, type, entity_id, message, key_digest, payload_hash,
       CASE WHEN octet_length(reply) = 0 THEN reply END AS expired
FROM {schema}.outbox
WHERE key_digest = ANY (CAST(%(key_digests)s AS bytea[]))
  AND request_id <> ALL (CAST(%(request_ids)s AS bigint[]))

-- name: hold_groups
-- In a transaction with one snapshot for all its statements, which may be older than a reshard: it fails with a
-- serialization error where the groups have changed since, and keeps them from being closed before it ends.
-- (Elsewhere `entityq reshard` waits for whoever holds the insert's lock on the outbox, and nothing more is needed.)
SELECT g.group_id
FROM {schema}.shard_group g
WHERE g.group_id IN (
    SELECT t.group_id FROM {schema}.entity_type t
    WHERE t.namespace = CAST(%(namespace)s AS text) AND t.type = ANY (CAST(%(types)s AS text[]))
)
ORDER BY g.group_id
FOR SHARE OF g
