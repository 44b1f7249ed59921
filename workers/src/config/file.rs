//! The worker file: which model servers stand beside this worker, and which
//! models each of them serves.

mod slots;

use std::collections::BTreeSet;

use duo_contract::name::ModelName;
use http::HeaderValue;
use reqwest::Url;
use secrecy::SecretString;
use serde::Deserialize;

pub use slots::Slots;
use slots::SlotsField;

/// One model server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Its name in logs, metrics and presence.
    pub name: String,
    /// Base URL without a final slash; endpoint paths are appended.
    pub url: String,
    /// Requests it takes at once.
    pub slots: Slots,
    /// Which program it is.
    pub kind: ServerKind,
    /// Key that its API asks for.
    pub api_key: Option<SecretString>,
    /// What it serves.
    pub models: Vec<ServedConfig>,
}

/// One model of a server.
#[derive(Debug, Clone)]
pub struct ServedConfig {
    /// The name configured in the broker.
    pub model: ModelName,
    /// The name sent to the server.
    pub served_as: String,
    /// Does the server turn the model's tool calls into data? vLLM does with `--enable-auto-tool-choice` and a parser.
    pub tools: bool,
}

/// Which program a model server is; it decides how an answer is continued and where its health is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerKind {
    /// vLLM, and servers that take its extensions, such as SGLang.
    #[default]
    Vllm,
    /// llama.cpp's `llama-server`.
    Llama,
    /// Any other server with OpenAI's API.
    Openai,
    /// A server with KServe's inference API of the second version, such as Triton or MLServer: no language models.
    Kserve,
}

impl ServerKind {
    /// The kind's name in the file, and the `model_engine` label of metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ServerKind::Vllm => "vllm",
            ServerKind::Llama => "llama",
            ServerKind::Openai => "openai",
            ServerKind::Kserve => "kserve",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    servers: Vec<Server>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Server {
    name: String,
    url: String,
    slots: SlotsField,
    #[serde(default)]
    slots_min: Option<u32>,
    #[serde(default)]
    slots_max: Option<u32>,
    #[serde(default)]
    kind: ServerKind,
    #[serde(default)]
    api_key_env: Option<String>,
    #[serde(default)]
    api_key_file: Option<String>,
    models: Vec<Served>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Served {
    model: String,
    #[serde(default)]
    served_as: Option<String>,
    #[serde(default)]
    tools: bool,
}

/// Reads the file's text; `variable` looks up an environment variable.
pub(super) fn parse(
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<ServerConfig>, Vec<String>> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| vec![error.to_string()])?;
    let mut problems = Vec::new();
    if file.servers.is_empty() {
        problems.push("servers is empty: name at least one model server".to_owned());
    }
    let mut names = BTreeSet::new();
    let servers = file
        .servers
        .into_iter()
        .map(|server| {
            if !names.insert(server.name.clone()) {
                problems.push(format!("two servers are named {:?}", server.name));
            }
            server.checked(&variable, &mut problems)
        })
        .collect();
    if problems.is_empty() {
        Ok(servers)
    } else {
        Err(problems)
    }
}

impl Server {
    fn checked(self, variable: impl Fn(&str) -> Option<String>, problems: &mut Vec<String>) -> ServerConfig {
        let name = self.name;
        let mut problem = |text: String| problems.push(format!("server {name:?}: {text}"));
        if name.is_empty() {
            problem("name is empty".to_owned());
        }
        let url = base_url(&self.url).unwrap_or_else(|text| {
            problem(text);
            String::new()
        });
        let slots =
            Slots::checked(self.slots, self.slots_min, self.slots_max, self.kind).unwrap_or_else(|text| {
                problem(text);
                Slots::Fixed(1)
            });
        if self.models.is_empty() {
            problem("models is empty: name at least one".to_owned());
        }
        let api_key = match (self.api_key_env, self.api_key_file) {
            (Some(_), Some(_)) => Err("api_key_env and api_key_file are both set: keep one".to_owned()),
            (Some(env), None) if env.starts_with("DUO_") => {
                Err(format!("api_key_env {env} may not start with DUO_"))
            }
            (Some(env), None) => match variable(&env).filter(|key| !key.is_empty()) {
                Some(key) => Ok(Some(key)),
                None => Err(format!("the environment variable {env} (api_key_env) is not set")),
            },
            (None, Some(path)) => match std::fs::read_to_string(&path) {
                Ok(key) if !key.trim().is_empty() => Ok(Some(key.trim().to_owned())),
                Ok(_) => Err(format!("api_key_file {path} is empty")),
                Err(error) => Err(format!("api_key_file {path} cannot be read: {error}")),
            },
            (None, None) => Ok(None),
        };
        let api_key = api_key.and_then(|key| match &key {
            Some(text) if HeaderValue::from_bytes(text.as_bytes()).is_err() => {
                Err("the API key holds what no HTTP header can carry".to_owned())
            }
            _ => Ok(key),
        });
        let api_key = api_key.unwrap_or_else(|text| {
            problem(text);
            None
        });
        let models = self.models.into_iter().filter_map(|served| {
            let model = ModelName::parse(&served.model)
                .map_err(|error| problem(format!("model {:?}: {error}", served.model)))
                .ok()?;
            let served_as = served.served_as.unwrap_or(served.model);
            let tools = served.tools;
            Some(ServedConfig {
                model,
                served_as,
                tools,
            })
        });
        let models: Vec<_> = models.collect();
        let distinct: BTreeSet<_> = models.iter().map(|served| &served.model).collect();
        if distinct.len() < models.len() {
            problem("a model is named twice".to_owned());
        }
        ServerConfig {
            url,
            slots,
            kind: self.kind,
            api_key: api_key.map(SecretString::from),
            models,
            name,
        }
    }
}

/// The URL that endpoint paths are appended to.
fn base_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("url is not a URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("url may not hold a user or password: use api_key_env or api_key_file".to_owned());
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("url {text:?} must start with http:// or https://"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("url may not hold a query or a fragment: paths are appended to it".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests;
