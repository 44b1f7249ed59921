-- As in 0014, for files, batches and responses too: what is kept for days only.
CREATE OR REPLACE FUNCTION drop_job_partitions(of_table text, before date) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    partition text;
    dropped integer := 0;
BEGIN
    IF of_table NOT IN ('jobs', 'job_inputs', 'job_results', 'files', 'file_chunks', 'batches', 'responses') THEN
        RAISE EXCEPTION '% is no table of jobs', of_table USING ERRCODE = 'insufficient_privilege';
    END IF;
    FOR partition IN
        SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = of_table::regclass AND right(relname, 8) < to_char(before, 'YYYYMMDD')
    LOOP
        EXECUTE format('DROP TABLE %I', partition);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;
