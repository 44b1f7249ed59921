-- GitLab waits 15 s for the categories of a question; an answer or a refusal has to be there before that. An
-- administrator who has set another deadline keeps it.
DO $$
DECLARE
    next bigint;
BEGIN
    UPDATE features SET first_byte_within_ms = 12000, end_within_ms = 12000
    WHERE name = 'categorize_question' AND first_byte_within_ms = 15000 AND end_within_ms = 15000;
    -- A revision that brokers have read already is not changed under them: this is a new one.
    IF FOUND AND NOT EXISTS (SELECT FROM config_outbox) THEN
        UPDATE config_revision SET revision = revision + 1 RETURNING revision INTO next;
        INSERT INTO config_outbox (revision) VALUES (next);
        INSERT INTO change_records (actor, what, subject, before, after, revision)
        VALUES ('migration 0008', 'feature.put', 'categorize_question',
            '{"first_byte_within_ms": 15000, "end_within_ms": 15000}',
            '{"first_byte_within_ms": 12000, "end_within_ms": 12000}', next);
    END IF;
END
$$;
