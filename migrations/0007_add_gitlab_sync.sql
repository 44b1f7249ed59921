-- What the brokers last heard from GitLab about its models and feature settings (DUO_GITLAB_SYNC).
CREATE TABLE gitlab_sync (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    mode        text NOT NULL CHECK (mode IN ('propose', 'apply')),
    broker      text NOT NULL,
    asked_at    timestamptz NOT NULL,
    -- of the last time that was asked; absent when all was well
    error       text,
    -- of the last time that all was well
    answered_at timestamptz,
    report      jsonb,
    CONSTRAINT answer_is_whole CHECK ((answered_at IS NULL) = (report IS NULL))
);
