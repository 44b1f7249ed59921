-- Divides the rights on the broker's database, so that the program that writes audit records can change none of them.
--
-- Run it as a superuser in the broker's database after each `duo-broker migrate` (which a superuser, or a member of
-- duo_owner, runs); again and again does no harm:
--
--     psql -v ON_ERROR_STOP=1 --single-transaction -f deploy/postgres/roles.sql postgres://postgres@HOST/duo
--
-- These roles have no login. Give people and programs logins of their own in them:
--
--     CREATE ROLE broker LOGIN PASSWORD '…' IN ROLE duo_app;           -- DUO_DATABASE_URL of `serve` and the other commands
--     CREATE ROLE alice LOGIN PASSWORD '…' IN ROLE duo_auditor;        -- `audit verify`, `audit prove`
--
-- `audit search`, `show`, `facets` and `export` write a record of who read what, so on the command line they need a login in
-- duo_app; auditors read by the API. `audit verify` and `audit prove` write one where the login may.
--
-- duo_owner       owns the tables; nobody is in it but who migrates
-- duo_app         the broker: inserts audit records, changes nothing of them
-- duo_auditor     reads all that is about the audit log
-- duo_retention   reads it too; what it may drop comes by functions
-- duo_checkpoint  owns the checkpoints; nobody is in it

DO $$
DECLARE
    wanted text;
    relation record;
    rights text;
    routine record;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['duo_owner', 'duo_app', 'duo_auditor', 'duo_retention', 'duo_checkpoint'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;

    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC, duo_app, duo_auditor, duo_retention', current_schema());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO duo_app, duo_auditor, duo_retention, duo_checkpoint', current_schema());
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO duo_owner', current_schema());

    FOR relation IN
        SELECT oid::regclass AS name, relname, relispartition FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %I', relation.name,
                       CASE relation.relname WHEN 'audit_checkpoints' THEN 'duo_checkpoint' ELSE 'duo_owner' END);
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, duo_app, duo_auditor, duo_retention', relation.name);
        -- A partition is reached through its table, whose rights count.
        CONTINUE WHEN relation.relispartition;
        rights := CASE
            WHEN relation.relname = '_sqlx_migrations' THEN 'SELECT'
            WHEN relation.relname = 'audit_head' THEN 'SELECT, UPDATE'
            -- counts of records, which prove nothing
            WHEN relation.relname IN ('audit_counts', 'audit_days') THEN 'SELECT, INSERT, UPDATE'
            -- kept by a trigger of the owner
            WHEN relation.relname = 'audit_day_counts' THEN 'SELECT'
            -- keys are destroyed, holds lifted, places moved on
            WHEN relation.relname IN ('audit_keys', 'audit_holds', 'audit_forwards') THEN 'SELECT, INSERT, UPDATE'
            WHEN relation.relname = 'change_records' OR relation.relname LIKE 'audit\_%' THEN 'SELECT, INSERT'
            ELSE 'SELECT, INSERT, UPDATE, DELETE'
        END;
        EXECUTE format('GRANT %s ON %s TO duo_app', rights, relation.name);
        IF relation.relname = 'change_records' OR relation.relname LIKE 'audit\_%' THEN
            EXECUTE format('GRANT SELECT ON %s TO duo_auditor, duo_retention', relation.name);
        END IF;
    END LOOP;

    -- What makes, looks into and drops partitions works with the owner's rights, for the broker alone.
    FOR routine IN
        SELECT oid::regprocedure AS name, proname FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace
          AND proname IN ('create_audit_partition', 'create_audit_body_partition', 'lock_audit_partition',
                          'audit_partition_numbers', 'drop_audit_partition', 'count_audit_days', 'create_job_partitions',
                          'drop_job_partitions')
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO duo_owner', routine.name);
        EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path FROM CURRENT', routine.name);
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', routine.name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO duo_app', routine.name);
    END LOOP;
END $$;
