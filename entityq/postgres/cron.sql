-- name: look
-- This clock, and whether a request waits for its reply (false for one that is not kept any more).
SELECT clock_timestamp(),
       EXISTS (SELECT FROM outbox WHERE request_id = %(request_id)s AND reply IS NULL)

-- name: read_schedules
SELECT e.type, e.entity_id, e.state
FROM entity_type t
JOIN shard s ON s.group_id = t.group_id
JOIN entity e ON e.shard_id = s.shard_id AND e.type = t.type
WHERE t.namespace = %(namespace)s AND starts_with(t.type, %(prefix)s)
ORDER BY e.entity_id, e.type
