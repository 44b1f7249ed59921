-- What prompts and answers leave behind: digests on terminal records, or the texts themselves, sealed, by the policy of
-- their feature; and what keeps texts and records from being dropped.

-- hexadecimal, on terminal records: of the text, or of the sealed text that audit_bodies holds
ALTER TABLE audit_events ADD COLUMN prompt_sha256 text;
ALTER TABLE audit_events ADD COLUMN answer_sha256 text;

-- Sealed prompts and answers, cut into pieces, by the day on which they are dropped.
CREATE TABLE audit_bodies (
    drop_on     date NOT NULL,
    request_id  uuid NOT NULL,
    part        text COLLATE "C" NOT NULL CHECK (part IN ('prompt', 'answer')),
    chunk       integer NOT NULL CHECK (chunk >= 0),
    chunks      integer NOT NULL CHECK (chunks > chunk),
    key_id      uuid NOT NULL,
    -- of the whole text before it was cut
    bytes       bigint NOT NULL,
    truncated   boolean NOT NULL,
    -- revision of the rules that took secrets out, and how many they took
    rules       integer NOT NULL,
    redacted    integer NOT NULL,
    -- of the whole sealed text, hexadecimal
    sha256      text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    sealed      bytea NOT NULL,
    PRIMARY KEY (request_id, part, chunk, drop_on)
) PARTITION BY RANGE (drop_on);
-- ciphertext does not compress
ALTER TABLE audit_bodies ALTER COLUMN sealed SET STORAGE EXTERNAL;

-- What opens them, wrapped by a master key that is not in the database. Without its key a text is erased.
CREATE TABLE audit_keys (
    drop_on      date NOT NULL,
    key_id       uuid NOT NULL,
    -- such as user:…, token:…
    subject      text COLLATE "C" NOT NULL,
    -- the day of the requests whose texts it seals
    period       date NOT NULL,
    master       text,
    wrapped      bytea,
    created_at   timestamptz NOT NULL DEFAULT now(),
    destroyed_at timestamptz,
    PRIMARY KEY (key_id, drop_on),
    CONSTRAINT destroyed_keys_hold_nothing CHECK (num_nulls(master, wrapped) IN (0, 2)
                                                  AND (wrapped IS NULL) = (destroyed_at IS NOT NULL))
) PARTITION BY RANGE (drop_on);
CREATE INDEX audit_keys_subject ON audit_keys (subject, period);
CREATE INDEX audit_keys_period ON audit_keys (period);

CREATE FUNCTION refuse_revival() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.destroyed_at IS NOT NULL THEN
        RAISE EXCEPTION 'a destroyed key stays destroyed' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER no_revival BEFORE UPDATE ON audit_keys FOR EACH ROW EXECUTE FUNCTION refuse_revival();
CREATE TRIGGER no_delete BEFORE DELETE ON audit_keys FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_bodies FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Records and texts of these moments, and keys of these subjects, are not dropped nor destroyed.
CREATE TABLE audit_holds (
    id        uuid PRIMARY KEY,
    -- of one subject's texts and keys; absent: of all
    subject   text,
    since     timestamptz NOT NULL,
    until     timestamptz,
    reason    text NOT NULL,
    placed_by text NOT NULL,
    placed_at timestamptz NOT NULL DEFAULT now(),
    lifted_by text,
    lifted_at timestamptz,
    CONSTRAINT lifted_by_somebody CHECK (num_nulls(lifted_by, lifted_at) IN (0, 2)),
    CONSTRAINT some_time CHECK (until > since)
);

-- Makes the partitions of the texts that one day drops, as create_audit_partition does for records.
CREATE FUNCTION create_audit_body_partition(of_day date) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    parent text;
    partition text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('create_audit_body_partition'));
    IF to_regclass('audit_bodies_' || to_char(of_day, 'YYYYMMDD')) IS NOT NULL THEN
        RETURN false;
    END IF;
    FOREACH parent IN ARRAY ARRAY['audit_keys', 'audit_bodies'] LOOP
        partition := parent || '_' || to_char(of_day, 'YYYYMMDD');
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', partition, parent);
        EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I '
                       'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', partition);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                       parent, partition, of_day, of_day + 1);
    END LOOP;
    RETURN true;
END $$;

-- The days of the partitions of one of the partitioned audit tables.
CREATE FUNCTION audit_partition_days(of_table text) RETURNS SETOF date LANGUAGE sql STABLE AS $$
    SELECT to_date(right(relname, 8), 'YYYYMMDD')
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = of_table::regclass
$$;

-- Keeps writers out of one day's partition of one of them until the transaction ends; false when there is none. Like the
-- next one it runs with its owner's rights where the broker's own role owns no table (deploy/postgres/roles.sql).
CREATE FUNCTION lock_audit_partition(of_table text, of_day date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    partition text := of_table || '_' || to_char(of_day, 'YYYYMMDD');
BEGIN
    IF of_table NOT IN ('audit_events', 'audit_bodies', 'audit_keys') THEN
        RAISE EXCEPTION '% is no audit table', of_table USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF to_regclass(partition) IS NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE %I IN SHARE MODE', partition);
    RETURN true;
END $$;

-- Drops one day's partition of one of them, and with records what is counted of them; false when there is none. Records of
-- today and yesterday are never dropped, whoever asks.
CREATE FUNCTION drop_audit_partition(of_table text, of_day date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    partition text := of_table || '_' || to_char(of_day, 'YYYYMMDD');
BEGIN
    IF of_table NOT IN ('audit_events', 'audit_bodies', 'audit_keys')
       OR of_table = 'audit_events' AND of_day >= (now() AT TIME ZONE 'UTC')::date - 1 THEN
        RAISE EXCEPTION '% of % is not dropped', of_table, of_day USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF to_regclass(partition) IS NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE %I', partition);
    IF of_table = 'audit_events' THEN
        DELETE FROM audit_counts WHERE day = of_day;
        DELETE FROM audit_days WHERE day = of_day;
    END IF;
    RETURN true;
END $$;

-- The newest record of a drop says which numbers have no record any more.
CREATE INDEX audit_events_drops ON audit_events (seq) WHERE route = 'retention.drop_records';

-- How far records were forwarded, by where they go.
CREATE TABLE audit_forwards (
    target     text COLLATE "C" PRIMARY KEY,
    -- the number of the next record to forward
    next_seq   bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
