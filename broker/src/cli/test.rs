//! `duo-broker test`: does a model answer, does a feature? A running broker asks.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use duo_contract::name::{FeatureName, ModelName};
use serde_json::Value;

use super::output::{self, line};
use super::remote::Broker;

/// A test takes three seconds at most; the rest is for a broker that is busy.
const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Subcommand)]
pub(super) enum TestCommand {
    /// Send a small request for this very model, whatever its features.
    #[command(after_long_help = "Examples:
  duo-broker token create --name ops --role admin > ops.token
  DUO_ADMIN_TOKEN_FILE=ops.token duo-broker test model mistral
  DUO_ADMIN_TOKEN_FILE=ops.token duo-broker test model bge --as embedding --url http://broker-2:5052")]
    Model {
        /// Its name in the configuration.
        #[arg(value_parser = |text: &str| ModelName::parse(text))]
        name: ModelName,
        /// chat, completion or embedding; without it, as its features ask it.
        #[arg(long = "as", value_parser = ["chat", "completion", "embedding"])]
        way: Option<String>,
        #[command(flatten)]
        how: How,
    },
    /// Send a small request by this feature's own prompt, to its own model.
    Feature {
        /// Its id, such as duo_chat.
        #[arg(value_parser = |text: &str| FeatureName::parse(text))]
        name: FeatureName,
        /// The model to ask, for the OpenAI features, which have none of their own.
        #[arg(long)]
        model: Option<String>,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, Args)]
pub(super) struct How {
    /// A broker's address; else DUO_URL, else http://127.0.0.1:5052.
    #[arg(long)]
    url: Option<String>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: TestCommand) -> anyhow::Result<ExitCode> {
    let (path, query, how) = match command {
        TestCommand::Model { name, way, how } => {
            let path = format!("/admin/v1/models/{}/test", segment(name.as_str()));
            (path, way.map(|way| format!("as={way}")), how)
        }
        TestCommand::Feature { name, model, how } => {
            let path = format!("/admin/v1/features/{name}/check");
            (path, model.map(|model| format!("model={}", segment(&model))), how)
        }
    };
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let broker = Broker::from_env(how.url.clone(), TIMEOUT)?;
    let answer = broker.post(&format!("{path}{query}")).await?;
    tell(&answer, how.json)?;
    Ok(match answer["outcome"] == "answered" {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn tell(answer: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(answer);
    }
    let text = |name: &str| answer[name].as_str().unwrap_or("-").to_owned();
    line(&format!("{}: {}", text("outcome"), text("message")))?;
    if answer["outcome"] == "answered" {
        let worker = text("worker");
        line(&format!(
            "by {worker} on {}, {} tokens: {}",
            text("endpoint"),
            answer["output_tokens"],
            text("answer")
        ))?;
    }
    line(&format!("request {}", text("request_id")))?;
    Ok(())
}

/// A name as one segment of a path or a value of a query.
fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes().fold(String::new(), |mut text, byte| {
        match plain(byte) {
            true => text.push(char::from(byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
        text
    })
}
