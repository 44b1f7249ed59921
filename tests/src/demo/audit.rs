//! The audit records of a request, read as an auditor reads them.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use reqwest::{Client, Url};
use serde::{Deserialize, Serialize};

/// Most records asked for at once; the newest come first.
const PAGE: &str = "200";
/// The first pause between two looks; each is half as long again as the one before, for looks are recorded too.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What is shown of a record. Whatever a broker leaves out is absent here.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "each is documented where brokers write it, duo_contract::audit"
)]
pub struct Record {
    pub request_id: String,
    pub kind: Option<String>,
    pub occurred_at: Option<String>,
    pub correlation_id: Option<String>,
    pub route: Option<String>,
    pub feature: Option<String>,
    pub model: Option<String>,
    pub outcome: Option<String>,
    pub reason: Option<String>,
    pub worker: Option<String>,
    pub attempts: Option<u32>,
    pub queue_wait_us: Option<i64>,
    pub first_byte_us: Option<i64>,
    pub duration_us: Option<i64>,
    pub input_tokens: Option<i64>,
    pub output_tokens: Option<i64>,
}

#[derive(Deserialize)]
struct Page {
    events: Vec<Record>,
}

/// Where records are read, and with which right.
#[derive(Clone, Debug)]
pub(super) struct Auditor {
    /// The client to ask with.
    pub(super) http: Client,
    /// The broker.
    pub(super) broker: Url,
    /// A token with the auditor's role.
    pub(super) token: String,
    /// How long a record may take to appear.
    pub(super) max_wait: Duration,
}

impl Auditor {
    /// Waits for the terminal record of the request with this correlation id; all its records, oldest first.
    ///
    /// # Errors
    /// The records cannot be read, or the terminal one does not appear in time.
    pub(super) async fn records(&self, correlation_id: &str) -> anyhow::Result<Vec<Record>> {
        let deadline = Instant::now() + self.max_wait;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut records = self.page().await?;
            records.retain(|record| record.correlation_id.as_deref() == Some(correlation_id));
            if records.iter().any(|record| record.outcome.is_some()) {
                records.reverse();
                return Ok(records);
            }
            anyhow::ensure!(
                Instant::now() + pause < deadline,
                "no audit record of how it ended appeared within {} s ({} other records of this request are there)",
                self.max_wait.as_secs(),
                records.len(),
            );
            tokio::time::sleep(pause).await;
            pause = pause * 3 / 2;
        }
    }

    async fn page(&self) -> anyhow::Result<Vec<Record>> {
        let mut url = self.broker.join("/audit/v1/events")?;
        url.query_pairs_mut().append_pair("limit", PAGE);
        let answer = self.http.get(url).bearer_auth(&self.token).send().await;
        let answer = answer.context("the audit records cannot be read")?;
        let status = answer.status();
        let body = answer.bytes().await.context("the audit records cannot be read")?;
        anyhow::ensure!(
            status.is_success(),
            "asking for the audit records was answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        let page: Page = serde_json::from_slice(&body).context("the audit records have another shape")?;
        Ok(page.events)
    }
}
