-- The numbers of one day's records as runs without a gap, in order; a row without numbers counts the records that have none.
-- They come from the partition's own index of numbers, in its order: by way of the table their days would have to be read,
-- and what PostgreSQL guesses of a partition without statistics makes it sort.
CREATE FUNCTION audit_partition_numbers(of_day date) RETURNS TABLE (first_seq bigint, last_seq bigint, records bigint)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT min(seq), max(seq), count(*)
         FROM (SELECT seq, seq - row_number() OVER (ORDER BY seq) AS run FROM %I) AS numbered
         GROUP BY run ORDER BY 1', 'audit_events_' || to_char(of_day, 'YYYYMMDD'));
END $$;
