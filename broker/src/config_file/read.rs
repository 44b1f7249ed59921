//! From the YAML tree to what the file wants, collecting every mistake on the way.

mod values;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use duo_contract::name::{FeatureName, Lane, ModelName};
use duo_contract::snapshot::{BodyPolicy, Issuer, Model, PromptOverride, Support};

use super::node::{self, Key, Node, Value};
use super::{Place, Problem, PromptCheck};

/// What a file wants; absent parts stay as they are.
#[derive(Debug, Default)]
pub struct ConfigFile {
    pub(super) models: Option<Vec<Model>>,
    pub(super) features: BTreeMap<FeatureName, WantedFeature>,
    pub(super) issuers: Option<Vec<Issuer>>,
    pub(super) support_levels: Vec<(Support, String)>,
    pub(super) prompts: Option<Vec<PromptOverride>>,
    /// Where each part stands, by its path.
    pub(super) places: BTreeMap<String, Place>,
}

impl ConfigFile {
    /// A file that assigns models to features, or none, and says nothing else.
    #[must_use]
    pub fn assignments(wanted: impl IntoIterator<Item = (FeatureName, Option<ModelName>)>) -> Self {
        let features = wanted.into_iter().map(|(name, model)| {
            let assignment = model.map_or(Assignment::Inactive, Assignment::Model);
            let wanted = WantedFeature {
                assignment: Some(assignment),
                ..WantedFeature::default()
            };
            (name, wanted)
        });
        Self {
            features: features.collect(),
            ..Self::default()
        }
    }
}

/// What a file wants of one feature.
#[derive(Debug, Clone, Default)]
pub(super) struct WantedFeature {
    pub(super) assignment: Option<Assignment>,
    pub(super) acknowledge: Option<String>,
    pub(super) lane: Option<Lane>,
    pub(super) first_byte_within: Option<Duration>,
    pub(super) end_within: Option<Duration>,
    pub(super) bodies: Option<BodyPolicy>,
}

/// Who is to answer for a feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Assignment {
    Inactive,
    /// Active without a model of its own, which only the OpenAI features can be.
    Active,
    Model(ModelName),
}

pub(super) fn read(
    text: &str,
    folder: Option<&Path>,
    check_prompt: PromptCheck<'_>,
) -> Result<ConfigFile, Vec<Problem>> {
    let root = node::parse(text).map_err(|problem| vec![problem])?;
    let mut reader = Reader::new(folder, check_prompt);
    if !matches!(root.value, Value::Null) {
        reader.root(root);
    }
    reader.finish().map(|reader| reader.file)
}

/// Reads what a tree says, and collects what is wrong with it.
pub(super) struct Reader<'a> {
    /// Where prompt texts in other files are; without it there may be none.
    folder: Option<&'a Path>,
    check_prompt: PromptCheck<'a>,
    file: ConfigFile,
    pub(super) problems: Vec<Problem>,
}

/// A mapping whose keys are known, taken one by one.
pub(super) struct Fields {
    place: Place,
    path: String,
    entries: Vec<(Key, Node)>,
}

impl Fields {
    fn take(&mut self, name: &str) -> Option<(String, Node)> {
        let at = self.entries.iter().position(|(key, _)| key.name == name)?;
        Some((joined(&self.path, name), self.entries.swap_remove(at).1))
    }
}

/// The path of a part; the document itself has none.
fn joined(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(folder: Option<&'a Path>, check_prompt: PromptCheck<'a>) -> Self {
        Self {
            folder,
            check_prompt,
            file: ConfigFile::default(),
            problems: Vec::new(),
        }
    }

    /// Itself, unless something was wrong.
    pub(super) fn finish(mut self) -> Result<Self, Vec<Problem>> {
        if self.problems.is_empty() {
            return Ok(self);
        }
        self.problems.sort_by_key(|problem| problem.place);
        Err(self.problems)
    }
}

impl Reader<'_> {
    fn root(&mut self, root: Node) {
        let known = ["models", "features", "issuers", "support_levels", "prompts"];
        let Some(mut parts) = self.fields(String::new(), root, &known) else {
            return;
        };
        if let Some((path, node)) = parts.part("models") {
            self.file.models = self.items(&path, node, Self::model);
            self.unique(&path, |file| {
                file.models.iter().flatten().map(|m| m.name.to_string()).collect()
            });
        }
        if let Some((path, node)) = parts.part("features") {
            self.features(&path, node);
        }
        if let Some((path, node)) = parts.part("issuers") {
            self.file.issuers = self.items(&path, node, Self::issuer);
            self.unique(&path, |file| {
                file.issuers.iter().flatten().map(|i| i.url.clone()).collect()
            });
        }
        if let Some((path, node)) = parts.part("support_levels") {
            self.file.support_levels = self.items(&path, node, Self::support).unwrap_or_default();
            self.unique(&path, |file| {
                let pairs = file.support_levels.iter();
                pairs
                    .map(|(s, _)| format!("{} and {}", s.feature, s.family))
                    .collect()
            });
        }
        if let Some((path, node)) = parts.part("prompts") {
            self.file.prompts = self.items(&path, node, Self::prompt);
            self.unique(&path, |file| {
                let prompts = file.prompts.iter().flatten();
                prompts
                    .map(|p| format!("{} of family {}", p.id, p.family))
                    .collect()
            });
        }
    }

    pub(super) fn model(&mut self, path: &str, node: Node) -> Option<Model> {
        let known = ["name", "family", "context_tokens", "max_output_tokens"];
        let mut fields = self.fields(path.to_owned(), node, &known)?;
        let name = self.required(&mut fields, "name", Self::parsed::<ModelName>);
        let family = self.required(&mut fields, "family", Self::word);
        let context_tokens = self.required(&mut fields, "context_tokens", Self::tokens);
        let output_place = fields.place_of("max_output_tokens");
        let max_output_tokens = self.required(&mut fields, "max_output_tokens", Self::tokens);
        let model = Model {
            name: name?,
            family: family?,
            context_tokens: context_tokens?,
            max_output_tokens: max_output_tokens?,
        };
        if model.max_output_tokens > model.context_tokens {
            let message = format!(
                "an answer of {} tokens does not fit into a window of {}",
                model.max_output_tokens, model.context_tokens
            );
            self.problem(output_place, joined(path, "max_output_tokens"), message);
            return None;
        }
        Some(model)
    }

    fn features(&mut self, path: &str, node: Node) {
        let place = node.place;
        let Value::Map(entries) = node.value else {
            self.expected(place, path, "a mapping from feature ids", &node.value);
            return;
        };
        for (key, node) in entries {
            let path = format!("{path}.{}", key.name);
            match FeatureName::parse(&key.name) {
                Ok(name) => {
                    self.file.places.insert(path.clone(), key.place);
                    if let Some(wanted) = self.feature(&path, node) {
                        self.file.features.insert(name, wanted);
                    }
                }
                Err(error) => self.problem(key.place, path, error.to_string()),
            }
        }
    }

    pub(super) fn feature(&mut self, path: &str, node: Node) -> Option<WantedFeature> {
        match &node.value {
            Value::Text(word) if word == "inactive" || word == "active" => {
                let inactive = word == "inactive";
                return Some(WantedFeature {
                    assignment: Some(if inactive {
                        Assignment::Inactive
                    } else {
                        Assignment::Active
                    }),
                    ..WantedFeature::default()
                });
            }
            Value::Map(_) => {}
            other => {
                self.expected(
                    node.place,
                    path,
                    "`inactive`, `active` or a mapping such as {model: NAME}",
                    other,
                );
                return None;
            }
        }
        let known = [
            "model",
            "active",
            "acknowledge",
            "lane",
            "first_byte_within",
            "end_within",
            "bodies",
        ];
        let mut fields = self.fields(path.to_owned(), node, &known)?;
        let places: Vec<_> = fields
            .entries
            .iter()
            .map(|(key, node)| (key.name.clone(), node.place))
            .collect();
        for (name, place) in places {
            self.file.places.insert(joined(path, &name), place);
        }
        let model = self.optional(&mut fields, "model", Self::parsed::<ModelName>);
        let active = self.optional(&mut fields, "active", Self::flag);
        let wanted = WantedFeature {
            assignment: match (model, active) {
                (Some(_), Some(false)) => {
                    let message = "a feature with a model is active; leave out one of the two".to_owned();
                    self.problem(fields.place, joined(path, "active"), message);
                    None
                }
                (Some(model), _) => Some(Assignment::Model(model)),
                (None, Some(true)) => Some(Assignment::Active),
                (None, Some(false)) => Some(Assignment::Inactive),
                (None, None) => None,
            },
            acknowledge: self.optional(&mut fields, "acknowledge", Self::line),
            lane: self.optional(&mut fields, "lane", Self::lane),
            first_byte_within: self.optional(&mut fields, "first_byte_within", Self::deadline),
            end_within: self.optional(&mut fields, "end_within", Self::deadline),
            bodies: self.optional(&mut fields, "bodies", Self::bodies),
        };
        Some(wanted)
    }

    pub(super) fn issuer(&mut self, path: &str, node: Node) -> Option<Issuer> {
        let mut fields = self.fields(path.to_owned(), node, &["url", "audience", "openai"])?;
        let url = self.required(&mut fields, "url", Self::url);
        let audience = self.required(&mut fields, "audience", Self::line);
        let openai = self.optional(&mut fields, "openai", Self::flag);
        Some(Issuer {
            url: url?,
            audience: audience?,
            openai: openai.unwrap_or(false),
        })
    }

    pub(super) fn support(&mut self, path: &str, node: Node) -> Option<(Support, String)> {
        let known = ["feature", "family", "level", "reason"];
        let mut fields = self.fields(path.to_owned(), node, &known)?;
        let feature_place = fields.place_of("feature");
        let feature = self.required(&mut fields, "feature", Self::parsed::<FeatureName>);
        let family = self.required(&mut fields, "family", Self::word);
        let level = self.required(&mut fields, "level", Self::level);
        let reason = self.required(&mut fields, "reason", Self::line);
        let support = Support {
            feature: feature?,
            family: family?,
            level: level?,
        };
        let part = format!("support_levels.{}.{}", support.feature, support.family);
        self.file.places.insert(part, feature_place);
        Some((support, reason?))
    }

    pub(super) fn prompt(&mut self, path: &str, node: Node) -> Option<PromptOverride> {
        let known: &[_] = match self.folder {
            Some(_) => &["id", "family", "text", "file"],
            None => &["id", "family", "text"],
        };
        let mut fields = self.fields(path.to_owned(), node, known)?;
        let place = fields.place;
        let id = self.required(&mut fields, "id", Self::word);
        let family = self.required(&mut fields, "family", Self::word);
        let text = self.optional(&mut fields, "text", Self::text);
        let from_file = self.optional(&mut fields, "file", Self::file_content);
        let text = match (text, from_file) {
            (Some(text), None) | (None, Some(text)) => text,
            (Some(_), Some(_)) => {
                self.problem(
                    place,
                    path.to_owned(),
                    "give `text` or `file`, not both".to_owned(),
                );
                return None;
            }
            (None, None) => {
                // A text or file that could not be read has its own problem already.
                let named = |name| {
                    self.problems
                        .iter()
                        .any(|problem| problem.part == joined(path, name))
                };
                match self.folder {
                    Some(_) if named("text") || named("file") => {}
                    Some(_) => self.problem(place, path.to_owned(), "`text` or `file` is missing".to_owned()),
                    None if named("text") => {}
                    None => self.problem(place, joined(path, "text"), "is missing".to_owned()),
                }
                return None;
            }
        };
        let prompt = PromptOverride {
            id: id?,
            family: family?,
            text,
        };
        if let Err(error) = (self.check_prompt)(&prompt) {
            self.problem(place, path.to_owned(), error);
            return None;
        }
        Some(prompt)
    }

    pub(super) fn fields(&mut self, path: String, node: Node, known: &[&str]) -> Option<Fields> {
        let place = node.place;
        let Value::Map(entries) = node.value else {
            self.expected(place, &path, "a mapping", &node.value);
            return None;
        };
        let (entries, unknown): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|(key, _)| known.contains(&key.name.as_str()));
        for (key, _) in unknown {
            let message = format!("unknown key; known are {}", known.join(", "));
            self.problem(key.place, joined(&path, &key.name), message);
        }
        Some(Fields { place, path, entries })
    }

    fn items<T>(
        &mut self,
        path: &str,
        node: Node,
        read: impl Fn(&mut Self, &str, Node) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.file.places.insert(path.to_owned(), node.place);
        let items = match node.value {
            Value::List(items) => items,
            // `models:` with nothing below it is most often a list commented out, and would remove everything.
            other => {
                self.expected(node.place, path, "a list; an empty one is written []", &other);
                return None;
            }
        };
        let mut all = Vec::with_capacity(items.len());
        for (at, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{at}]");
            self.file.places.insert(path.clone(), item.place);
            all.extend(read(self, &path, item));
        }
        Some(all)
    }

    fn unique(&mut self, path: &str, names: impl Fn(&ConfigFile) -> Vec<String>) {
        let mut seen = HashSet::new();
        for name in names(&self.file) {
            if let Some(twice) = seen.replace(name) {
                let place = self.file.places.get(path).copied();
                self.problems.push(Problem {
                    place,
                    part: path.to_owned(),
                    message: format!("{twice} is named twice"),
                });
            }
        }
    }

    pub(super) fn required<T>(
        &mut self,
        fields: &mut Fields,
        name: &str,
        read: impl Fn(&mut Self, &str, Node) -> Option<T>,
    ) -> Option<T> {
        let Some((path, node)) = fields.take(name) else {
            self.problem(fields.place, joined(&fields.path, name), "is missing".to_owned());
            return None;
        };
        read(self, &path, node)
    }

    pub(super) fn optional<T>(
        &mut self,
        fields: &mut Fields,
        name: &str,
        read: impl Fn(&mut Self, &str, Node) -> Option<T>,
    ) -> Option<T> {
        let (path, node) = fields.take(name)?;
        read(self, &path, node)
    }

    pub(super) fn expected(&mut self, place: Place, path: &str, wanted: &str, found: &Value) {
        let found = match found {
            Value::Text(text) if text.len() < 60 => format!("{text:?}"),
            Value::Count(count) => count.to_string(),
            Value::Number(number) => number.clone(),
            other => other.noun().to_owned(),
        };
        self.problem(
            place,
            path.to_owned(),
            format!("expected {wanted}, found {found}"),
        );
    }

    pub(super) fn problem(&mut self, place: Place, part: String, message: String) {
        self.problems.push(Problem {
            place: Some(place),
            part,
            message,
        });
    }
}

impl Fields {
    /// A part of the document itself, whose path has no prefix.
    fn part(&mut self, name: &str) -> Option<(String, Node)> {
        let (_, node) = self.take(name)?;
        Some((name.to_owned(), node))
    }

    fn place_of(&self, name: &str) -> Place {
        let entry = self.entries.iter().find(|(key, _)| key.name == name);
        entry.map_or(self.place, |(_, node)| node.place)
    }
}
