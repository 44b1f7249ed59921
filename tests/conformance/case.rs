//! A case: what is asked, and what the answer has to be like.

use std::pin::Pin;
use std::sync::Arc;

use duo_system_tests::gitlab::TokenSpec;
use duo_system_tests::harness::{Answer, Call, Cluster};
use duo_system_tests::sim::Settings;
use http::Method;
use serde_json::{Value, json};

/// The person that most cases ask for.
const PERSON: &str = "alice";

type Check = Box<dyn FnOnce(&Answer, &Cluster)>;
type Story = Pin<Box<dyn Future<Output = ()>>>;
type Tell = Box<dyn FnOnce(Arc<Cluster>) -> Story>;
/// What a model server does otherwise than usual.
pub(crate) type Change = fn(&mut Settings);

/// One line of the contract.
pub(crate) struct Case {
    /// What a client relies on.
    pub(crate) name: String,
    sim: Option<Change>,
    kind: Kind,
}

enum Kind {
    Ask(Box<Ask>, Vec<Check>),
    Story(Tell),
}

/// A case that asks once.
pub(crate) fn case(name: impl Into<String>, ask: Ask) -> Case {
    Case {
        name: name.into(),
        sim: None,
        kind: Kind::Ask(Box::new(ask), Vec::new()),
    }
}

/// A case of several steps.
pub(crate) fn story<F: Future<Output = ()> + 'static>(
    name: impl Into<String>,
    tell: impl FnOnce(Arc<Cluster>) -> F + 'static,
) -> Case {
    Case {
        name: name.into(),
        sim: None,
        kind: Kind::Story(Box::new(|cluster| Box::pin(tell(cluster)))),
    }
}

impl Case {
    /// With a model server that behaves like this meanwhile.
    pub(crate) fn sim(mut self, change: Change) -> Self {
        self.sim = Some(change);
        self
    }

    /// The answer passes this too.
    pub(crate) fn check(mut self, check: impl FnOnce(&Answer, &Cluster) + 'static) -> Self {
        if let Kind::Ask(_, checks) = &mut self.kind {
            checks.push(Box::new(check));
        }
        self
    }

    /// The whole answer came, with status 200.
    pub(crate) fn good(self) -> Self {
        self.status(200).check(|answer, _| {
            assert_eq!(answer.broken, None, "{answer}");
        })
    }

    /// With this status.
    pub(crate) fn status(self, status: u16) -> Self {
        self.check(move |answer, _| assert_eq!(answer.status.as_u16(), status, "{answer}"))
    }

    /// With this status and body.
    pub(crate) fn exactly(self, status: u16, body: Value) -> Self {
        self.status(status)
            .check(move |answer, _| assert_eq!(answer.json(), body, "{answer}"))
    }

    /// A refusal in the shape `{"detail": text}`.
    pub(crate) fn detail(self, status: u16, text: &str) -> Self {
        self.exactly(status, json!({ "detail": text }))
    }

    /// A refusal in the shape `{"error": text}`, which strangers get.
    pub(crate) fn stranger(self, text: &str) -> Self {
        self.exactly(401, json!({ "error": text }))
    }

    /// 422 that names the field in its text and place, and nothing reached the model server.
    pub(crate) fn names(self, field: &str) -> Self {
        let field = field.to_owned();
        self.status(422).check(move |answer, _| {
            let said = answer.json()["detail"].clone();
            let text = said[0]["msg"]
                .as_str()
                .unwrap_or_else(|| said.as_str().unwrap_or_default());
            assert!(text.contains(&field), "{field}: {answer}");
        })
    }

    /// The value at a JSON pointer of the body.
    pub(crate) fn says(self, pointer: &str, value: Value) -> Self {
        let pointer = pointer.to_owned();
        self.check(move |answer, _| {
            let body = answer.json();
            assert_eq!(body.pointer(&pointer), Some(&value), "{pointer}: {answer}");
        })
    }

    /// The header has this value; none for an empty one.
    pub(crate) fn header(self, name: &'static str, value: &'static str) -> Self {
        self.check(move |answer, _| assert_eq!(answer.header(name), value, "{name}: {answer}"))
    }

    /// The model server was asked with this value at a JSON pointer.
    pub(crate) fn asked(self, pointer: &'static str, value: Value) -> Self {
        self.check(move |_, cluster| {
            let body = cluster.last_body();
            let found = body.pointer(pointer).unwrap_or(&Value::Null);
            assert_eq!(*found, value, "{pointer}: {body}");
        })
    }

    /// Asks, and checks what comes.
    pub(crate) async fn run(self, cluster: Arc<Cluster>) {
        cluster.sim.set(|sim| {
            *sim = Settings::default();
            if let Some(change) = self.sim {
                change(sim);
            }
        });
        match self.kind {
            Kind::Ask(ask, checks) => {
                let answer = ask.send(&cluster).await;
                for check in checks {
                    check(&answer, &cluster);
                }
            }
            Kind::Story(tell) => tell(cluster).await,
        }
    }
}

/// Who asks.
#[derive(Clone)]
enum Who {
    Gitlab(Box<TokenSpec>),
    Client,
    Nobody,
}

/// A request that is being put together.
#[derive(Clone)]
pub(crate) struct Ask {
    method: Method,
    path: String,
    who: Who,
    headers: Vec<(String, String)>,
    lacking: Vec<&'static str>,
    content_type: Option<String>,
    body: Option<Value>,
    text: Option<String>,
}

/// GitLab posts `body`, with a token that holds every scope.
pub(crate) fn post(path: impl Into<String>, body: Value) -> Ask {
    Ask {
        method: Method::POST,
        path: path.into(),
        who: Who::Gitlab(Box::default()),
        headers: Vec::new(),
        lacking: Vec::new(),
        content_type: Some("application/json".to_owned()),
        body: Some(body),
        text: None,
    }
}

/// GitLab asks with this method and no body.
pub(crate) fn bare(method: Method, path: impl Into<String>) -> Ask {
    Ask {
        method,
        content_type: None,
        body: None,
        ..post(path, Value::Null)
    }
}

impl Ask {
    /// With the value at a JSON pointer of the body.
    pub(crate) fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let body = self.body.as_mut().expect("a body");
        match body.pointer_mut(parent).expect("the pointer's parent") {
            Value::Array(items) => items[name.parse::<usize>().expect("an index")] = value,
            parent => parent[name] = value,
        }
        self
    }

    /// Without the field at a JSON pointer of the body.
    pub(crate) fn lacking(mut self, pointer: &str) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let body = self.body.as_mut().expect("a body");
        let parent = body.pointer_mut(parent).expect("the pointer's parent");
        parent.as_object_mut().expect("an object").remove(name);
        self
    }

    /// Where it goes.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The value at a JSON pointer of the body.
    pub(crate) fn body(&self, pointer: &str) -> Value {
        let found = self.body.as_ref().and_then(|body| body.pointer(pointer));
        found.expect("the pointer's value").clone()
    }

    /// The text at a JSON pointer of the body.
    pub(crate) fn body_text(&self, pointer: &str) -> String {
        self.body(pointer).as_str().expect("a text").to_owned()
    }

    /// With a body just as it stands.
    pub(crate) fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// Called by this type, or by none.
    pub(crate) fn typed(mut self, content_type: Option<&str>) -> Self {
        self.content_type = content_type.map(str::to_owned);
        self
    }

    /// With another token.
    pub(crate) fn token(mut self, spec: TokenSpec) -> Self {
        self.who = Who::Gitlab(Box::new(spec));
        self
    }

    /// With a token that holds these scopes alone.
    pub(crate) fn scopes(self, scopes: &[&str]) -> Self {
        self.token(TokenSpec::default().scopes(scopes.iter().copied()))
    }

    /// With an API token of an OpenAI client.
    pub(crate) fn client(mut self) -> Self {
        self.who = Who::Client;
        self
    }

    /// Without any token.
    pub(crate) fn nobody(mut self) -> Self {
        self.who = Who::Nobody;
        self
    }

    /// With one more header, or another value of one.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.lacking.push(name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without a header that GitLab sends.
    pub(crate) fn headless(mut self, name: &'static str) -> Self {
        self.lacking.push(name);
        self
    }

    /// The call.
    pub(crate) fn call(&self, cluster: &Cluster) -> Call {
        let mut call = cluster.call(self.method.clone(), &self.path);
        match &self.who {
            Who::Gitlab(spec) => {
                let mut headers = cluster.rails_headers_with(spec, PERSON);
                headers.retain(|(name, _)| !self.lacking.contains(name));
                call = call.headers(headers);
            }
            Who::Client => call = call.token(&cluster.client_token),
            Who::Nobody => {}
        }
        for (name, value) in &self.headers {
            call = call.header(name, value);
        }
        let body = self.text.clone().or(self.body.as_ref().map(Value::to_string));
        match (body, &self.content_type) {
            (Some(body), Some(kind)) => call.text(kind, body),
            (Some(body), None) => call.untyped(body),
            (None, _) => call,
        }
    }

    /// Sends it and reads the whole answer.
    pub(crate) async fn send(&self, cluster: &Cluster) -> Answer {
        self.call(cluster).send().await
    }
}
