-- name: declare
INSERT INTO retention (namespace, type, message, keep, keep_keys)
SELECT %(namespace)s, d.type, d.message, make_interval(secs => d.keep), make_interval(secs => d.keep_keys)
FROM unnest(%(types)s::text[], %(messages)s::text[], %(keeps)s::double precision[],
            %(keeps_of_keys)s::double precision[]) AS d (type, message, keep, keep_keys)
ORDER BY d.type, d.message
ON CONFLICT (namespace, type, message) DO UPDATE
SET keep = excluded.keep, keep_keys = excluded.keep_keys
WHERE (retention.keep, retention.keep_keys) IS DISTINCT FROM (excluded.keep, excluded.keep_keys)

-- name: read_terms
-- What is kept for how long in a group, in seconds, and the database's clock.
SELECT extract(epoch FROM clock_timestamp())::double precision, array(
    SELECT DISTINCT extract(epoch FROM term)::double precision
    FROM entity_type t
    JOIN retention r ON r.namespace = t.namespace AND r.type = t.type
    CROSS JOIN LATERAL (VALUES (r.keep), (r.keep_keys)) AS terms (term)
    WHERE t.namespace = %(namespace)b AND t.group_id = %(group_id)b
)

-- name: purge
-- One page of the outbox along its primary key: no other index is needed, and none knows a reply's time. A row
-- with a primary key stays until the key's time has come, without reply and envelope: the unique index that
-- refuses a repeat is then the same one at every moment. Unanswered requests are left alone, and so are those
-- with a dead letter that nobody has handled. A row whose reply is another one than the page saw (requeued
-- meanwhile) is left alone, too.
WITH page AS MATERIALIZED (
    SELECT o.request_id, o.shard_id, o.type, o.message, o.replied_at, o.key_digest IS NOT NULL AS keyed,
           octet_length(o.reply) = 0 AS emptied, o.ctid AS place
    FROM outbox o
    WHERE o.request_id > %(after)b AND o.request_id <= %(until)b
    ORDER BY o.request_id
    LIMIT %(page)b
), due AS MATERIALIZED (
    SELECT page.request_id, page.place, page.replied_at, NOT page.keyed OR page.replied_at <= now() - term.keep_keys AS whole
    FROM page
    LEFT JOIN retention r ON r.namespace = %(namespace)b AND r.type = page.type AND r.message = page.message
    CROSS JOIN LATERAL (
        SELECT coalesce(r.keep, make_interval(secs => %(keep)b)) AS keep,
               coalesce(r.keep_keys, make_interval(secs => %(keep_keys)b)) AS keep_keys
    ) term
    WHERE page.shard_id >= %(first_shard)b AND page.shard_id < %(first_shard)b + %(shards)b
      AND page.replied_at <= now() - CASE WHEN page.emptied THEN term.keep_keys ELSE term.keep END
      AND NOT EXISTS (SELECT FROM dead_letter d
                      WHERE d.request_id = page.request_id AND d.requeued_at IS NULL OFFSET 0)
), removed AS (
    DELETE FROM outbox o
    USING due
    WHERE due.whole AND o.ctid = due.place AND o.replied_at = due.replied_at AND o.reply IS NOT NULL
    RETURNING o.request_id
), emptied AS (
    UPDATE outbox o
    SET reply = '', envelope = ''
    FROM due
    WHERE NOT due.whole AND o.ctid = due.place AND o.replied_at = due.replied_at AND o.reply IS NOT NULL
    RETURNING o.request_id
), chunks AS (
    DELETE FROM chunk c
    USING (SELECT request_id FROM removed UNION ALL SELECT request_id FROM emptied) gone
    CROSS JOIN LATERAL (SELECT ctid AS place FROM chunk WHERE chunk.request_id = gone.request_id OFFSET 0) found
    WHERE c.ctid = found.place
), letters AS (
    DELETE FROM dead_letter d
    USING due
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM dead_letter WHERE dead_letter.request_id = due.request_id OFFSET 0
    ) found
    WHERE d.ctid = found.place
), signals AS (
    DELETE FROM signal s
    USING due
    CROSS JOIN LATERAL (SELECT ctid AS place FROM signal WHERE signal.request_id = due.request_id OFFSET 0) found
    WHERE s.ctid = found.place
)
SELECT coalesce(max(page.request_id), %(after)b), count(*), (SELECT count(*) FROM removed),
       (SELECT count(*) FROM emptied)
FROM page
