-- name: apply_settings
-- Everything that a connection needs, in one round trip.
SELECT set_config(s.name, s.value, false)
FROM unnest(%(names)s::text[], %(values)s::text[]) AS s (name, value)

-- name: read_settings
-- NULL: the server does not know it.
SELECT s.name, current_setting(s.name, true) FROM unnest(%(names)s::text[]) AS s (name)
