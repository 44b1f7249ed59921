-- Every audit record has a number without gaps, so that a hash tree can be built over all of them; and records may be
-- about other things than requests.

-- How many records there are: the number of the next one. Whoever writes records locks this row last and to its commit,
-- so that numbers become visible in their order.
CREATE TABLE audit_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    size     bigint NOT NULL CHECK (size >= 0)
);
INSERT INTO audit_head (size) VALUES (0);
ALTER TABLE audit_head SET (fillfactor = 10);

-- absent on records from before this table had numbers
ALTER TABLE audit_events ADD COLUMN seq bigint CHECK (seq >= 0);
-- what a record that is not about a request says: a JSON object, byte for byte as it was written
ALTER TABLE audit_events ADD COLUMN details text;
CREATE INDEX audit_events_seq ON audit_events (seq);

ALTER TABLE audit_events DROP CONSTRAINT audit_events_kind_check;
ALTER TABLE audit_events ADD CONSTRAINT audit_events_kind_check
    CHECK (kind IN ('admitted', 'ended', 'changed', 'sign_in_failed', 'read'));

-- Whoever may write records may also make the partition that they belong in, and nothing else.
ALTER FUNCTION create_audit_partition(date) SECURITY DEFINER SET search_path FROM CURRENT;
