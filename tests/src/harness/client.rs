//! HTTP calls as the product's clients make them, with every byte and its time kept.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use reqwest::Response;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::wait::{PATIENCE, soon};

/// A call that is being put together.
#[derive(Debug)]
pub struct Call {
    builder: reqwest::RequestBuilder,
    what: String,
}

/// An answer whose headers are here and whose body is not; dropping it closes the connection.
#[derive(Debug)]
pub struct Opened {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    response: Response,
    answer: Answer,
}

/// An answer, as far as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// Every piece with the time it came at.
    pub pieces: Vec<(Instant, Bytes)>,
    /// What went wrong while the body was read: the connection was cut before its end.
    pub broken: Option<String>,
    /// When the call was sent.
    pub sent: Instant,
}

impl Call {
    /// A call to `url`.
    pub fn new(client: &reqwest::Client, method: Method, url: &str) -> Self {
        Self {
            builder: client.request(method.clone(), url),
            what: format!("{method} {url}"),
        }
    }

    /// The same call once more.
    ///
    /// # Panics
    /// Never: no body is a stream.
    #[must_use]
    pub fn again(&self) -> Self {
        Self {
            builder: self.builder.try_clone().expect("a body that is all there"),
            what: self.what.clone(),
        }
    }

    /// With one more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.builder = self.builder.header(name, value);
        self
    }

    /// With these headers.
    pub fn headers<'h>(mut self, headers: impl IntoIterator<Item = (&'h str, String)>) -> Self {
        for (name, value) in headers {
            self.builder = self.builder.header(name, value);
        }
        self
    }

    /// With an API token.
    pub fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// With a JSON body.
    pub fn json(self, body: &Value) -> Self {
        self.text("application/json", body.to_string())
    }

    /// With a body just as it stands.
    pub fn text(mut self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.builder = self
            .builder
            .header("content-type", content_type)
            .body(body.into());
        self
    }

    /// With a body that nothing says the type of.
    pub fn untyped(mut self, body: impl Into<Bytes>) -> Self {
        self.builder = self.builder.body(body.into());
        self
    }

    /// Sends it and waits for the headers.
    ///
    /// # Panics
    /// They do not come in time, or the connection fails.
    pub async fn open(self) -> Opened {
        let what = self.what.clone();
        self.try_open()
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Sends it and waits for the headers.
    ///
    /// # Errors
    /// The connection failed.
    ///
    /// # Panics
    /// They do not come in time.
    pub async fn try_open(self) -> Result<Opened, String> {
        let sent = Instant::now();
        let response = soon(&self.what, self.builder.send())
            .await
            .map_err(|error| format!("{error:?}"))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let answer = Answer {
            status,
            headers: headers.clone(),
            pieces: Vec::new(),
            broken: None,
            sent,
        };
        Ok(Opened {
            status,
            headers,
            response,
            answer,
        })
    }

    /// Sends it and reads the whole answer.
    ///
    /// # Panics
    /// It does not come in time, or the connection fails before the headers.
    pub async fn send(self) -> Answer {
        self.open().await.rest().await
    }
}

impl Opened {
    /// Reads one more piece; false at the end or where the connection broke.
    ///
    /// # Panics
    /// Nothing comes in time.
    pub async fn next(&mut self) -> bool {
        match soon("the next piece of an answer", self.response.chunk()).await {
            Ok(Some(piece)) => {
                self.answer.pieces.push((Instant::now(), piece));
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.answer.broken = Some(format!("{error:?}"));
                false
            }
        }
    }

    /// Reads until `enough` says so of the text so far.
    ///
    /// # Panics
    /// The answer ends before.
    pub async fn until(&mut self, enough: impl Fn(&str) -> bool) {
        while !enough(&self.answer.text()) {
            assert!(self.next().await, "the answer ended before: {:?}", self.answer);
        }
    }

    /// Reads whatever comes within `span`; false when the answer ended meanwhile.
    pub async fn quiet_for(&mut self, span: Duration) -> bool {
        timeout(span, self.next()).await.is_err()
    }

    /// Reads the rest.
    ///
    /// # Panics
    /// Nothing comes in time.
    pub async fn rest(mut self) -> Answer {
        while self.next().await {}
        self.answer
    }

    /// What has come so far.
    pub fn so_far(&self) -> &Answer {
        &self.answer
    }
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// The body.
    pub fn bytes(&self) -> Vec<u8> {
        self.pieces
            .iter()
            .flat_map(|(_, piece)| piece.iter().copied())
            .collect()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// It is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes()).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// A header's value; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Itself, if it is a whole answer with status 200.
    ///
    /// # Panics
    /// It is not.
    pub fn good(self) -> Self {
        assert_eq!(self.status, StatusCode::OK, "{self}");
        assert_eq!(self.broken, None, "{self}");
        self
    }

    /// The data of each server-sent event, `[DONE]` included.
    pub fn events(&self) -> Vec<String> {
        let text = self.text().replace("\r\n", "\n");
        let blocks = text.split("\n\n").filter(|block| !block.is_empty());
        blocks
            .filter_map(|block| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix("data: "))
                    .map(str::to_owned)
            })
            .collect()
    }

    /// The text in the chunks of an OpenAI stream.
    pub fn said(&self) -> String {
        let chunks = self
            .events()
            .into_iter()
            .filter_map(|event| serde_json::from_str::<Value>(&event).ok());
        chunks
            .filter_map(|chunk| {
                let choice = &chunk["choices"][0];
                let text = choice["delta"]["content"]
                    .as_str()
                    .or_else(|| choice["text"].as_str());
                text.map(str::to_owned)
            })
            .collect()
    }

    /// Does an OpenAI stream claim to be whole?
    pub fn looks_whole(&self) -> bool {
        let text = self.text();
        let finished = self.events().iter().any(|event| {
            let chunk: Value = serde_json::from_str(event).unwrap_or_default();
            chunk["choices"][0]["finish_reason"].is_string()
        });
        finished || text.contains("[DONE]")
    }

    /// From sending to the first piece.
    ///
    /// # Panics
    /// There is none.
    pub fn first_byte(&self) -> Duration {
        self.pieces.first().expect("an answer with a body").0 - self.sent
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (status, broken) = (self.status, &self.broken);
        write!(
            f,
            "{status} {:?}, broken {broken:?}: {}",
            self.headers,
            self.text()
        )
    }
}

/// A client that opens connections as it needs them, never gives up before the test does, and follows no redirect, as
/// GitLab's Workhorse follows none.
///
/// # Panics
/// No client can be made.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .timeout(PATIENCE * 6)
        .build()
        .expect("a client")
}
