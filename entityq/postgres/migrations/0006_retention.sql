-- oldest code: 3
-- How long requests of a message are kept from their reply on, as the runner that started last declared it:
-- whoever purges need not have the code of the type.
CREATE TABLE retention (
    namespace text NOT NULL REFERENCES cluster,
    type text NOT NULL,
    message text NOT NULL,
    keep interval NOT NULL,
    keep_keys interval NOT NULL CHECK (keep_keys >= keep),
    PRIMARY KEY (namespace, type, message)
);

-- From now on a reply can be empty, which no encoded reply is: the request is answered, and nothing of it is kept
-- but its primary key. The envelope is empty then, too.
COMMENT ON COLUMN outbox.reply IS 'NULL: unanswered; empty: answered, and no longer kept';
