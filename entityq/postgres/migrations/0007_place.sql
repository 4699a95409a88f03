-- Runners that follow each other in one place of a worker: the next one gets the shards of the last one. No
-- "oldest code": all runners must compute the same assignment.
ALTER TABLE runner ADD COLUMN place text NOT NULL DEFAULT '';
