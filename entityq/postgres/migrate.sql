-- name: set_wait
-- For this transaction, which may take longer than the session's own limits.
SELECT set_config('lock_timeout', %(wait)s, true), set_config('statement_timeout', '0', true)

-- name: lock
-- The second of two migrations at once waits here until the first has committed. The lock is the
-- transaction's, so that nobody keeps it by dying.
SELECT pg_advisory_xact_lock(%(lock_class)s::integer, 0)

-- name: find_schema
SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = %(schema)s)

-- name: find_table
SELECT to_regclass('migration') IS NOT NULL

-- name: create_table
CREATE TABLE migration (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    oldest_code integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- name: applied
SELECT number, name, checksum, oldest_code, applied_at FROM migration ORDER BY number

-- name: record
INSERT INTO migration (number, name, checksum, oldest_code)
VALUES (%(number)s, %(name)s, %(checksum)s, %(oldest_code)s)
