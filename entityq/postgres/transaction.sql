-- The statements around a handler's own SQL, on a connection whose settings are the user's. {schema} stands for the
-- quoted schema, whatever the search_path is.

-- name: begin_turn
-- After BEGIN. The id tells later whether this is still the same transaction. No rows: the lease is gone.
SELECT pg_current_xact_id()::text,
       set_config('idle_in_transaction_session_timeout', %(idle)b::text, true)
FROM {schema}.shard
WHERE shard_id = %(shard_id)b AND epoch = %(epoch)b

-- name: end_handler
-- What the handler has put off fails here, in its own search_path, and not at the commit; and the next statements
-- run as the role that entityq's tables are for, and do not wait for ever.
SET CONSTRAINTS ALL IMMEDIATE; RESET ROLE; SET LOCAL lock_timeout TO '5s'

-- name: hold_shard
-- Before anything of entityq's is written, so that whoever takes the shard over, which changes its row, waits for
-- every lock of this transaction's end, and for nothing of the handler's. The name tells whom it waits for. The
-- settings are those of the statements to come, until the end of the transaction. No rows: the lease is gone.
SELECT pg_current_xact_id()::text,
       set_config('application_name', %(name)b::text, true),
       (SELECT count(set_config(s.name, s.value, true))
        FROM unnest(%(names)b::text[], %(values)b::text[]) AS s (name, value))
FROM {schema}.shard
WHERE shard_id = %(shard_id)b AND epoch = %(epoch)b
FOR SHARE OF shard

-- name: read_fate
-- Of a transaction whose connection ended at its commit.
SELECT coalesce(pg_xact_status((%(transaction)b::text)::xid8), 'unknown'),
       coalesce((SELECT reply = %(reply)b FROM outbox WHERE request_id = %(request_id)b), false)

-- name: reset_session
-- DISCARD ALL without the prepared statements, which psycopg knows of, and the plans.
CLOSE ALL; RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES
