-- oldest code: 3
-- The values of streaming replies, in order, from 1. They are written by the owner of the request's shard while the
-- request is unanswered, and go with its reply.
--   acknowledged   a caller has had all up to this one: what its handler may run ahead of
CREATE TABLE chunk (
    request_id bigint NOT NULL,
    number integer NOT NULL,
    acknowledged boolean NOT NULL DEFAULT false,
    value bytea NOT NULL,
    PRIMARY KEY (request_id, number)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
