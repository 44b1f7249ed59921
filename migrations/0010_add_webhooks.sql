-- Webhooks: who may be told when a job ends, and what became of telling them.

CREATE TABLE webhook_receivers (
    id              uuid PRIMARY KEY,
    name            text COLLATE "C" NOT NULL UNIQUE,
    url             text COLLATE "C" NOT NULL UNIQUE,
    -- networks in CIDR form that it may be at although they are not public
    addresses       text[] NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text NOT NULL,
    -- gone: it answered 410; administrator: somebody wanted it
    disabled_reason text CHECK (disabled_reason IN ('gone', 'administrator')),
    disabled_at     timestamptz,
    CONSTRAINT disabling_is_whole CHECK (num_nulls(disabled_reason, disabled_at) IN (0, 2))
);

-- What signs: sealed as request bodies are, bound to its id. The newest has no end, an older one is good until its own.
CREATE TABLE webhook_secrets (
    id          uuid PRIMARY KEY,
    receiver    uuid NOT NULL REFERENCES webhook_receivers (id) ON DELETE CASCADE,
    key_id      text NOT NULL,
    sealed      bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    valid_until timestamptz
);
CREATE INDEX webhook_secrets_receiver ON webhook_secrets (receiver);

-- One event for one receiver. An id is "msg_" and a UUIDv7, so ids are in the order of their making.
CREATE TABLE webhook_deliveries (
    id          text COLLATE "C" PRIMARY KEY,
    receiver    uuid NOT NULL REFERENCES webhook_receivers (id) ON DELETE CASCADE,
    -- absent for a test
    job_id      uuid,
    event       text NOT NULL,
    occurred_at timestamptz NOT NULL,
    state       text NOT NULL CHECK (state IN ('pending', 'delivered', 'failed', 'dropped')),
    -- why it was dropped
    reason      text,
    -- attempts that count, since it was queued
    attempt     integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    queued_at   timestamptz NOT NULL DEFAULT now(),
    -- when it is due; while a broker has it, when that broker's lease ends and it is anybody's again
    next_at     timestamptz NOT NULL DEFAULT now(),
    leased_by   text,
    ended_at    timestamptz,
    CONSTRAINT only_the_ended_have_ended CHECK ((state = 'pending') = (ended_at IS NULL)),
    CONSTRAINT only_the_pending_are_leased CHECK (leased_by IS NULL OR state = 'pending')
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (receiver, next_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_receiver ON webhook_deliveries (receiver, id);

-- What each attempt met: never a body.
CREATE TABLE webhook_attempts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery    text COLLATE "C" NOT NULL REFERENCES webhook_deliveries (id) ON DELETE CASCADE,
    at          timestamptz NOT NULL,
    broker      text NOT NULL,
    result      text NOT NULL,
    status      integer,
    detail      text CHECK (length(detail) <= 200),
    duration_ms bigint NOT NULL CHECK (duration_ms >= 0)
);
CREATE INDEX webhook_attempts_delivery ON webhook_attempts (delivery);
