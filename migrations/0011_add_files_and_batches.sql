-- Files that clients send and fetch, and batches made of them, as OpenAI's API has them. A batch's lines are jobs: the line
-- of number n has the job whose id is the batch's with n in its last 32 bits, which are zero in the batch's own.
CREATE TABLE files (
    -- the UTC day of the id, a UUIDv7
    day        date NOT NULL,
    id         uuid NOT NULL,
    -- whose it is: the caller's key
    client     text COLLATE "C" NOT NULL,
    purpose    text COLLATE "C" NOT NULL CHECK (purpose IN ('batch', 'batch_output')),
    filename   text NOT NULL,
    bytes      bigint NOT NULL DEFAULT 0,
    -- one that is still on its way is nobody's to see
    is_whole   boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (day, id)
) PARTITION BY RANGE (day);
CREATE INDEX files_of_client ON files (client, id);

-- What is in them, sealed piece by piece. Pieces of what clients send are of one size but for the last.
CREATE TABLE file_chunks (
    -- that of the file
    day     date NOT NULL,
    file_id uuid NOT NULL,
    number  integer NOT NULL,
    key_id  text NOT NULL,
    sealed  bytea NOT NULL,
    PRIMARY KEY (day, file_id, number)
) PARTITION BY RANGE (day);
ALTER TABLE file_chunks ALTER COLUMN sealed SET STORAGE EXTERNAL;

CREATE TABLE batches (
    day             date NOT NULL,
    -- a UUIDv7 whose last 32 bits are zero
    id              uuid NOT NULL,
    client          text COLLATE "C" NOT NULL,
    client_limit    integer NOT NULL CHECK (client_limit > 0),
    who             jsonb NOT NULL,
    feature         text NOT NULL,
    endpoint        text COLLATE "C" NOT NULL,
    -- models that the client may name; null for all
    models          text[],
    config_revision bigint NOT NULL,
    traceparent     text,
    correlation_id  text,
    input_file      uuid NOT NULL,
    completion_window text NOT NULL,
    metadata        jsonb,
    state           text COLLATE "C" NOT NULL DEFAULT 'validating' CHECK
                        (state IN ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired',
                                   'cancelling', 'cancelled')),
    -- why it failed: a list of code, message, line and param
    errors          jsonb,
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL,
    in_progress_at  timestamptz,
    finalizing_at   timestamptz,
    cancelling_at   timestamptz,
    ended_at        timestamptz,
    -- requests in it, and of them those that are jobs
    total           integer NOT NULL DEFAULT 0,
    made            integer NOT NULL DEFAULT 0,
    -- where the next line begins that is to be a job
    made_line       integer NOT NULL DEFAULT 0,
    made_byte       bigint NOT NULL DEFAULT 0,
    -- jobs that have ended
    completed       integer NOT NULL DEFAULT 0,
    failed          integer NOT NULL DEFAULT 0,
    input_tokens    bigint NOT NULL DEFAULT 0,
    output_tokens   bigint NOT NULL DEFAULT 0,
    -- where the next line begins whose end is to be written, and what is written
    collected_line  integer NOT NULL DEFAULT 0,
    collected_byte  bigint NOT NULL DEFAULT 0,
    ran_out         boolean NOT NULL DEFAULT false,
    output_file     uuid,
    output_chunks   integer NOT NULL DEFAULT 0,
    output_bytes    bigint NOT NULL DEFAULT 0,
    error_file      uuid,
    error_chunks    integer NOT NULL DEFAULT 0,
    error_bytes     bigint NOT NULL DEFAULT 0,
    -- the fence: who works on it, the how many-eth turn that is, and until when nobody else does
    owner           text,
    run             integer NOT NULL DEFAULT 0,
    held_until      timestamptz NOT NULL DEFAULT now(),
    -- not before
    look_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (day, id),
    CONSTRAINT ended_ones_have_ended CHECK
        ((ended_at IS NULL) = (state IN ('validating', 'in_progress', 'finalizing', 'cancelling')))
) PARTITION BY RANGE (day);
CREATE INDEX batches_due ON batches (look_at) WHERE ended_at IS NULL;
CREATE INDEX batches_of_client ON batches (client, id);

-- Jobs that are shown as responses, with what of the request is shown, sealed.
CREATE TABLE responses (
    -- that of the id, which is the job's
    day    date NOT NULL,
    id     uuid NOT NULL,
    key_id text NOT NULL,
    sealed bytea NOT NULL,
    PRIMARY KEY (day, id)
) PARTITION BY RANGE (day);

-- The same as before, for these tables too.
CREATE OR REPLACE FUNCTION create_job_partitions(of_day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    of_table text;
    partition text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('create_job_partitions'));
    FOREACH of_table IN ARRAY ARRAY['jobs', 'job_inputs', 'job_results', 'files', 'file_chunks', 'batches', 'responses'] LOOP
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

-- Those of the next days, so that nobody has to wait for the first broker's look.
DO $$
BEGIN
    PERFORM create_job_partitions((now() AT TIME ZONE 'UTC')::date + ahead) FROM generate_series(0, 2) AS ahead;
END $$;
