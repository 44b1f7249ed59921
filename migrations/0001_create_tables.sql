-- Configuration, identities and audit records.

-- Counts changes. Whoever changes anything locks this row first, so changes happen one after the other.
CREATE TABLE config_revision (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    revision   bigint NOT NULL CHECK (revision >= 1),
    changed_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO config_revision (revision) VALUES (1);

CREATE TABLE models (
    name              text COLLATE "C" PRIMARY KEY,
    family            text NOT NULL,
    context_tokens    bigint NOT NULL CHECK (context_tokens BETWEEN 1 AND 4294967295),
    max_output_tokens bigint NOT NULL CHECK (max_output_tokens BETWEEN 1 AND context_tokens),
    created_at        timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE features (
    name                 text COLLATE "C" PRIMARY KEY,
    title                text NOT NULL,
    -- language: a prompt of ours or the caller's; generic: another inference format; openai: the request names its model
    kind                 text NOT NULL CHECK (kind IN ('language', 'generic', 'openai')),
    -- unit primitives of GitLab tokens, any of which opens it
    scopes               text[] NOT NULL DEFAULT '{}',
    active               boolean NOT NULL DEFAULT false,
    model                text COLLATE "C" REFERENCES models (name),
    lane                 text NOT NULL CHECK (lane IN ('keystroke', 'interactive')),
    first_byte_within_ms bigint NOT NULL CHECK (first_byte_within_ms > 0),
    end_within_ms        bigint NOT NULL CHECK (end_within_ms >= first_byte_within_ms),
    bodies               text NOT NULL DEFAULT 'none' CHECK (bodies IN ('none', 'digest', 'full')),
    -- who answers for a pair that nobody has evaluated; it stands for one family
    acknowledgement      text,
    acknowledged_family  text,
    acknowledged_by      text,
    acknowledged_at      timestamptz,
    CONSTRAINT active_feature_has_a_model
        CHECK (active = (model IS NOT NULL) OR (kind = 'openai' AND model IS NULL)),
    CONSTRAINT acknowledgement_is_whole
        CHECK (num_nulls(acknowledgement, acknowledged_family, acknowledged_by, acknowledged_at) IN (0, 4))
);

-- The family '*' stands for every family without a row of its own; a pair without any row is to be evaluated.
CREATE TABLE support_levels (
    feature    text COLLATE "C" NOT NULL REFERENCES features (name),
    family     text COLLATE "C" NOT NULL,
    level      text NOT NULL CHECK (level IN ('supported', 'to_be_evaluated', 'not_supported')),
    -- absent on seeded rows
    reason     text,
    changed_by text,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (feature, family)
);

-- Templates that replace the built-in ones.
CREATE TABLE prompts (
    id         text COLLATE "C" NOT NULL,
    family     text COLLATE "C" NOT NULL,
    text       text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, family)
);

CREATE TABLE issuers (
    url        text COLLATE "C" PRIMARY KEY,
    audience   text NOT NULL,
    openai     boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_tokens (
    id            uuid PRIMARY KEY,
    name          text NOT NULL,
    -- of the whole secret, lower-case hexadecimal; the secret itself is nowhere
    sha256        text NOT NULL UNIQUE CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    role          text NOT NULL CHECK (role IN ('client', 'auditor', 'admin')),
    features      text[],
    models        text[],
    request_limit bigint NOT NULL DEFAULT 1000 CHECK (request_limit BETWEEN 1 AND 1000000),
    created_at    timestamptz NOT NULL DEFAULT now(),
    created_by    text NOT NULL,
    expires_at    timestamptz,
    revoked_at    timestamptz,
    revoked_by    text
);
-- A name may be used again once its token is revoked.
CREATE UNIQUE INDEX api_tokens_live_name ON api_tokens (name) WHERE revoked_at IS NULL;

-- Written with each change, deleted once the revision is in NATS.
CREATE TABLE config_outbox (
    revision   bigint PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO config_outbox (revision) VALUES (1);

CREATE TABLE change_records (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    actor    text NOT NULL,
    -- such as model.put, feature.put, token.revoke
    what     text NOT NULL,
    -- which one
    subject  text NOT NULL,
    before   jsonb,
    after    jsonb,
    revision bigint NOT NULL
);
CREATE INDEX change_records_revision ON change_records (revision);

-- The day is that of the request id (a UUIDv7), so one request's records lie together and the unique key can cover
-- them. Two indexes, no more: every one is paid for twice per request.
CREATE TABLE audit_events (
    day             date NOT NULL,
    request_id      uuid NOT NULL,
    kind            text COLLATE "C" NOT NULL CHECK (kind IN ('admitted', 'ended')),
    occurred_at     timestamptz NOT NULL,
    recorded_at     timestamptz NOT NULL DEFAULT now(),
    broker          text NOT NULL,
    auth            text NOT NULL,
    instance_id     text,
    user_id         text,
    token_id        text,
    client          text,
    address         text,
    route           text NOT NULL,
    feature         text,
    lane            text,
    model           text,
    prompt_id       text,
    prompt_version  text,
    config_revision bigint NOT NULL,
    stream          boolean NOT NULL,
    body_bytes      bigint NOT NULL,
    correlation_id  text,
    trace_id        text,
    outcome         text,
    reason          text,
    worker          text,
    attempts        integer,
    queue_wait_us   bigint,
    first_byte_us   bigint,
    duration_us     bigint,
    input_tokens    bigint,
    output_tokens   bigint,
    PRIMARY KEY (day, request_id, kind),
    CONSTRAINT outcome_on_terminal_records_only CHECK ((kind = 'ended') = (outcome IS NOT NULL))
) PARTITION BY RANGE (day);
CREATE INDEX audit_events_occurred ON audit_events (occurred_at, request_id, kind);

CREATE TABLE audit_late_ends (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id  uuid NOT NULL,
    broker      text NOT NULL,
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    outcome     text NOT NULL,
    record      jsonb NOT NULL,
    UNIQUE (request_id, broker, occurred_at)
);

CREATE TABLE audit_rejects (
    stream_sequence bigint PRIMARY KEY,
    recorded_at     timestamptz NOT NULL DEFAULT now(),
    error           text NOT NULL,
    payload         bytea NOT NULL
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON change_records
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON change_records
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_late_ends
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON audit_late_ends
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Makes the partition of one day unless it is there. One maker at a time; ATTACH takes a lock that lets inserts into
-- other partitions go on, which CREATE TABLE ... PARTITION OF would not.
CREATE FUNCTION create_audit_partition(of_day date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    partition text := 'audit_events_' || to_char(of_day, 'YYYYMMDD');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('create_audit_partition'));
    IF to_regclass(partition) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE audit_events INCLUDING ALL)', partition);
    EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', partition);
    EXECUTE format('ALTER TABLE audit_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   partition, of_day, of_day + 1);
    RETURN true;
END $$;
