-- oldest code: 3
-- For how many seconds this runner may be silent before a peer evicts it, written with its first heartbeat.
-- NULL: code that does not say; a peer judges it by its own lease time.
ALTER TABLE runner ADD COLUMN lease_time double precision;
