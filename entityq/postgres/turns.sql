-- name: load_entities
SELECT e.shard_id, e.type, e.entity_id, e.version, e.state, e.state_version
FROM unnest(%(shard_ids)b::integer[], %(types)b::text[], %(entity_ids)b::text[]) AS a (shard_id, type, entity_id)
CROSS JOIN LATERAL (
    SELECT * FROM entity
    WHERE entity.shard_id = a.shard_id AND entity.type = a.type AND entity.entity_id = a.entity_id
    OFFSET 0
) e

-- name: commit_turns
-- The commit of many turns in one statement, on the session that holds the shards' advisory locks. Each
-- turn is applied wholly or not at all:
--   found     its row in pending exists (unanswered) and its entity has the expected version,
--   conflict  a request that it sends meets a known key with another payload: refused, nothing is written,
--   closed    a request that it sends is for a group that `entityq reshard` has closed: nothing is written, yet,
--   then      reply, state (a new one is a plain insert), outgoing requests and dead letters are written.
-- All parts see one snapshot. Where a concurrent writer came between the snapshot and a write, a count in
-- the last SELECT differs, and the division by zero there undoes the whole statement; the committer then
-- halves the batch until the turn is alone. The same holds for a plain insert that meets a row. A row of pending
-- that was written in between (somebody asks for a cancel) is not deleted: the committer tries its turn again.
-- Rows are looked up once, each by its key (LATERAL with OFFSET 0 leaves the planner no other order: whatever the
-- statistics say, it never goes through a table and looks for a turn for each row), and then written by their
-- place (ctid). IN and NOT IN on the CTEs, in these forms, are hashed; with hash joins off an ordinary join of two
-- CTEs is a nested loop over both.
WITH turn AS (
    SELECT * FROM unnest(
        %(positions)b::integer[], %(request_ids)b::bigint[], %(shard_ids)b::integer[], %(seqs)b::bigint[],
        %(replies)b::bytea[], %(outcomes)b::smallint[], %(epochs)b::bigint[], %(types)b::text[],
        %(entity_ids)b::text[], %(entity_hashes)b::bigint[], %(versions)b::bigint[], %(states)b::bytea[], %(forgets)b::boolean[],
        %(state_versions)b::integer[]
    ) AS t (position, request_id, shard_id, seq, reply, outcome, epoch, type, entity_id, entity_hash,
            version, state, forget, state_version)
), sent AS (
    SELECT r.position, r.request_id, r.type, r.entity_id, r.entity_hash, r.message, r.key_digest, r.payload_hash,
           r.envelope, r.place,
           CASE WHEN (%(sent_due_ats)b::timestamptz[])[r.place::integer] > statement_timestamp()
                THEN (%(sent_due_ats)b::timestamptz[])[r.place::integer]
                WHEN (%(sent_delays)b::float8[])[r.place::integer] > 0
                THEN statement_timestamp() + make_interval(secs => (%(sent_delays)b::float8[])[r.place::integer])
           END AS due_at,
           g.open, g.first_shard + mod(mod(r.entity_hash, g.shards)
            + CASE WHEN r.entity_hash < 0 THEN g.wrap + g.shards ELSE 0 END, g.shards) AS shard_id
    FROM unnest(
        %(sent_positions)b::integer[], %(sent_request_ids)b::bigint[], %(sent_types)b::text[],
        %(sent_entity_ids)b::text[], %(sent_entity_hashes)b::bigint[], %(sent_messages)b::text[],
        %(sent_key_digests)b::bytea[], %(sent_payload_hashes)b::bytea[], %(sent_envelopes)b::bytea[]
    ) WITH ORDINALITY AS r (
        position, request_id, type, entity_id, entity_hash, message, key_digest, payload_hash, envelope, place
    )
    JOIN entity_type t ON t.namespace = %(namespace)b AND t.type = r.type
    JOIN shard_group g ON g.group_id = t.group_id
    ORDER BY r.place
), known AS MATERIALIZED (
    SELECT sent.position, sent.place, sent.request_id, o.request_id AS first_request_id,
           o.payload_hash = sent.payload_hash AS same
    FROM sent
    CROSS JOIN LATERAL (SELECT * FROM outbox WHERE outbox.key_digest = sent.key_digest OFFSET 0) o
), found AS MATERIALIZED (
    SELECT turn.*, p.place AS pending_place, o.place AS outbox_place, e.place AS entity_place
    FROM turn
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM pending
        WHERE pending.shard_id = turn.shard_id AND pending.seq = turn.seq
        OFFSET 0
    ) p
    LEFT JOIN LATERAL (SELECT ctid AS place FROM outbox WHERE outbox.request_id = turn.request_id OFFSET 0) o ON true
    LEFT JOIN LATERAL (
        SELECT ctid AS place, version FROM entity
        WHERE turn.version IS NOT NULL
          AND entity.shard_id = turn.shard_id AND entity.type = turn.type AND entity.entity_id = turn.entity_id
        OFFSET 0
    ) e ON true
    WHERE turn.position NOT IN (SELECT position FROM known WHERE NOT same)
      AND turn.position NOT IN (SELECT position FROM sent WHERE NOT open)
      AND (turn.version IS NULL OR turn.version = coalesce(e.version, 0))
), answered AS (
    DELETE FROM pending p
    USING found
    WHERE p.ctid = found.pending_place
    RETURNING found.*
), replied AS (
    UPDATE outbox o
    SET reply = answered.reply, replied_at = now(), epoch = answered.epoch
    FROM answered
    WHERE o.ctid = answered.outbox_place AND o.reply IS NULL
    RETURNING o.request_id
), created AS (
    INSERT INTO entity (shard_id, type, entity_id, version, epoch, outcome, state, state_version)
    SELECT shard_id, type, entity_id, 1, epoch, outcome, state, state_version
    FROM answered WHERE version = 0 AND NOT forget
    RETURNING entity_id
), changed AS (
    UPDATE entity e
    SET version = e.version + 1, epoch = answered.epoch, outcome = answered.outcome,
        state = coalesce(answered.state, e.state), updated_at = now(),
        state_version = CASE WHEN answered.state IS NULL THEN e.state_version ELSE answered.state_version END
    FROM answered
    WHERE answered.version > 0 AND NOT answered.forget
      AND e.ctid = answered.entity_place AND e.version = answered.version
    RETURNING e.entity_id
), removed AS (
    DELETE FROM entity e
    USING answered
    WHERE answered.version > 0 AND answered.forget
      AND e.ctid = answered.entity_place AND e.version = answered.version
    RETURNING e.entity_id
), forgettable AS MATERIALIZED (
    -- The forgetting turn's own request is kept, so that a caller who missed the reply still finds it.
    SELECT o.*
    FROM answered
    CROSS JOIN LATERAL (
        SELECT request_id, ctid AS place FROM outbox
        WHERE outbox.entity_hash = answered.entity_hash AND outbox.seq < answered.seq
          AND outbox.shard_id = answered.shard_id AND outbox.type = answered.type
          AND outbox.entity_id = answered.entity_id
          -- Also what has never been due: it would bring the entity back. What failed and is parked will be answered.
          AND (outbox.reply IS NOT NULL OR EXISTS (
                SELECT FROM timer t
                WHERE t.request_id = outbox.request_id AND t.attempts = 0 AND t.retries = 0 AND NOT t.suspended
                OFFSET 0))
        OFFSET 0
    ) o
    WHERE answered.forget
), forgotten AS (
    DELETE FROM outbox o USING forgettable f WHERE o.ctid = f.place RETURNING o.request_id
), untimed AS (
    DELETE FROM timer t
    USING forgotten f
    CROSS JOIN LATERAL (SELECT ctid AS place FROM timer WHERE timer.request_id = f.request_id OFFSET 0) found
    WHERE t.ctid = found.place
), unsignalled AS (
    DELETE FROM signal s
    USING forgotten f
    CROSS JOIN LATERAL (SELECT ctid AS place FROM signal WHERE signal.request_id = f.request_id OFFSET 0) found
    WHERE s.ctid = found.place
), unchunked AS (
    DELETE FROM chunk c
    USING forgotten f
    CROSS JOIN LATERAL (SELECT ctid AS place FROM chunk WHERE chunk.request_id = f.request_id OFFSET 0) found
    WHERE c.ctid = found.place
), unburied AS (
    DELETE FROM dead_letter d
    USING forgotten f
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM dead_letter WHERE dead_letter.request_id = f.request_id OFFSET 0
    ) found
    WHERE d.ctid = found.place
), numbered AS MATERIALIZED (
    SELECT nextval('outbox_seq') AS seq, s.* FROM (
        SELECT sent.* FROM sent
        WHERE (sent.position IN (SELECT position FROM answered)) IS TRUE
          AND sent.place NOT IN (SELECT place FROM known)
        ORDER BY sent.place
    ) s
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
    -- Not due yet (see insert_requests).
    INSERT INTO timer (shard_id, due_at, request_id, entity_hash)
    SELECT shard_id, due_at, request_id, entity_hash FROM numbered
    WHERE due_at IS NOT NULL AND (seq IN (SELECT seq FROM inserted)) IS TRUE
    RETURNING shard_id, due_at, request_id
), buried AS (
    INSERT INTO dead_letter (request_id, namespace, type, entity_id, message, attempts, error_type, error, cause)
    SELECT request_id, %(namespace)b, type, entity_id, message, attempts, error_type, error, cause::jsonb
    FROM unnest(
        %(dead_positions)b::integer[], %(dead_request_ids)b::bigint[], %(dead_types)b::text[],
        %(dead_entity_ids)b::text[], %(dead_messages)b::text[], %(dead_attempts)b::integer[],
        %(dead_error_types)b::text[], %(dead_errors)b::text[], %(dead_causes)b::text[]
    ) AS d (position, request_id, type, entity_id, message, attempts, error_type, error, cause)
    WHERE (position IN (SELECT position FROM answered)) IS TRUE
), whole AS (
    SELECT 1 / CASE WHEN
        (SELECT count(*) FROM replied) = (SELECT count(*) FROM answered)
        AND (SELECT count(*) FROM created) + (SELECT count(*) FROM changed) + (SELECT count(*) FROM removed)
            = (SELECT count(*) FROM answered WHERE version > 0 OR (version = 0 AND NOT forget))
        AND (SELECT count(*) FROM inserted) = (SELECT count(*) FROM numbered)
        AND (SELECT count(*) FROM sent) = cardinality(%(sent_positions)b::integer[])
    THEN 1 ELSE 0 END AS check
)
SELECT 'applied' AS kind, answered.position, NULL::bigint AS request_id, NULL::integer AS shard_id,
       NULL::bigint AS seq
FROM answered, whole WHERE whole.check = 1
UNION ALL
SELECT 'sent', NULL, inserted.request_id, inserted.shard_id, inserted.seq FROM inserted
WHERE (inserted.request_id IN (SELECT request_id FROM timed)) IS NOT TRUE
UNION ALL
SELECT 'told', length(pg_notify(%(timers_channel)b, soon.told)::text), NULL, NULL, NULL
FROM (
    SELECT shard_id || ':' || (extract(epoch FROM min(due_at)) * 1000)::bigint AS told FROM timed
    WHERE due_at < statement_timestamp() + make_interval(secs => %(told_within)b)
    GROUP BY shard_id
) soon
UNION ALL
SELECT 'conflict', known.position, known.first_request_id, NULL, NULL FROM known WHERE NOT known.same
UNION ALL
SELECT DISTINCT 'closed', sent.position, NULL::bigint, NULL::integer, NULL::bigint FROM sent WHERE NOT sent.open
