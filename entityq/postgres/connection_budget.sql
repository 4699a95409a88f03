-- name: count_sessions
-- The kind of other roles' sessions may be hidden from ours, their database and role are not. Where
-- reserved_connections does not exist (before PostgreSQL 16) nothing is reserved that way.
SELECT (SELECT count(*)
        FROM pg_stat_activity
        WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
          AND coalesce(backend_type, 'client backend') = 'client backend'),
       current_setting('max_connections')::integer
           - current_setting('superuser_reserved_connections')::integer
           - coalesce(current_setting('reserved_connections', true)::integer, 0)
