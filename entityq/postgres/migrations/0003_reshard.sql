-- A group that is closed takes no requests and gives out no leases: `entityq reshard` moves its rows.
ALTER TABLE shard_group ADD COLUMN open boolean NOT NULL DEFAULT true;

-- The one change of a namespace's shards that is not finished, and how far it is.
CREATE TABLE reshard (
    namespace text PRIMARY KEY REFERENCES cluster,
    group_name text NOT NULL,
    shards integer,
    type text,
    phase text NOT NULL CHECK (phase IN ('closing', 'moving')),
    started_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((shards IS NULL) <> (type IS NULL))
);

-- The shards that its groups are going to have. Their ids are new: an old id is never used again, so that
-- whoever has old facts finds nothing to act on.
CREATE TABLE reshard_group (
    group_id integer PRIMARY KEY REFERENCES shard_group,
    shards integer NOT NULL CHECK (shards BETWEEN 1 AND 10000),
    first_shard integer NOT NULL,
    wrap integer NOT NULL
);
