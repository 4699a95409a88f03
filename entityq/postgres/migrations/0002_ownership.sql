-- oldest code: 1
-- What peers watch about each other. `heartbeat` counts up while the runner's process runs; NULL: code
-- that has no heartbeat, and is not judged by it. `healthy` is what a peer found out, see runner_health.
ALTER TABLE runner
    ADD COLUMN host text NOT NULL DEFAULT '',
    ADD COLUMN heartbeat bigint,
    ADD COLUMN healthy boolean NOT NULL DEFAULT true;
ALTER TABLE runner SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);

-- How often a turn of the request ended its process instead of itself. In no index, so a HOT update.
ALTER TABLE pending ADD COLUMN attempts smallint NOT NULL DEFAULT 0;

-- Returns true as soon as nobody holds the exclusive lock of a runner's number, false after `wait_ms`.
-- A function, so that the timeout is no error line in the server's log; the shared lock is the
-- transaction's, so that it leaves none behind.
CREATE FUNCTION runner_ended(class integer, number integer, wait_ms integer) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', wait_ms || 'ms', true);
    PERFORM pg_advisory_xact_lock_shared(class, number);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;
