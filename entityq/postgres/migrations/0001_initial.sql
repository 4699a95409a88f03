-- The cluster's facts: written by `entityq migrate`, compared by every client and runner at its start.
CREATE TABLE cluster (
    namespace text PRIMARY KEY,
    cluster_id uuid NOT NULL DEFAULT gen_random_uuid(),
    format_version integer NOT NULL,
    default_shards integer NOT NULL CHECK (default_shards BETWEEN 1 AND 10000),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- wrap = 2^64 modulo shards: Postgres has no unsigned bigint, so the shard of a hash is computed
-- from its signed form (see outbox.sql).
CREATE TABLE shard_group (
    group_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace text NOT NULL REFERENCES cluster,
    name text NOT NULL,
    shards integer NOT NULL CHECK (shards BETWEEN 1 AND 10000),
    first_shard integer NOT NULL,
    wrap integer NOT NULL,
    UNIQUE (namespace, name)
);

-- The lease table. A shard id stands for (namespace, group, number) in every row of the outbox.
-- Acquiring a shard increments its epoch; the advisory lock, not this row, is the ownership.
CREATE TABLE shard (
    shard_id integer PRIMARY KEY,
    group_id integer NOT NULL REFERENCES shard_group,
    number integer NOT NULL,
    epoch bigint NOT NULL DEFAULT 0,
    incarnation bigint,
    acquired_at timestamptz,
    UNIQUE (group_id, number)
) WITH (fillfactor = 50);

CREATE TABLE entity_type (
    namespace text NOT NULL REFERENCES cluster,
    type text NOT NULL,
    group_id integer NOT NULL REFERENCES shard_group,
    PRIMARY KEY (namespace, type)
);

-- Members of the cluster. A row is a claim; the runner is alive only while the session (pid) holds
-- the exclusive advisory lock on its number.
CREATE SEQUENCE incarnation;

CREATE TABLE runner (
    incarnation bigint PRIMARY KEY,
    namespace text NOT NULL REFERENCES cluster,
    number integer NOT NULL,
    name text NOT NULL,
    pid integer NOT NULL,
    backend_start timestamptz NOT NULL,
    groups text[] NOT NULL,
    types text[] NOT NULL,
    weight double precision NOT NULL CHECK (weight > 0),
    draining boolean NOT NULL DEFAULT false,
    joined_at timestamptz NOT NULL DEFAULT now()
);

-- The outbox order. CACHE 1: a cached block would give a later send an earlier number.
CREATE SEQUENCE outbox_seq CACHE 1;

-- Requests and their replies. No updated column is indexed, so storing a reply is a HOT update;
-- "unanswered" is a row in pending, not a predicate here.
CREATE TABLE outbox (
    request_id bigint PRIMARY KEY,
    shard_id integer NOT NULL,
    seq bigint NOT NULL,
    entity_hash bigint NOT NULL,
    type text NOT NULL,
    entity_id text NOT NULL,
    message text NOT NULL,
    key_digest bytea,
    payload_hash bytea NOT NULL,
    envelope bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    reply bytea,
    replied_at timestamptz,
    epoch bigint
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE UNIQUE INDEX outbox_key_digest ON outbox (key_digest) WHERE key_digest IS NOT NULL;
CREATE INDEX outbox_entity ON outbox (entity_hash, seq);

-- One narrow row per unanswered request: what catching up reads, and what a commit deletes first.
CREATE TABLE pending (
    shard_id integer NOT NULL,
    seq bigint NOT NULL,
    request_id bigint NOT NULL,
    entity_hash bigint NOT NULL,
    PRIMARY KEY (shard_id, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- An entity whose mailbox overflowed reads its own unanswered requests, not its shard's.
CREATE INDEX pending_entity ON pending (shard_id, entity_hash, seq);

-- The durable state of entities. Every persisted turn increments the version.
CREATE TABLE entity (
    shard_id integer NOT NULL,
    type text NOT NULL,
    entity_id text NOT NULL,
    version bigint NOT NULL,
    epoch bigint NOT NULL,
    outcome smallint NOT NULL,
    state bytea,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard_id, type, entity_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
