//! One resource of the configuration: read from JSON, planned and applied by the rules that a file goes by.
//!
//! What is wanted becomes a file that differs from the configuration in this one resource, so every rule has one
//! home. Problems name the resource's own fields. API tokens are no part of a file; their fields are read here too.

use std::time::Duration;

use duo_contract::name::{FeatureName, ModelName};
use duo_contract::snapshot::{Issuer, Model, PromptOverride, Role, Support};
use serde_json::Value as Json;

use super::node::{Node, Value};
use super::read::{Reader, WantedFeature};
use super::{Applied, ApplyError, ConfigFile, Problem, PromptCheck, begin, make};
use crate::store::Store;
use crate::store::snapshot::ConfigState;

/// Requests that a token may have queued or running for one feature and model, unless it says another number.
pub const TOKEN_LIMIT: u32 = 1000;
/// Most of them.
const MOST_TOKEN_LIMIT: u32 = 1_000_000;

/// Which resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A model.
    Model(ModelName),
    /// A feature and its assignment.
    Feature(FeatureName),
    /// The level of a feature and a family.
    Support {
        /// The feature.
        feature: FeatureName,
        /// The family, or `*`.
        family: String,
    },
    /// A template that replaces a built-in one.
    Prompt {
        /// Its id.
        id: String,
        /// Its family, or `base`.
        family: String,
    },
    /// A GitLab instance, by URL.
    Issuer(String),
}

/// What one resource is to be.
#[derive(Debug)]
pub struct Wish {
    target: Target,
    wanted: Wanted,
}

#[derive(Debug)]
enum Wanted {
    Model(Model),
    Feature(Box<WantedFeature>),
    Support(Support, String),
    Prompt(PromptOverride),
    Issuer(Issuer),
    Gone,
}

/// What a new API token is to be.
#[derive(Debug)]
pub struct WantedToken {
    /// What people call it.
    pub name: String,
    /// What it opens.
    pub role: Role,
    /// How long it is good.
    pub expires_in: Option<Duration>,
    /// Features it may use.
    pub features: Option<Vec<FeatureName>>,
    /// Models it may use.
    pub models: Option<Vec<ModelName>>,
    /// Requests it may have queued or running for one feature and model.
    pub limit: u32,
}

impl Target {
    /// Its name for people.
    fn title(&self) -> String {
        match self {
            Self::Model(name) => format!("model {:?}", name.as_str()),
            Self::Feature(name) => format!("feature {:?}", name.as_str()),
            Self::Support { feature, family } => format!("support level of {feature} and {family}"),
            Self::Prompt { id, family } => format!("template of ours in place of {id} for family {family}"),
            Self::Issuer(url) => format!("GitLab instance {url:?}"),
        }
    }

    /// Its fields that the path says already.
    fn keys(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Model(name) => vec![("name", name.as_str())],
            Self::Feature(_) => Vec::new(),
            Self::Support { feature, family } => vec![("feature", feature.as_str()), ("family", family)],
            Self::Prompt { id, family } => vec![("id", id), ("family", family)],
            Self::Issuer(url) => vec![("url", url)],
        }
    }

    /// What the rules call it.
    fn part(&self) -> String {
        match self {
            Self::Model(name) => format!("models.{name}"),
            Self::Feature(name) => format!("features.{name}"),
            Self::Support { feature, family } => format!("support_levels.{feature}.{family}"),
            Self::Prompt { id, family } => format!("prompts.{id}.{family}"),
            Self::Issuer(url) => format!("issuers.{url}"),
        }
    }

    /// Is it there?
    fn exists(&self, state: &ConfigState) -> bool {
        match self {
            Self::Model(name) => state.models.iter().any(|model| model.name == *name),
            Self::Feature(name) => state.features.iter().any(|row| row.feature.name == *name),
            Self::Support { feature, family } => {
                let mut rows = state.support_levels.iter();
                rows.any(|row| row.support.feature == *feature && row.support.family == *family)
            }
            Self::Prompt { id, family } => {
                let mut prompts = state.prompts.iter();
                prompts.any(|prompt| prompt.id == *id && prompt.family == *family)
            }
            Self::Issuer(url) => state.issuers.iter().any(|issuer| issuer.url == *url),
        }
    }

    /// Problems by the names of the resource's own fields.
    fn named(&self, problems: Vec<Problem>) -> Vec<Problem> {
        let own = self.part();
        let named = |problem: Problem| {
            let behind = problem.part.strip_prefix(&own);
            // Another resource's name may begin with this one's.
            let behind = behind.filter(|behind| behind.is_empty() || behind.starts_with('.'));
            let part = behind.map_or(&*problem.part, |behind| behind.trim_start_matches('.'));
            let part = match (self, part) {
                // The whole of a template is its text.
                (Self::Prompt { .. }, "") => "text",
                (Self::Feature(_), "") => "model",
                (_, part) => part,
            };
            Problem {
                place: None,
                part: part.to_owned(),
                message: problem.message,
            }
        };
        problems.into_iter().map(named).collect()
    }
}

impl Wish {
    /// Reads what a resource is to be; fields that the path says may be left out.
    ///
    /// # Errors
    /// Every mistake that shows without a database, by field.
    pub fn read(target: Target, body: Json, check_prompt: PromptCheck<'_>) -> Result<Self, Vec<Problem>> {
        let mut node = Node::of_json(body);
        let mut reader = Reader::new(None, check_prompt);
        if let Value::Map(entries) = &mut node.value {
            for (name, value) in target.keys() {
                match entries.iter().find(|(key, _)| key.name == name) {
                    None => entries.push(Node::said(name, value)),
                    Some((
                        _,
                        Node {
                            value: Value::Text(text),
                            ..
                        },
                    )) if text == value => {}
                    Some((key, _)) => {
                        let message = format!("has to be {value:?} as in the path, or left out");
                        reader.problem(key.place, name.to_owned(), message);
                    }
                }
            }
        }
        let wanted = match &target {
            Target::Model(_) => reader.model("", node).map(Wanted::Model),
            Target::Feature(_) => reader.feature("", node).map(Box::new).map(Wanted::Feature),
            Target::Support { .. } => reader
                .support("", node)
                .map(|(support, reason)| Wanted::Support(support, reason)),
            Target::Prompt { .. } => reader.prompt("", node).map(Wanted::Prompt),
            Target::Issuer(_) => reader.issuer("", node).map(Wanted::Issuer),
        };
        let problems = reader.finish().err().unwrap_or_default();
        match wanted {
            Some(wanted) if problems.is_empty() => Ok(Self { target, wanted }),
            _ => Err(target.named(problems)),
        }
    }

    /// It is to go.
    #[must_use]
    pub fn removal(target: Target) -> Self {
        Self {
            target,
            wanted: Wanted::Gone,
        }
    }

    /// The file that differs from `state` in this resource.
    fn file(&self, state: &ConfigState) -> Result<ConfigFile, ApplyError> {
        let must_exist = matches!(self.wanted, Wanted::Gone | Wanted::Feature(_));
        if must_exist && !self.target.exists(state) {
            return Err(ApplyError::Absent(format!("there is no {}", self.target.title())));
        }
        let mut file = ConfigFile::default();
        match (&self.target, &self.wanted) {
            (Target::Model(name), wanted) => {
                let put = match wanted {
                    Wanted::Model(model) => Some(model.clone()),
                    _ => None,
                };
                file.models = Some(with(&state.models, put, |model| model.name == *name));
            }
            (Target::Prompt { id, family }, wanted) => {
                let put = match wanted {
                    Wanted::Prompt(prompt) => Some(prompt.clone()),
                    _ => None,
                };
                let same = |prompt: &PromptOverride| prompt.id == *id && prompt.family == *family;
                file.prompts = Some(with(&state.prompts, put, same));
            }
            (Target::Issuer(url), wanted) => {
                let put = match wanted {
                    Wanted::Issuer(issuer) => Some(issuer.clone()),
                    _ => None,
                };
                file.issuers = Some(with(&state.issuers, put, |issuer| issuer.url == *url));
            }
            (Target::Feature(name), Wanted::Feature(wanted)) => {
                file.features.insert(name.clone(), (**wanted).clone());
            }
            (_, Wanted::Support(support, reason)) => {
                file.support_levels.push((support.clone(), reason.clone()));
            }
            // Nobody asks for these to go: features and levels stay.
            (Target::Feature(_) | Target::Support { .. }, _) => {}
        }
        Ok(file)
    }
}

/// Makes one resource what is wanted, whole or not at all. With `expected`, only if that is the revision.
///
/// # Errors
/// [`ApplyError`]: a broken rule, a stale revision, no such resource, or Postgres is away.
pub async fn apply(
    store: &Store,
    wish: &Wish,
    actor: &str,
    expected: Option<u64>,
    check_prompt: PromptCheck<'_>,
) -> Result<Applied, ApplyError> {
    let (change, state) = begin(store, actor, expected).await?;
    let file = wish.file(&state)?;
    make(change, &file, &state, check_prompt)
        .await
        .map_err(|error| match error {
            ApplyError::Refused(problems) => ApplyError::Refused(wish.target.named(problems)),
            other => other,
        })
}

/// Reads what a new API token is to be.
///
/// # Errors
/// Every mistake, by field.
pub fn read_token(body: Json) -> Result<WantedToken, Vec<Problem>> {
    let accept = |_: &PromptOverride| Ok(());
    let mut reader = Reader::new(None, &accept);
    let token = reader.token(Node::of_json(body));
    let problems = reader.finish().err().unwrap_or_default();
    match token {
        Some(token) if problems.is_empty() => Ok(token),
        _ => Err(problems),
    }
}

impl Reader<'_> {
    fn token(&mut self, node: Node) -> Option<WantedToken> {
        let known = ["name", "role", "expires_in", "features", "models", "limit"];
        let mut fields = self.fields(String::new(), node, &known)?;
        let name = self.required(&mut fields, "name", Self::word);
        let role = self.required(&mut fields, "role", Self::parsed::<Role>);
        let expires_in = self.optional(&mut fields, "expires_in", Self::span);
        let features = self.optional(&mut fields, "features", |reader, path, node| {
            reader.names(path, node, Self::parsed::<FeatureName>)
        });
        let models = self.optional(&mut fields, "models", |reader, path, node| {
            reader.names(path, node, Self::parsed::<ModelName>)
        });
        let limit = self.optional(&mut fields, "limit", Self::token_limit);
        Some(WantedToken {
            name: name?.trim().to_owned(),
            role: role?,
            expires_in,
            features,
            models,
            limit: limit.unwrap_or(TOKEN_LIMIT),
        })
    }

    pub(super) fn names<T>(
        &mut self,
        path: &str,
        node: Node,
        read: impl Fn(&mut Self, &str, Node) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::List(items) = node.value else {
            self.expected(node.place, path, "a list of names", &node.value);
            return None;
        };
        let items = items.into_iter().enumerate();
        items
            .map(|(at, item)| read(self, &format!("{path}[{at}]"), item))
            .collect()
    }

    fn token_limit(&mut self, path: &str, node: Node) -> Option<u32> {
        if let Value::Count(count) = node.value
            && let Ok(count @ 1..=MOST_TOKEN_LIMIT) = u32::try_from(count)
        {
            return Some(count);
        }
        let wanted = format!("a whole number from 1 to {MOST_TOKEN_LIMIT}");
        self.expected(node.place, path, &wanted, &node.value);
        None
    }
}

/// All of `there` but the one that is `same`, and `put` in its place.
fn with<T: Clone>(there: &[T], put: Option<T>, same: impl Fn(&T) -> bool) -> Vec<T> {
    let others = there.iter().filter(|item| !same(item)).cloned();
    others.chain(put).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(target: Target, body: Json) -> Vec<String> {
        let accept = |_: &PromptOverride| Ok(());
        match Wish::read(target, body, &accept) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    fn model() -> Target {
        Target::Model(ModelName::parse("mistral").expect("a name"))
    }

    #[test]
    fn every_problem_of_a_resource_is_named_by_its_own_field() {
        let good = json!({"family": "mistral_7b", "context_tokens": 100, "max_output_tokens": 10});
        assert_eq!(problems(model(), good.clone()), Vec::<String>::new());
        let mut named = good.clone();
        named["name"] = "mistral".into();
        assert_eq!(problems(model(), named.clone()), Vec::<String>::new());
        named["name"] = "another".into();
        assert_eq!(
            problems(model(), named),
            ["name: has to be \"mistral\" as in the path, or left out"]
        );
        let bad = json!({"family": 7, "context_tokens": -1, "surprise": true});
        let found = problems(model(), bad);
        for field in [
            "family: ",
            "context_tokens: ",
            "max_output_tokens: is missing",
            "surprise: unknown",
        ] {
            assert!(
                found.iter().any(|problem| problem.starts_with(field)),
                "{field}: {found:?}"
            );
        }
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(problems(model(), json!([])), ["expected a mapping, found a list"]);
    }

    #[test]
    fn a_rule_that_another_resource_breaks_keeps_that_ones_name() {
        let feature = Target::Feature(FeatureName::parse("duo_chat").expect("a name"));
        let named = |part: &str| {
            let problem = Problem {
                place: None,
                part: part.to_owned(),
                message: String::new(),
            };
            feature.named(vec![problem])[0].part.clone()
        };
        assert_eq!(named("features.duo_chat.end_within"), "end_within");
        assert_eq!(named("features.duo_chat"), "model");
        assert_eq!(
            named("features.duo_chat_fix.model"),
            "features.duo_chat_fix.model"
        );
    }

    #[test]
    fn a_template_comes_as_text_and_never_from_a_file_of_the_broker() {
        let prompt = Target::Prompt {
            id: "chat/explain_code".to_owned(),
            family: "base".to_owned(),
        };
        let found = problems(prompt.clone(), json!({"file": "/etc/passwd"}));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found
                .iter()
                .any(|problem| problem.starts_with("file: unknown key")),
            "{found:?}"
        );
        assert!(
            found.iter().any(|problem| problem == "text: is missing"),
            "{found:?}"
        );
        assert_eq!(problems(prompt, json!({"text": "x"})), Vec::<String>::new());
    }

    #[test]
    fn a_token_has_a_name_and_a_role_and_bounds() {
        let token = read_token(json!({"name": " ci ", "role": "client", "expires_in": "90d"})).expect("good");
        assert_eq!((token.name.as_str(), token.limit), ("ci", TOKEN_LIMIT));
        assert_eq!(token.expires_in, Some(Duration::from_secs(90 * 24 * 60 * 60)));
        let bad = json!({"role": "king", "expires_in": "0s", "features": ["Duo"], "models": "m", "limit": 0});
        let fields: Vec<_> = read_token(bad)
            .expect_err("bad")
            .into_iter()
            .map(|problem| problem.part)
            .collect();
        for field in ["name", "role", "expires_in", "features[0]", "models", "limit"] {
            assert!(fields.iter().any(|found| found == field), "{field}: {fields:?}");
        }
        assert_eq!(fields.len(), 6, "{fields:?}");
    }
}
