-- What the tables of a cluster went through, in the order in which it happened: written by triggers, in the
-- transactions of those who did it, so that nothing is missed and nothing is told that was undone. `tick`
-- orders what happened to one row, and to one shard: a later owner has the shard's lock.

-- name: install
CREATE SCHEMA chaos;
CREATE SEQUENCE chaos.tick;
CREATE TABLE chaos.acquisition (tick bigint, shard_id integer, epoch bigint);
CREATE TABLE chaos.change (tick bigint, shard_id integer, type text, entity_id text, version bigint, epoch bigint);
CREATE TABLE chaos.answer (tick bigint, request_id bigint, shard_id integer, epoch bigint);

CREATE FUNCTION chaos.acquired() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos.acquisition VALUES (nextval('chaos.tick'), NEW.shard_id, NEW.epoch);
    RETURN NULL;
END $$;
CREATE FUNCTION chaos.changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos.change
    VALUES (nextval('chaos.tick'), NEW.shard_id, NEW.type, NEW.entity_id, NEW.version, NEW.epoch);
    RETURN NULL;
END $$;
CREATE FUNCTION chaos.answered() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos.answer VALUES (nextval('chaos.tick'), NEW.request_id, NEW.shard_id, NEW.epoch);
    RETURN NULL;
END $$;

CREATE TRIGGER chaos AFTER UPDATE ON entityq.shard FOR EACH ROW
WHEN (OLD.epoch IS DISTINCT FROM NEW.epoch) EXECUTE FUNCTION chaos.acquired();
CREATE TRIGGER chaos AFTER INSERT OR UPDATE ON entityq.entity FOR EACH ROW EXECUTE FUNCTION chaos.changed();
CREATE TRIGGER chaos AFTER UPDATE OF reply ON entityq.outbox FOR EACH ROW EXECUTE FUNCTION chaos.answered();

-- name: read_requests
SELECT request_id, shard_id, seq, type, entity_id, message, epoch, reply, envelope FROM entityq.outbox

-- name: read_entities
SELECT shard_id, type, entity_id, version, epoch, state FROM entityq.entity

-- name: read_acquisitions
SELECT tick, shard_id, epoch FROM chaos.acquisition ORDER BY tick

-- name: read_changes
SELECT tick, shard_id, type, entity_id, version, epoch FROM chaos.change ORDER BY tick

-- name: read_answers
SELECT tick, request_id, shard_id, epoch FROM chaos.answer ORDER BY tick

-- name: all_taken
SELECT count(*) > 0 AND count(*) = count(incarnation) FROM entityq.shard

-- name: count_pending
SELECT count(*) FROM entityq.pending

-- name: lease_backends
SELECT a.pid
FROM pg_stat_activity a
WHERE a.application_name ~ '^entityq:[0-9]+$'
  AND EXISTS (SELECT 1 FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory')
ORDER BY a.pid

-- name: other_backends
SELECT a.pid
FROM pg_stat_activity a
WHERE a.application_name LIKE 'entityq%'
  AND NOT EXISTS (SELECT 1 FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory')
ORDER BY a.pid

-- name: terminate
SELECT pg_terminate_backend(%(pid)s)
