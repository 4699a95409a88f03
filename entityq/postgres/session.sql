-- name: apply_settings
-- Everything that a connection needs, in one round trip.
SELECT set_config(s.name, s.value, false)
FROM unnest(%(names)s::text[], %(values)s::text[]) AS s (name, value)

-- name: quoted_search_path
-- pg_temp is named, and last, because it is otherwise searched first: a temporary table must not hide ours.
SELECT set_config('search_path', quote_ident(%(schema)s::text) || ', pg_temp', %(local)s::boolean)
