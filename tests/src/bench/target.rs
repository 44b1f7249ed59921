//! What is asked, of whom, and the right answers.
//!
//! Answers to chats follow from the prompt alone. What the broker makes of a code completion is its own affair, so
//! those answers are learned: each request is sent once, and the answer follows from the prompt that the simulated
//! model server then saw.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use reqwest::{Client, Url};
use serde_json::{Value, json};

use super::Options;
use super::check::Shape;
use super::load::{Ask, Target};
use crate::demo::rails;
use crate::sim::expected;

/// Different requests of each kind; an answer to another's request is noticed.
const ASKS: usize = 64;
/// Bytes of a chat's body that are not its filling, and about those of a line of it.
const ENVELOPE: usize = 300;
const LINE: usize = 80;
/// No request of the preparations takes longer.
const LONGEST_STEP: Duration = Duration::from_secs(20);

/// The servers to be measured, known to answer.
#[derive(Debug)]
pub struct Servers {
    http: Client,
    direct: Url,
    broker: Option<Url>,
    /// The simulated server's settings.
    pub settings: Value,
}

/// What chats are like.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// How their answers are written.
    pub shape: Shape,
    /// Tokens of an answer.
    pub tokens: usize,
    /// About the size of a body; as small as they are, if less.
    pub bytes: usize,
    /// How many different ones.
    pub count: usize,
}

/// A way from the generator to the model server.
#[derive(Clone, Debug)]
pub struct Way {
    /// `direct`, `broker` or a peer's name.
    pub over: String,
    /// What is sent on it.
    pub target: Target,
}

impl Servers {
    /// Looks at the model server's settings, and refuses what would not be measured fairly.
    ///
    /// # Errors
    /// It is away, slow on purpose, or says less than is to be measured.
    pub async fn look(options: &Options) -> anyhow::Result<Self> {
        let http = Client::builder().no_proxy().timeout(LONGEST_STEP).build()?;
        let direct = options.direct.clone();
        let settings: Value = get(&http, &direct, "/control").await?.json().await?;
        let setting = |name: &str| settings[name].as_u64().unwrap_or_default();
        ensure!(
            setting("ttft_ms") == 0 && setting("pace_ms") == 0,
            "the model server at {direct} waits on purpose (ttft_ms {}, pace_ms {}); set both to 0",
            setting("ttft_ms"),
            setting("pace_ms"),
        );
        ensure!(
            setting("tokens") >= options.tokens as u64,
            "the model server at {direct} says only {} tokens; {} are to be measured",
            setting("tokens"),
            options.tokens,
        );
        Ok(Self {
            http,
            direct,
            broker: options.broker.clone(),
            settings,
        })
    }

    /// The same chats with answers of so many tokens, on every way that there is: direct, through the broker,
    /// through each peer.
    ///
    /// # Errors
    /// An address cannot be found, or the broker's token is missing.
    pub fn ways(&self, options: &Options, shape: Shape, tokens: usize) -> anyhow::Result<Vec<Way>> {
        let kind = Kind {
            shape,
            tokens,
            bytes: 0,
            count: ASKS,
        };
        self.ways_of(options, kind)
    }

    /// The same for chats of this kind.
    ///
    /// # Errors
    /// As [`Servers::ways`].
    pub fn ways_of(&self, options: &Options, kind: Kind) -> anyhow::Result<Vec<Way>> {
        let model = self.settings["model"][0]
            .as_str()
            .context("the model server has no model")?;
        let mut ways = vec![("direct", &self.direct, None, model)];
        if let Some(broker) = &self.broker {
            let token = options.client_token.as_deref();
            let token = token.context("the broker wants a token: DUO_CLIENT_TOKEN")?;
            ways.push(("broker", broker, Some(token), &options.model));
        }
        for peer in &options.peers {
            ways.push((&peer.name, &peer.url, options.peer_key.as_deref(), model));
        }
        ways.into_iter()
            .map(|(over, url, token, model)| {
                let header = token.map(|token| ("authorization".to_owned(), format!("Bearer {token}")));
                let headers = header.into_iter().collect();
                Ok(Way {
                    over: over.to_owned(),
                    target: chats(address(url)?, headers, model, kind)?,
                })
            })
            .collect()
    }

    /// The client of all that is no load.
    #[must_use]
    pub fn http(&self) -> &Client {
        &self.http
    }

    /// Waits until the broker answers a chat for the first and the last of `models`.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn until_served(&self, options: &Options, models: &[String]) -> anyhow::Result<()> {
        let (broker, token) = (self.broker.as_ref(), options.client_token.as_deref());
        let url = broker
            .context("this needs a broker")?
            .join("/v1/chat/completions")?;
        let until = Instant::now() + LONGEST_STEP;
        for model in models.iter().take(1).chain(models.last()) {
            let body =
                json!({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "ready?"}]});
            loop {
                let request = self.http.post(url.clone()).bearer_auth(token.unwrap_or_default());
                let answer = request
                    .header("content-type", "application/json")
                    .body(body.to_string())
                    .send()
                    .await?;
                let status = answer.status();
                if status.is_success() {
                    break;
                }
                let text = answer.text().await?;
                ensure!(
                    Instant::now() < until,
                    "the broker does not serve {model}: {status} {text}"
                );
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }

    /// The text at an address.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn text(&self, url: &Url) -> reqwest::Result<String> {
        let answer = self.http.get(url.clone()).send().await?;
        answer.error_for_status()?.text().await
    }

    /// Changes settings of the simulated model server.
    ///
    /// # Errors
    /// It is away or refuses.
    pub async fn set(&self, settings: &Value) -> anyhow::Result<()> {
        let url = self.direct.join("/control")?;
        self.http
            .patch(url)
            .header("content-type", "application/json")
            .body(settings.to_string())
            .send()
            .await?
            .error_for_status()
            .context("the simulated model server does not take these settings")?;
        Ok(())
    }

    /// Code completions as GitLab sends them; nothing when there is no broker or no JWT.
    ///
    /// # Errors
    /// The broker does not answer one, or the model server was asked something else.
    pub async fn code_completions(&self, options: &Options) -> anyhow::Result<Option<Target>> {
        let (Some(broker), Some(jwt)) = (&self.broker, &options.jwt) else {
            return Ok(None);
        };
        let headers: Vec<_> = rails::headers(jwt)?
            .into_iter()
            .filter(|(name, _)| *name != rails::USER)
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let mut target = Target {
            address: address(broker)?,
            path: "/v2/code/completions",
            headers,
            person_each: true,
            shape: Shape::CodeCompletion,
            asks: Vec::with_capacity(ASKS),
        };
        for number in 0..ASKS {
            let marker = format!("sum_{number:04}");
            let body = code_completion(&marker).to_string();
            let expected = self.learn(&target, &body, &marker).await?;
            target.asks.push(Ask { body, expected });
        }
        Ok(Some(target))
    }

    /// Sends `body` once and works out the answer from what the model server was asked.
    async fn learn(&self, target: &Target, body: &str, marker: &str) -> anyhow::Result<String> {
        let url = self
            .broker
            .as_ref()
            .context("learning needs a broker")?
            .join(target.path)?;
        let mut request = self.http.post(url).header("content-type", "application/json");
        for (name, value) in &target.headers {
            request = request.header(name, value);
        }
        let answer = request
            .body(body.to_owned())
            .send()
            .await
            .context("the broker does not answer")?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(
            status.is_success(),
            "a code completion was answered {status}: {text}"
        );
        let asked: Value = get(&self.http, &self.direct, "/control/last")
            .await?
            .json()
            .await?;
        ensure!(
            asked.to_string().contains(marker),
            "the model server was asked something else; is another client busy with it?"
        );
        let natural = self.settings["tokens"].as_u64().unwrap_or_default();
        let words = asked["max_tokens"]
            .as_u64()
            .map_or(natural, |most| most.min(natural));
        answer_to(&asked, usize::try_from(words)?)
    }
}

/// What the simulated model says to a request with this body.
fn answer_to(asked: &Value, words: usize) -> anyhow::Result<String> {
    let mut text = match (&asked["prompt"], &asked["messages"]) {
        (Value::String(prompt), _) => expected::completion_text(prompt, words),
        (_, messages @ Value::Array(_)) => expected::chat_text(&messages.to_string(), words)?,
        _ => bail!("the model server was asked neither a chat nor a completion"),
    };
    let stops = asked["stop"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    if let Some(cut) = stops.filter_map(|stop| text.find(stop)).min() {
        text.truncate(cut);
    }
    Ok(text)
}

fn chats(
    address: SocketAddr,
    headers: Vec<(String, String)>,
    model: &str,
    kind: Kind,
) -> anyhow::Result<Target> {
    let Kind { shape, tokens, .. } = kind;
    let asks = (0..kind.count).map(|number| {
        let file = filling(number, kind.bytes.saturating_sub(ENVELOPE));
        let messages = json!([
            {"role": "system", "content": "You answer briefly, and only what was asked."},
            {"role": "user", "content": format!("Question {number}: which of the two functions below is called first, and why?\n\nfn one() {{ two() }}\nfn two() {{ one() }}{file}")},
        ]);
        let expected = expected::chat_text(&messages.to_string(), tokens)?;
        let mut body = json!({"model": model, "messages": messages, "max_tokens": tokens});
        if shape == Shape::ChatStream {
            body["stream"] = Value::Bool(true);
        }
        Ok(Ask { body: body.to_string(), expected })
    });
    Ok(Target {
        address,
        path: "/v1/chat/completions",
        headers,
        person_each: false,
        shape,
        asks: asks.collect::<serde_json::Result<_>>()?,
    })
}

/// So many bytes of source code, other in each request.
fn filling(number: usize, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + LINE);
    let mut line = 0;
    // A line's end takes two bytes in JSON.
    while text.len() + 2 * line < bytes {
        text.push_str(&format!(
            "\n    let total_{number}_{line:06} = prices[{line}].amount * rates[{number}];"
        ));
        line += 1;
    }
    text
}

fn code_completion(marker: &str) -> Value {
    json!({
        "project_path": "group/project", "project_id": 7, "prompt_version": 2, "prompt": null, "stream": false,
        "model_provider": "litellm", "model_name": "codegemma", "model_endpoint": "http://127.0.0.1:9/v1",
        "model_identifier": "custom_openai/codegemma", "choices_count": 1, "intent": "completion",
        "current_file": {
            "file_name": format!("lib/{marker}.py"), "language_identifier": "python",
            "content_above_cursor": format!("import math\n\n\ndef {marker}(values):\n    "),
            "content_below_cursor": "\n\n\nprint(math.pi)\n",
        },
        "context": [], "telemetry": [],
    })
}

pub(super) fn address(url: &Url) -> anyhow::Result<SocketAddr> {
    ensure!(
        url.scheme() == "http",
        "{url} is not http://, and no other is spoken here"
    );
    let addresses = url
        .socket_addrs(|| Some(80))
        .with_context(|| format!("{url} has no address"))?;
    addresses
        .first()
        .copied()
        .with_context(|| format!("{url} has no address"))
}

async fn get(http: &Client, base: &Url, path: &str) -> anyhow::Result<reqwest::Response> {
    let answer = http.get(base.join(path)?).send().await;
    let answer = answer.with_context(|| format!("the simulated model server at {base} does not answer"))?;
    Ok(answer.error_for_status()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_follows_from_what_was_asked() {
        let prompt = "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>";
        let whole = expected::completion_text(prompt, 5);
        assert_eq!(answer_to(&json!({"prompt": prompt}), 5).unwrap(), whole);
        let stop = &whole[4..6];
        let cut = answer_to(&json!({"prompt": prompt, "stop": ["never", stop]}), 5).unwrap();
        assert_eq!(cut, whole[..whole.find(stop).unwrap()]);
        assert!(answer_to(&json!({}), 5).is_err());
    }

    #[test]
    fn every_ask_has_its_own_answer() {
        let target = chats(
            "127.0.0.1:1".parse().unwrap(),
            Vec::new(),
            "m",
            Kind {
                shape: Shape::ChatStream,
                tokens: 16,
                bytes: 4096,
                count: ASKS,
            },
        )
        .unwrap();
        assert!(
            target
                .asks
                .iter()
                .all(|ask| (3900..4300).contains(&ask.body.len()))
        );
        let mut answers: Vec<_> = target.asks.iter().map(|ask| &ask.expected).collect();
        answers.sort_unstable();
        answers.dedup();
        assert_eq!(answers.len(), ASKS);
        assert!(target.asks[0].body.contains("\"stream\":true"));
    }
}
