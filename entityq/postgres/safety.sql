-- name: describe_server
SELECT current_setting('server_version_num')::integer, pg_is_in_recovery(), current_setting('synchronous_commit')

-- name: missing_rights
-- Every table but the two that only `entityq migrate` writes, every sequence, every function.
WITH ours AS (
    SELECT oid, relname, relkind FROM pg_class
    WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
)
SELECT privilege || ' on ' || relname
FROM ours, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
WHERE relkind = 'r' AND NOT has_table_privilege(oid, privilege)
  AND NOT (relname IN ('migration', 'cluster') AND privilege <> 'SELECT')
UNION ALL
SELECT privilege || ' on ' || relname
FROM ours, unnest(ARRAY['USAGE', 'SELECT']) AS privilege
WHERE relkind = 'S' AND NOT has_sequence_privilege(oid, privilege)
UNION ALL
SELECT 'EXECUTE on ' || proname
FROM pg_proc
WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
  AND NOT has_function_privilege(oid, 'EXECUTE')
ORDER BY 1

-- name: describe_database
-- Two servers do not start in the same microsecond.
SELECT oid::text || ' ' || pg_postmaster_start_time()::text FROM pg_database WHERE datname = current_database()

-- name: own_pid
SELECT pg_backend_pid()
