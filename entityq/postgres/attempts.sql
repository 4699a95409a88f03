-- name: record_attempt
-- Before a process ends that a turn of this request has blocked. No row: it was answered meanwhile.
UPDATE pending SET attempts = attempts + 1
WHERE shard_id = %(shard_id)b AND seq = %(seq)b AND request_id = %(request_id)b
RETURNING attempts
