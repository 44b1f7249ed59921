//! What a filter lets through, in SQL: one text for pages, counts, exports and samples.

/// A checked query of the records that lie in a stretch, between two moments, and that a filter lets through. Its text is
/// `$head`, the table and what its indexes know, `$between`, what they do not know, `$tail`; `$more` are the parameters
/// from `$19` on.
macro_rules! matching {
    ($query:ident!($($into:ty)?), $filter:expr, $stretch:expr, $since:expr, $until:expr,
     $head:tt, $between:tt, $tail:tt $(, $more:expr)*) => {
        sqlx::$query!(
            $($into,)?
            $head
                + " FROM audit_events
                    WHERE day BETWEEN $1 AND $2
                      AND ($3::date[] IS NULL OR day = ANY($3))
                      AND ($4::timestamptz IS NULL OR occurred_at >= $4)
                      AND ($5::timestamptz IS NULL OR occurred_at < $5)
                      AND ($6::text IS NULL OR hashtextextended(COALESCE(user_id, token_id), 0) = hashtextextended($6, 0)
                           AND COALESCE(user_id, token_id) = $6)
                      AND ($7::uuid IS NULL OR request_id = $7)
                      AND ($8::uuid IS NULL OR job_id = $8) "
                + $between
                + " (($9::text IS NULL OR feature = $9)
                     AND ($10::text IS NULL OR model = $10)
                     AND ($11::text IS NULL OR instance_id = $11)
                     AND ($12::text IS NULL OR client = $12)
                     AND ($13::text IS NULL OR outcome = $13)
                     AND ($14::text IS NULL OR reason = $14)
                     AND ($15::text IS NULL OR correlation_id = $15)
                     AND ($16::text IS NULL OR trace_id = $16)
                     AND ($17::text IS NULL OR kind = $17)
                     AND ($18::text IS NULL OR strpos(lower(concat_ws(E'\\x1f', route, feature, model, prompt_id, user_id,
                          token_id, client, address, worker, reason, correlation_id, details)), lower($18)) > 0)) "
                + $tail,
            $stretch.first(),
            $stretch.last(),
            $stretch.only() as Option<&[time::Date]>,
            $since as Option<time::OffsetDateTime>,
            $until as Option<time::OffsetDateTime>,
            $filter.user.as_deref(),
            $filter.request_id,
            $filter.job_id,
            $filter.feature.as_deref(),
            $filter.model.as_deref(),
            $filter.instance.as_deref(),
            $filter.client.as_deref(),
            $filter.outcome.map(duo_contract::audit::Outcome::as_str),
            $filter.reason.as_deref(),
            $filter.correlation_id.as_deref(),
            $filter.trace_id.as_deref(),
            $filter.kind.map(duo_contract::audit::AuditKind::as_str),
            $filter.q.as_deref()
            $(, $more)*
        )
    };
}

pub(super) use matching;
