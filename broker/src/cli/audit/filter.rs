//! What to search for, alike in all commands.

use clap::Args;
use duo_broker::store::audit_search::Filter;
use duo_contract::audit::{AuditKind, Outcome};
use time::OffsetDateTime;
use uuid::Uuid;

use super::moment;

#[derive(Debug, Args)]
pub(super) struct FilterArguments {
    /// Of this feature, such as code_completion.
    #[arg(long)]
    feature: Option<String>,
    /// Of this model.
    #[arg(long)]
    model: Option<String>,
    /// Of this GitLab user id (a hash) or API token id.
    #[arg(long)]
    user: Option<String>,
    /// Of this GitLab instance.
    #[arg(long)]
    instance: Option<String>,
    /// Of this client program, as its headers say.
    #[arg(long)]
    client: Option<String>,
    /// Not before: a span before now (10m, 2h, 30d) or a moment (2026-11-22T10:00:00Z).
    #[arg(long, value_parser = moment)]
    since: Option<OffsetDateTime>,
    /// Before: a span before now or a moment.
    #[arg(long, value_parser = moment)]
    until: Option<OffsetDateTime>,
    /// Ended so: completed, failed, cancelled, refused, expired or abandoned.
    #[arg(long)]
    outcome: Option<Outcome>,
    /// Ended for this reason.
    #[arg(long)]
    reason: Option<String>,
    /// Records of this kind: admitted, ended, changed, sign_in_failed or read.
    #[arg(long, value_parser = kind)]
    kind: Option<AuditKind>,
    /// Of this request.
    #[arg(long, value_name = "ID")]
    request: Option<Uuid>,
    /// About this job.
    #[arg(long, value_name = "ID")]
    job: Option<Uuid>,
    /// With this correlation id.
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// Of this trace.
    #[arg(long, value_name = "ID")]
    trace: Option<String>,
    /// With this text in what is recorded, in capitals or not.
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Who this reading is recorded under; the person logged in here by default.
    #[arg(long)]
    actor: Option<String>,
}

impl FilterArguments {
    /// The filter, and who reads.
    pub(super) fn read(self) -> (Filter, Option<String>) {
        let filter = Filter {
            feature: self.feature,
            model: self.model,
            user: self.user,
            instance: self.instance,
            client: self.client,
            since: self.since,
            until: self.until,
            outcome: self.outcome,
            reason: self.reason,
            request_id: self.request,
            job_id: self.job,
            correlation_id: self.correlation,
            trace_id: self.trace,
            kind: self.kind,
            q: self.text,
        };
        (filter, self.actor)
    }
}

fn kind(text: &str) -> Result<AuditKind, String> {
    AuditKind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| {
            let known: Vec<_> = AuditKind::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("has to be one of {}", known.join(", "))
        })
}
