-- How many audit records there are of each sort by the day on which they occurred: a year of days is counted faster than
-- a year of hours. Kept by triggers, so that programs from before this step write it too.

CREATE TABLE audit_day_counts (
    occurred_on date NOT NULL,
    -- that of the partition, as in audit_counts
    day         date NOT NULL,
    kind        text COLLATE "C" NOT NULL,
    outcome     text COLLATE "C" NOT NULL,
    feature     text COLLATE "C" NOT NULL,
    model       text COLLATE "C" NOT NULL,
    instance_id text COLLATE "C" NOT NULL,
    reason      text COLLATE "C" NOT NULL,
    records     bigint NOT NULL CHECK (records > 0),
    PRIMARY KEY (occurred_on, day, kind, outcome, feature, model, instance_id, reason)
);
ALTER TABLE audit_day_counts SET (fillfactor = 50);

-- Whoever writes records holds the lock on the head, which keeps others from these rows too.
CREATE FUNCTION count_audit_days() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO audit_day_counts AS known
        SELECT (hour AT TIME ZONE 'UTC')::date, day, kind, outcome, feature, model, instance_id, reason, sum(records)
        FROM added GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
        ON CONFLICT (occurred_on, day, kind, outcome, feature, model, instance_id, reason)
            DO UPDATE SET records = known.records + excluded.records;
    ELSE
        INSERT INTO audit_day_counts AS known
        SELECT (hour AT TIME ZONE 'UTC')::date, day, kind, outcome, feature, model, instance_id, reason, sum(records)
        FROM (SELECT * FROM added UNION ALL
              SELECT hour, day, kind, outcome, feature, model, instance_id, reason, -records FROM removed) AS changed
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
        ON CONFLICT (occurred_on, day, kind, outcome, feature, model, instance_id, reason)
            DO UPDATE SET records = known.records + excluded.records;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER count_days_of_added AFTER INSERT ON audit_counts REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION count_audit_days();
CREATE TRIGGER count_days_of_changed AFTER UPDATE ON audit_counts REFERENCING OLD TABLE AS removed NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION count_audit_days();

INSERT INTO audit_day_counts
SELECT (hour AT TIME ZONE 'UTC')::date, day, kind, outcome, feature, model, instance_id, reason, sum(records)
FROM audit_counts GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;

-- As in 0017, and what is counted by the day. Of the hours those are looked at in which the partition's records occurred.
CREATE OR REPLACE FUNCTION drop_audit_partition(of_table text, of_day date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    partition text := of_table || '_' || to_char(of_day, 'YYYYMMDD');
    hours record;
BEGIN
    IF of_table NOT IN ('audit_events', 'audit_bodies', 'audit_keys')
       OR of_table = 'audit_events' AND of_day >= (now() AT TIME ZONE 'UTC')::date - 1 THEN
        RAISE EXCEPTION '% of % is not dropped', of_table, of_day USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF to_regclass(partition) IS NULL THEN
        RETURN false;
    END IF;
    IF of_table = 'audit_events' THEN
        FOR hours IN DELETE FROM audit_days WHERE day = of_day RETURNING first_hour, last_hour LOOP
            DELETE FROM audit_counts WHERE day = of_day AND hour BETWEEN hours.first_hour AND hours.last_hour;
            DELETE FROM audit_day_counts
            WHERE day = of_day AND occurred_on BETWEEN (hours.first_hour AT TIME ZONE 'UTC')::date
                                                   AND (hours.last_hour AT TIME ZONE 'UTC')::date;
        END LOOP;
    END IF;
    -- Last, since from here on nobody reads the table.
    EXECUTE format('DROP TABLE %I', partition);
    RETURN true;
END $$;

-- As in 0017, but what else the database holds is never taken for a partition: with statistics of the catalogs PostgreSQL
-- would read the day off every relation's name, and refuse the first that has none.
CREATE OR REPLACE FUNCTION audit_partition_days(of_table text) RETURNS SETOF date LANGUAGE sql STABLE AS $$
    WITH partitions AS MATERIALIZED (
        SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = of_table::regclass)
    SELECT to_date(right(relname, 8), 'YYYYMMDD') FROM partitions
$$;
