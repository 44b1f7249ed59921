//! The demonstration: three requests as GitLab sends them, shown as a person would want to watch them.
//!
//! It asks the broker as Rails would and reads the audit records as an auditor would; it knows nothing of what lies
//! between. A demonstration is good only if each answer came whole and its audit record says so.

mod audit;
mod format;
pub mod rails;
mod screen;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use reqwest::{Client, Url};
use serde::Serialize;
use serde_json::Value;

use self::audit::Auditor;
use self::format::{Format, Reader};
use crate::table;

pub use self::audit::Record;
pub use self::screen::Screen;

/// Where everything is told when something failed.
const WHERE_TO_LOOK: &str = "Look into the logs (.local/logs of the local set-up) for the request's id, \
     and ask the broker itself: duo-broker doctor.";

/// Whom to ask, and with which rights.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The broker
    #[arg(long, value_name = "URL", env = "DUO_URL")]
    pub url: Url,
    /// A token as the GitLab instance issues it
    #[arg(long, value_name = "JWT", env = "DUO_GITLAB_JWT", hide_env_values = true)]
    pub jwt: String,
    /// A token of the broker with the auditor's role
    #[arg(long, value_name = "TOKEN", env = "DUO_AUDITOR_TOKEN", hide_env_values = true)]
    pub auditor_token: String,
    /// Seconds that one answer may take
    #[arg(long, value_name = "N", default_value_t = 120)]
    pub timeout: u64,
    /// Seconds that an audit record may take to appear
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub audit_wait: u64,
    /// Print one JSON object at the end instead
    #[arg(long)]
    pub json: bool,
}

/// What came of the demonstration.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Did all of it succeed?
    pub passed: bool,
    /// The requests, in the order they were sent.
    pub steps: Vec<Step>,
}

/// What came of one request.
#[derive(Debug, Default, Serialize)]
pub struct Step {
    /// What was asked for.
    pub name: &'static str,
    /// The path.
    pub path: &'static str,
    /// The correlation id it was sent with.
    pub correlation_id: String,
    /// The answer's text.
    pub text: String,
    /// From sending to the first text.
    pub first_token_ms: Option<f64>,
    /// From sending to the end.
    pub total_ms: Option<f64>,
    /// Everything that was wrong.
    pub problems: Vec<String>,
    /// Its audit records, oldest first.
    pub records: Vec<Record>,
}

struct Request {
    name: &'static str,
    path: &'static str,
    format: Format,
    words: &'static str,
    body: Value,
}

/// Sends all requests, one after the other, and shows them.
///
/// # Errors
/// The token is none, or nobody reads the screen. What the broker does wrong is in the report.
pub async fn run<W: Write>(options: &Options, screen: &mut Screen<W>) -> anyhow::Result<Report> {
    let http = Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(options.timeout))
        .build()
        .context("cannot make an HTTP client")?;
    let auditor = Auditor {
        http: http.clone(),
        broker: options.url.clone(),
        token: options.auditor_token.clone(),
        max_wait: Duration::from_secs(options.audit_wait),
    };
    let requests = requests();
    let mut steps = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        screen.heading(&format!("{}/{}  {}", index + 1, requests.len(), request.name))?;
        let mut step = Step {
            name: request.name,
            path: request.path,
            correlation_id: rails::request_id(),
            ..Step::default()
        };
        let body = request.body.to_string();
        let (path, length, words) = (request.path, body.len(), request.words);
        screen.line(&format!(
            "POST {path} ({words}; {length} bytes; id {})",
            step.correlation_id
        ))?;
        ask(&http, options, request, body, &mut step, screen).await?;
        if step.total_ms.is_some() {
            look_up(&auditor, &mut step).await;
            screen.line(&figures(&step))?;
        }
        for problem in &step.problems {
            screen.problem(&format!("FAILED: {problem}"))?;
        }
        steps.push(step);
    }
    show_records(&steps, screen)?;
    let passed = steps.iter().all(|step| step.problems.is_empty());
    screen.heading(if passed {
        "All three answers came whole, and the audit log says so."
    } else {
        "The demonstration FAILED."
    })?;
    if !passed {
        screen.line(WHERE_TO_LOOK)?;
    }
    Ok(Report { passed, steps })
}

fn requests() -> [Request; 3] {
    [
        Request {
            name: "Code completion",
            path: "/v2/code/completions",
            format: Format::Raw,
            words: "lib/prices.py, the rest of \"return \", streamed as raw text",
            body: rails::completion(),
        },
        Request {
            name: "Code generation",
            path: "/v4/code/suggestions",
            format: Format::Events,
            words: "lib/prices.py, from a comment, streamed as server-sent events",
            body: rails::generation(),
        },
        Request {
            name: "Chat",
            path: "/v2/chat/agent",
            format: Format::Lines,
            words: "\"What does a merge train do, in two sentences?\", streamed as JSON lines",
            body: rails::chat(),
        },
    ]
}

/// Sends one request and shows its answer as it arrives.
async fn ask<W: Write>(
    http: &Client,
    options: &Options,
    request: &Request,
    body: String,
    step: &mut Step,
    screen: &mut Screen<W>,
) -> anyhow::Result<()> {
    let mut asking = http.post(options.url.join(request.path)?);
    for (name, value) in rails::headers(&options.jwt)? {
        asking = asking.header(name, value);
    }
    if request.format == Format::Events {
        asking = asking.header("x-supports-sse-streaming", "true");
    }
    let asking = asking
        .header(rails::REQUEST_ID, &step.correlation_id)
        .header("content-type", "application/json")
        .body(body);
    let began = Instant::now();
    let mut answer = match asking.send().await {
        Ok(answer) => answer,
        Err(error) => {
            let address = &options.url;
            step.problems.push(format!(
                "{address} did not answer: {:#}",
                anyhow::Error::from(error)
            ));
            return Ok(());
        }
    };
    if !answer.status().is_success() {
        let status = answer.status();
        let body = answer.text().await.unwrap_or_default();
        step.problems.push(format!(
            "answered {status}: {}",
            body.chars().take(500).collect::<String>()
        ));
        // Refusals of a known caller are recorded too, and say why.
        step.total_ms = Some(milliseconds(began));
        return Ok(());
    }
    let mut reader = Reader::new(request.format);
    let problem = loop {
        match answer.chunk().await {
            Ok(Some(bytes)) => match reader.feed(&bytes) {
                Ok(text) if text.is_empty() => {}
                Ok(text) => {
                    step.first_token_ms.get_or_insert_with(|| milliseconds(began));
                    step.text.push_str(&text);
                    screen.piece(&text)?;
                }
                Err(problem) => break Some(problem),
            },
            Ok(None) => break reader.end().err(),
            Err(error) => break Some(format!("the answer was cut: {:#}", anyhow::Error::from(error))),
        }
    };
    step.total_ms = Some(milliseconds(began));
    step.problems.extend(problem);
    screen.end_of_answer().context("nobody reads what is shown")
}

/// Finds the audit records of a step and holds them against what was seen.
async fn look_up(auditor: &Auditor, step: &mut Step) {
    match auditor.records(&step.correlation_id).await {
        Ok(records) => step.records = records,
        Err(error) => step.problems.push(format!("{error:#}")),
    }
    if let Some(end) = step.end()
        && end.outcome.as_deref() != Some("completed")
    {
        let outcome = end.outcome.as_deref().unwrap_or_default();
        let reason = end.reason.as_deref().unwrap_or("it gives no reason");
        let problem = format!("its audit record says {outcome} ({reason})");
        step.problems.push(problem);
    }
}

impl Step {
    /// The terminal record.
    fn end(&self) -> Option<&Record> {
        self.records.iter().find(|record| record.outcome.is_some())
    }
}

fn figures(step: &Step) -> String {
    let mut figures = Vec::new();
    if let Some(first) = step.first_token_ms {
        figures.push(format!("first token {first:.1} ms"));
    }
    if let Some(total) = step.total_ms {
        figures.push(format!("whole answer {total:.1} ms"));
    }
    if let Some(end) = step.end() {
        if let Some(wait) = end.queue_wait_us {
            figures.push(format!("of it in the queue {} ms", from_micros(Some(wait))));
        }
        if let Some(worker) = &end.worker {
            figures.push(format!("worker {worker}"));
        }
    }
    figures.join(" · ")
}

fn show_records<W: Write>(steps: &[Step], screen: &mut Screen<W>) -> io::Result<()> {
    let records: Vec<_> = steps.iter().flat_map(|step| &step.records).collect();
    if records.is_empty() {
        return Ok(());
    }
    screen.heading("Audit records of these requests (times in ms, from acceptance by the broker)")?;
    let rows: Vec<_> = records.iter().map(|record| row(record)).collect();
    let headings = [
        "REQUEST",
        "RECORD",
        "OUTCOME",
        "FEATURE",
        "MODEL",
        "WORKER",
        "TRIES",
        "QUEUED",
        "FIRST",
        "TOTAL",
        "TOKENS IN",
        "OUT",
    ];
    for line in table::lines(0, &headings, &rows) {
        screen.line(&line)?;
    }
    Ok(())
}

fn row(record: &Record) -> Vec<String> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let number = |field: Option<i64>| field.map_or_else(String::new, |number| number.to_string());
    vec![
        record.request_id.clone(),
        text(&record.kind),
        text(&record.outcome),
        text(&record.feature),
        text(&record.model),
        text(&record.worker),
        number(record.attempts.map(i64::from)),
        from_micros(record.queue_wait_us),
        from_micros(record.first_byte_us),
        from_micros(record.duration_us),
        number(record.input_tokens),
        number(record.output_tokens),
    ]
}

fn from_micros(micros: Option<i64>) -> String {
    micros.map_or_else(String::new, |micros| format!("{:.2}", micros as f64 / 1000.0))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
