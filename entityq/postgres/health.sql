-- name: record_health
-- Returns a row when this changed it. A runner without a heartbeat is of a release that does not know how to
-- answer: it is not judged.
UPDATE runner
SET healthy = %(healthy)b
WHERE incarnation = %(incarnation)b AND healthy <> %(healthy)b AND heartbeat IS NOT NULL
RETURNING incarnation
