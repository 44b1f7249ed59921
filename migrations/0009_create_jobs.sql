-- Jobs: work that is submitted and left. The row is the record; the queue holds only what a broker runs of it.
CREATE TABLE jobs (
    -- the UTC day of the id, a UUIDv7
    day             date NOT NULL,
    id              uuid NOT NULL,
    -- whose it is: the caller's key
    client          text COLLATE "C" NOT NULL,
    -- requests of this client that may run for one model
    client_limit    integer NOT NULL CHECK (client_limit > 0),
    who             jsonb NOT NULL,
    state           text COLLATE "C" NOT NULL DEFAULT 'queued' CHECK
                        (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired', 'dead')),
    feature         text NOT NULL,
    model           text COLLATE "C" NOT NULL,
    lane            text COLLATE "C" NOT NULL CHECK (lane IN ('keystroke', 'interactive', 'background')),
    prompt_id       text,
    prompt_version  text,
    config_revision bigint NOT NULL,
    traceparent     text,
    correlation_id  text,
    metadata        jsonb,
    -- name of a webhook receiver
    callback        text,
    retry_of        uuid,
    -- the job that the input was sealed for, where that is another
    input_of        uuid,
    created_at      timestamptz NOT NULL DEFAULT now(),
    deadline        timestamptz NOT NULL,
    -- not before, when the system failed it
    run_after       timestamptz NOT NULL DEFAULT now(),
    -- the fence: who runs it, and the how many-eth run that is
    owner           text,
    run             integer NOT NULL DEFAULT 0,
    -- runs that the system failed
    failures        integer NOT NULL DEFAULT 0,
    -- the audit record of the latest run
    request_id      uuid,
    started_at      timestamptz,
    ended_at        timestamptz,
    worker          text,
    reason          text,
    message         text,
    upstream_status integer,
    input_tokens    bigint,
    output_tokens   bigint,
    PRIMARY KEY (day, id),
    CONSTRAINT only_open_ones_have_an_owner CHECK (owner IS NULL OR state IN ('queued', 'running')),
    CONSTRAINT ended_ones_have_ended CHECK ((ended_at IS NULL) = (state IN ('queued', 'running')))
) PARTITION BY RANGE (day);
CREATE INDEX jobs_waiting ON jobs (lane, model, client, id) WHERE state = 'queued' AND owner IS NULL;
CREATE INDEX jobs_owned ON jobs (owner) WHERE owner IS NOT NULL;
CREATE INDEX jobs_due ON jobs (deadline) WHERE ended_at IS NULL;
CREATE INDEX jobs_of_client ON jobs (client, day, id);

-- What a job asks of its model, sealed.
CREATE TABLE job_inputs (
    day    date NOT NULL,
    job_id uuid NOT NULL,
    key_id text NOT NULL,
    sealed bytea NOT NULL,
    PRIMARY KEY (day, job_id)
) PARTITION BY RANGE (day);

-- What came of it, sealed; the day is that of its end, so that all of a partition is due together.
CREATE TABLE job_results (
    day    date NOT NULL,
    job_id uuid NOT NULL,
    key_id text NOT NULL,
    sealed bytea NOT NULL,
    PRIMARY KEY (day, job_id)
) PARTITION BY RANGE (day);
ALTER TABLE job_inputs ALTER COLUMN sealed SET STORAGE EXTERNAL;
ALTER TABLE job_results ALTER COLUMN sealed SET STORAGE EXTERNAL;

-- Idempotency keys of submissions.
CREATE TABLE job_keys (
    client      text COLLATE "C" NOT NULL,
    key         text COLLATE "C" NOT NULL,
    -- SHA-256 of route and canonical body
    fingerprint bytea NOT NULL,
    job_id      uuid NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (client, key)
);
CREATE INDEX job_keys_expiry ON job_keys (expires_at);

-- The job that a request submits, cancels or runs.
ALTER TABLE audit_events ADD COLUMN job_id uuid;

-- Brokers that run jobs, and until when their word holds.
CREATE TABLE job_owners (
    broker      text PRIMARY KEY,
    alive_until timestamptz NOT NULL
);

-- Makes the partitions of one day unless they are there.
CREATE FUNCTION create_job_partitions(of_day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    of_table text;
    partition text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('create_job_partitions'));
    FOREACH of_table IN ARRAY ARRAY['jobs', 'job_inputs', 'job_results'] LOOP
        partition := of_table || '_' || to_char(of_day, 'YYYYMMDD');
        IF to_regclass(partition) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', partition, of_table);
            IF of_table = 'jobs' THEN
                EXECUTE format('ALTER TABLE %I SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02)', partition);
            END IF;
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                           of_table, partition, of_day, of_day + 1);
        END IF;
    END LOOP;
END $$;

-- Drops the partitions of one of the three tables that are wholly before a day; how many.
CREATE FUNCTION drop_job_partitions(of_table text, before date) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    partition text;
    dropped integer := 0;
BEGIN
    FOR partition IN
        SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = of_table::regclass AND right(relname, 8) < to_char(before, 'YYYYMMDD')
    LOOP
        EXECUTE format('DROP TABLE %I', partition);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;
