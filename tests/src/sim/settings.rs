//! Settings of the simulated model server; all of them may change while it runs.

use clap::{Args, Parser};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fault::Fault;

/// How the simulated model server behaves. `Settings::default()` is what the program does without flags.
#[derive(Args, Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of a served model; repeat it for several
    #[arg(long = "model", value_name = "NAME", default_value = "sim")]
    pub model: Vec<String>,
    /// Requests generated at once; more wait in the server's own line, without limit
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub slots: usize,
    /// Milliseconds from getting a slot to the first token
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub ttft_ms: u64,
    /// Milliseconds between tokens
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub pace_ms: u64,
    /// Natural length of an answer in tokens: it ends here with `stop`, if max_tokens allows
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub tokens: usize,
    /// Longest prompt and answer together, in tokens (a prompt token holds three bytes)
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub context: usize,
    /// Tokens the key-value cache is said to hold: /metrics tells how full running requests make it; 0 for --slots requests
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub kv_tokens: usize,
    /// Tokens in one event
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub chunk_tokens: usize,
    /// Events in one HTTP chunk
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub coalesce: usize,
    /// Fraction of requests answered with --fail-status
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub fail_rate: f64,
    /// Status of a failed request
    #[arg(long, value_name = "STATUS", default_value_t = 500)]
    pub fail_status: u16,
    /// Seconds to put in Retry-After of a failed request
    #[arg(long, value_name = "SECONDS")]
    pub retry_after: Option<u64>,
    /// Fraction whose connection is closed before any header
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub reset_rate: f64,
    /// Fraction whose connection is closed in mid-stream
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub cut_rate: f64,
    /// Fraction that falls silent for ever, before the first token or later
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub stall_rate: f64,
    /// Fraction that ends early with finish_reason "abort", then [DONE]
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub abort_rate: f64,
    /// Fraction that ends early with an error event, then [DONE]
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub error_mid_rate: f64,
    /// Fraction with one event of broken JSON in mid-stream
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub malformed_rate: f64,
    /// Tokens sent before a fault in mid-stream; drawn per request if not given
    #[arg(long, value_name = "N")]
    pub fault_after: Option<usize>,
    /// Seed of the fault draws: equal seeds give equal faults to the first, second, ... request
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Begin with "Final Answer:" where the request stops at "Observation:", as a chat agent's model would
    #[arg(long)]
    pub react: bool,
    /// Answer every request with this text, a token for each four characters; it is never continued
    #[arg(long, value_name = "TEXT")]
    pub say: Option<String>,
    /// Ask for this key on /v1/* and answer 401 without it
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Prefix of ids to look for in prompts; GET /control/running lists those under way
    #[arg(long, value_name = "PREFIX")]
    pub follow: Option<String>,
    /// Fail this many requests with --fail-status, from the next one on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub fail_next: usize,
    /// Faults of the next requests, one each: fail, reset, cut, stall, abort, error-mid, malformed
    #[arg(long, value_name = "FAULT", value_delimiter = ',')]
    pub next_faults: Vec<Fault>,
}

impl Settings {
    /// These settings with the fields of a JSON object replaced; `ttft-ms` and `ttft_ms` are the same field.
    ///
    /// # Errors
    /// A field is unknown or has the wrong type, or `change` is not an object.
    pub fn patched(&self, change: &Value) -> Result<Self, String> {
        let mut fields = serde_json::to_value(self).map_err(|error| error.to_string())?;
        let change = change
            .as_object()
            .ok_or("the settings to change must be a JSON object")?;
        for (name, value) in change {
            fields[name.replace('-', "_")] = value.clone();
        }
        serde_json::from_value(fields).map_err(|error| error.to_string())
    }
}

impl Default for Settings {
    fn default() -> Self {
        #[derive(Parser)]
        #[command(no_binary_name = true)]
        struct Flags {
            #[command(flatten)]
            settings: Settings,
        }
        // Defaults live beside the flags; without arguments there is nothing that could fail to parse.
        Flags::parse_from(None::<&str>).settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_patch_changes_what_it_names_and_refuses_what_it_does_not_know() {
        let changed = Settings::default()
            .patched(&json!({"ttft-ms": 7, "model": ["a", "b"]}))
            .unwrap();
        let expected = Settings {
            ttft_ms: 7,
            model: vec!["a".to_owned(), "b".to_owned()],
            ..Settings::default()
        };
        assert_eq!(changed, expected);
        assert!(
            Settings::default()
                .patched(&json!({"speed": 1}))
                .unwrap_err()
                .contains("speed")
        );
        assert!(Settings::default().patched(&json!([])).is_err());
    }
}
