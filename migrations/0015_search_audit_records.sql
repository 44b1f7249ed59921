-- Searches of the audit log that stay fast with millions of records.

-- Who asked: the person, or the token where no person is known. One index serves both, in the order of pages. Of the name
-- it has a hash, which is a third of its size.
CREATE INDEX audit_events_person
    ON audit_events (hashtextextended(COALESCE(user_id, token_id), 0), occurred_at, request_id, kind);
-- Few records are about a job.
CREATE INDEX audit_events_job ON audit_events (job_id) WHERE job_id IS NOT NULL;

-- In which hours the records of a day's partition occurred, so that a search opens the partitions it needs. A request's
-- end may come long after the day of its id.
CREATE TABLE audit_days (
    day        date PRIMARY KEY,
    first_hour timestamptz NOT NULL,
    last_hour  timestamptz NOT NULL CHECK (last_hour >= first_hour)
);

-- How many records there are of each sort, hour by hour; '' where a record has no such value. Written in the transaction
-- that writes the records, so it is exact. The day is that of the partition: what is dropped with it is known.
CREATE TABLE audit_counts (
    hour        timestamptz NOT NULL,
    day         date NOT NULL,
    kind        text COLLATE "C" NOT NULL,
    outcome     text COLLATE "C" NOT NULL,
    feature     text COLLATE "C" NOT NULL,
    model       text COLLATE "C" NOT NULL,
    instance_id text COLLATE "C" NOT NULL,
    reason      text COLLATE "C" NOT NULL,
    records     bigint NOT NULL CHECK (records > 0),
    PRIMARY KEY (hour, day, kind, outcome, feature, model, instance_id, reason)
);
-- The rows of the hour are changed by every batch: room beside them keeps their index entries as they are.
ALTER TABLE audit_counts SET (fillfactor = 50);

INSERT INTO audit_days (day, first_hour, last_hour)
SELECT day, min(date_trunc('hour', occurred_at, 'UTC')), max(date_trunc('hour', occurred_at, 'UTC'))
FROM audit_events GROUP BY day;

INSERT INTO audit_counts (hour, day, kind, outcome, feature, model, instance_id, reason, records)
SELECT date_trunc('hour', occurred_at, 'UTC'), day, kind, COALESCE(outcome, ''), COALESCE(feature, ''),
       COALESCE(model, ''), COALESCE(instance_id, ''), COALESCE(reason, ''), count(*)
FROM audit_events GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;
