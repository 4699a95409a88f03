-- oldest code: 3
-- What can happen to a request between its acceptance and its reply. In no index, so HOT updates.
--   retries        attempts that ended in a defect and are followed by another one
--   failing_since  when the first of them began: what a retry policy's total time counts from
--   resume_at      not to be run before: its backoff, or its wait for a signal ('infinity': no timeout)
--   suspended      resume_at is a wait for a signal
--   started        the incarnation that runs it, written before a turn that is suspected of ending processes
--   cancelled      somebody has asked for its end
ALTER TABLE pending
    ADD COLUMN retries smallint NOT NULL DEFAULT 0,
    ADD COLUMN failing_since timestamptz,
    ADD COLUMN resume_at timestamptz,
    ADD COLUMN suspended boolean NOT NULL DEFAULT false,
    ADD COLUMN started bigint,
    ADD COLUMN cancelled boolean NOT NULL DEFAULT false;

-- Unanswered requests whose time has not come: sent with an eta or a delay, or parked (in backoff, or waiting
-- for a signal). They are in no pass and no sweep; the shard's owner moves them to pending when they are due,
-- with a new seq. The other columns are those of pending.
CREATE TABLE timer (
    shard_id integer NOT NULL,
    due_at timestamptz NOT NULL,
    request_id bigint NOT NULL,
    entity_hash bigint NOT NULL,
    attempts smallint NOT NULL DEFAULT 0,
    retries smallint NOT NULL DEFAULT 0,
    failing_since timestamptz,
    suspended boolean NOT NULL DEFAULT false,
    PRIMARY KEY (shard_id, due_at, request_id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE UNIQUE INDEX timer_request ON timer (request_id);

-- Requests that were given up, with what only the operator is to see. A row with requeued_at is history.
CREATE TABLE dead_letter (
    request_id bigint NOT NULL,
    died_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    namespace text NOT NULL,
    type text NOT NULL,
    entity_id text NOT NULL,
    message text NOT NULL,
    attempts integer NOT NULL,
    error_type text NOT NULL,
    error text NOT NULL,
    cause jsonb NOT NULL,
    requeued_at timestamptz,
    requeued_by text,
    PRIMARY KEY (request_id, died_at)
);
CREATE INDEX dead_letter_time ON dead_letter (namespace, died_at);

-- One row per signal of a request: made by whoever comes first, the turn that waits or the one who signals.
CREATE TABLE signal (
    request_id bigint NOT NULL,
    name text NOT NULL,
    waiting boolean NOT NULL DEFAULT false,
    value bytea,
    signalled_at timestamptz,
    PRIMARY KEY (request_id, name)
);

-- Of the tokens of signals: whoever has it can make one for any request.
ALTER TABLE cluster
    ADD COLUMN signal_key bytea NOT NULL
        DEFAULT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());

-- The version of the class (`state_version`) that wrote the state.
ALTER TABLE entity ADD COLUMN state_version integer NOT NULL DEFAULT 1;
