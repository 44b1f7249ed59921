-- The requests numbered $1 up to $2 with the seed $3, the first of all at $4, one each $5 microseconds, of $6 people.
WITH base AS (UPDATE audit_head SET size = size + 2 * ($2::bigint - $1::bigint) RETURNING size - 2 * ($2::bigint - $1::bigint) AS first),
 requests AS MATERIALIZED (
  SELECT n, hashint8extended(n, $3::bigint) AS a, hashint8extended(n, $3::bigint + 1) AS b,
         $4::timestamptz + n * (interval '1 microsecond' * $5::bigint) AS at
  FROM generate_series($1::bigint, $2::bigint - 1) AS n),
 shaped AS MATERIALIZED (
  SELECT n, at, a, b,
   (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || lpad(to_hex(a & 4095), 3, '0')
     || to_hex(8 + ((a >> 12) & 3)) || lpad(to_hex((a >> 16) & 268435455), 7, '0') || lpad(to_hex(b & 4294967295), 8, '0'))::uuid AS id,
   floor($6::bigint * power(((a >> 20) & 65535) / 65536.0, 2))::bigint AS person,
   (ARRAY['code_completion', 'code_completion', 'code_completion', 'code_completion', 'code_generation', 'duo_chat',
      'duo_chat', 'code_review_summary', 'merge_request_summary', 'vulnerability_explanation'])[1 + ((b >> 8) & 1023) % 10] AS feature,
   (b >> 18) & 1023 AS fate, 20000 + (b & 524287) * CASE WHEN (b & 3) = 0 THEN 8 ELSE 1 END AS took
  FROM requests),
 told AS (
  SELECT *, CASE WHEN fate < 960 THEN 'completed' WHEN fate < 990 THEN 'cancelled' WHEN fate < 1005 THEN 'failed' WHEN fate < 1020 THEN 'expired' ELSE 'abandoned' END AS outcome,
   CASE WHEN fate < 960 THEN NULL WHEN fate < 990 THEN 'client_gone' WHEN fate < 1005 THEN 'model_server_fault' WHEN fate < 1020 THEN 'first_byte_deadline' ELSE 'owner_gone' END AS reason,
   CASE WHEN feature LIKE 'code_co%' THEN 'codegemma' WHEN feature = 'duo_chat' THEN 'mixtral' ELSE 'mistral' END AS model
  FROM shaped),
 placed AS MATERIALIZED (
  INSERT INTO audit_events
      (day, request_id, kind, occurred_at, broker, auth, instance_id, user_id, token_id, client, address, route, feature,
       lane, model, prompt_id, prompt_version, config_revision, stream, body_bytes, correlation_id, trace_id, outcome,
       reason, worker, attempts, queue_wait_us, first_byte_us, duration_us, input_tokens, output_tokens, seq)
  SELECT (at AT TIME ZONE 'UTC')::date, id, kind, CASE kind WHEN 'ended' THEN at + took * interval '1 microsecond' ELSE at END, 'generated-' || n % 2, 'gitlab',
    'generated-' || n % 3, encode(sha256(('user ' || person)::bytea), 'hex'), 'jwt-' || n / 50, 'gitlab-workhorse/17.6', '10.0.' || person % 256 || '.' || n % 250,
    '/v2/code/completions', feature, CASE WHEN feature = 'code_completion' THEN 'keystroke' ELSE 'interactive' END, model, feature || '/base', '1.0.0', 7, n % 2 = 0, 500 + n % 4000,
    to_hex(a), md5(n::text),
    CASE kind WHEN 'ended' THEN outcome END, CASE kind WHEN 'ended' THEN reason END, CASE kind WHEN 'ended' THEN 'worker-' || n % 5 END,
    CASE kind WHEN 'ended' THEN 1 END, CASE kind WHEN 'ended' THEN took / 20 END, CASE kind WHEN 'ended' THEN took / 5 END, CASE kind WHEN 'ended' THEN took END,
    CASE kind WHEN 'ended' THEN 200 + n % 3000 END, CASE kind WHEN 'ended' THEN took / 10000 END,
    first + 2 * (n - $1::bigint) + (kind = 'ended')::int
  FROM told, (VALUES ('admitted'), ('ended')) AS k (kind), base
  RETURNING day, kind, occurred_at, outcome, feature, model, instance_id, reason),
 days AS (
  INSERT INTO audit_days AS d (day, first_hour, last_hour)
  SELECT day, min(date_trunc('hour', occurred_at, 'UTC')), max(date_trunc('hour', occurred_at, 'UTC')) FROM placed GROUP BY day
  ON CONFLICT (day) DO UPDATE SET first_hour = least(d.first_hour, excluded.first_hour), last_hour = greatest(d.last_hour, excluded.last_hour)
   WHERE excluded.first_hour < d.first_hour OR excluded.last_hour > d.last_hour)
INSERT INTO audit_counts AS c (hour, day, kind, outcome, feature, model, instance_id, reason, records)
SELECT date_trunc('hour', occurred_at, 'UTC'), day, kind, COALESCE(outcome, ''), COALESCE(feature, ''), COALESCE(model, ''), COALESCE(instance_id, ''), COALESCE(reason, ''), count(*)
FROM placed GROUP BY 1,2,3,4,5,6,7,8
ON CONFLICT (hour, day, kind, outcome, feature, model, instance_id, reason) DO UPDATE SET records = c.records + excluded.records
