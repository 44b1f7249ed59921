//! From what a file wants and what is there to the rows that change.

use std::collections::BTreeMap;

use duo_contract::snapshot::Feature;
use duo_process::clock;

use super::read::{Assignment, WantedFeature};
use super::rules::{self, Violation};
use super::{ConfigFile, Problem, PromptCheck};
use crate::store::change::Edit;
use crate::store::features::{Acknowledgement, FeatureRow};
use crate::store::snapshot::ConfigState;
use crate::store::support_levels::SupportRow;

/// The rows that change, in an order in which each statement finds what it refers to.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// One per row.
    pub edits: Vec<Edit>,
    /// What results.
    pub state: ConfigState,
}

/// Works out what `file` changes and checks every rule against what results.
///
/// # Errors
/// Every broken rule; those of parts that the file does not name are listed too, for they would not load either.
pub fn plan(
    file: &ConfigFile,
    state: &ConfigState,
    actor: &str,
    check_prompt: PromptCheck<'_>,
) -> Result<Plan, Vec<Problem>> {
    let mut next = state.clone();
    let mut problems = Vec::new();
    if let Some(models) = &file.models {
        next.models.clone_from(models);
        next.models.sort_by(|a, b| a.name.cmp(&b.name));
    }
    if let Some(issuers) = &file.issuers {
        next.issuers.clone_from(issuers);
        next.issuers.sort_by(|a, b| a.url.cmp(&b.url));
    }
    if let Some(prompts) = &file.prompts {
        next.prompts.clone_from(prompts);
        next.prompts
            .sort_by(|a, b| (&a.id, &a.family).cmp(&(&b.id, &b.family)));
    }
    want_support_levels(file, &mut next, &mut problems);
    want_features(file, &mut next, actor, &mut problems);
    let broken = rules::check(&next, check_prompt);
    problems.extend(broken.into_iter().map(|violation| placed(file, violation)));
    if problems.is_empty() {
        let edits = edits(state, &next);
        return Ok(Plan { edits, state: next });
    }
    problems.sort_by_key(|problem| problem.place);
    Err(problems)
}

fn want_support_levels(file: &ConfigFile, next: &mut ConfigState, problems: &mut Vec<Problem>) {
    for (wanted, reason) in &file.support_levels {
        if !next.features.iter().any(|row| row.feature.name == wanted.feature) {
            let part = format!("support_levels.{}.{}", wanted.feature, wanted.family);
            problems.push(unknown_feature(file, part, wanted.feature.as_str()));
            continue;
        }
        let row = SupportRow {
            support: wanted.clone(),
            reason: Some(reason.clone()),
        };
        let is_pair =
            |row: &SupportRow| row.support.feature == wanted.feature && row.support.family == wanted.family;
        match next.support_levels.iter_mut().find(|row| is_pair(row)) {
            Some(there) => *there = row,
            None => next.support_levels.push(row),
        }
    }
}

fn want_features(file: &ConfigFile, next: &mut ConfigState, actor: &str, problems: &mut Vec<Problem>) {
    for (name, wanted) in &file.features {
        let part = format!("features.{name}");
        let Some(at) = next.features.iter().position(|row| row.feature.name == *name) else {
            problems.push(unknown_feature(file, part, name.as_str()));
            continue;
        };
        let row = &mut next.features[at];
        want_settings(&mut row.feature, wanted);
        let family = row.feature.model.as_ref().and_then(|model| {
            let model = next.models.iter().find(|known| known.name == *model)?;
            Some(model.family.clone())
        });
        match (&wanted.acknowledge, family) {
            (Some(text), Some(family)) => acknowledge(row, text, family, actor),
            (Some(_), None) if row.feature.model.is_none() => problems.push(placed(
                file,
                Violation {
                    part: format!("{part}.acknowledge"),
                    message: "without a model there is nothing to acknowledge".to_owned(),
                },
            )),
            _ => {}
        }
        if row.feature.model.is_none() {
            row.acknowledgement = None;
        }
    }
}

fn want_settings(feature: &mut Feature, wanted: &WantedFeature) {
    match &wanted.assignment {
        Some(Assignment::Inactive) => {
            feature.active = false;
            feature.model = None;
        }
        Some(Assignment::Active) => feature.active = true,
        Some(Assignment::Model(model)) => {
            feature.active = true;
            feature.model = Some(model.clone());
        }
        None => {}
    }
    let milliseconds = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    feature.lane = wanted.lane.unwrap_or(feature.lane);
    feature.first_byte_within_ms = wanted
        .first_byte_within
        .map_or(feature.first_byte_within_ms, milliseconds);
    feature.end_within_ms = wanted.end_within.map_or(feature.end_within_ms, milliseconds);
    feature.bodies = wanted.bodies.unwrap_or(feature.bodies);
}

/// The same words for the same family are the acknowledgement that is there already, whoever repeats them.
fn acknowledge(row: &mut FeatureRow, text: &str, family: String, actor: &str) {
    let same = |given: &Acknowledgement| given.text == text && given.family == family;
    if !row.acknowledgement.as_ref().is_some_and(same) {
        row.acknowledgement = Some(Acknowledgement {
            text: text.to_owned(),
            family,
            by: actor.to_owned(),
            at: whole_microseconds(clock::now()),
        });
    }
}

/// As exact as Postgres keeps it.
fn whole_microseconds(moment: time::OffsetDateTime) -> time::OffsetDateTime {
    moment
        .replace_nanosecond(moment.nanosecond() / 1000 * 1000)
        .unwrap_or(moment)
}

fn unknown_feature(file: &ConfigFile, part: String, name: &str) -> Problem {
    let message = format!("there is no feature {name:?}");
    placed(file, Violation { part, message })
}

/// Finds the nearest place that the file has for a part: its own, or that of what it is a part of.
fn placed(file: &ConfigFile, violation: Violation) -> Problem {
    let mut path = violation.part.as_str();
    let place = loop {
        if let Some(place) = file.places.get(path) {
            break Some(*place);
        }
        match path.rfind('.') {
            Some(dot) => path = &path[..dot],
            None => break None,
        }
    };
    Problem {
        place,
        part: violation.part,
        message: violation.message,
    }
}

/// What is put comes before what refers to it, what is removed after.
fn edits(old: &ConfigState, new: &ConfigState) -> Vec<Edit> {
    let mut edits = Vec::new();
    let (put, removed) = difference(&old.models, &new.models, |model| model.name.clone());
    edits.extend(
        put.into_iter()
            .map(|(before, after)| Edit::PutModel(before, after)),
    );
    let (levels, _) = difference(&old.support_levels, &new.support_levels, |row| {
        (row.support.feature.clone(), row.support.family.clone())
    });
    edits.extend(
        levels
            .into_iter()
            .map(|(before, after)| Edit::PutSupport(before, after)),
    );
    let (features, _) = difference(&old.features, &new.features, |row| row.feature.name.clone());
    edits.extend(features.into_iter().filter_map(|(before, after)| {
        // Features are never added, so each had a row.
        Some(Edit::PutFeature(Box::new(before?), Box::new(after)))
    }));
    edits.extend(removed.into_iter().map(Edit::RemoveModel));
    let (put, removed) = difference(&old.prompts, &new.prompts, |p| (p.id.clone(), p.family.clone()));
    edits.extend(
        put.into_iter()
            .map(|(before, after)| Edit::PutPrompt(before, after)),
    );
    edits.extend(removed.into_iter().map(Edit::RemovePrompt));
    let (put, removed) = difference(&old.issuers, &new.issuers, |issuer| issuer.url.clone());
    edits.extend(
        put.into_iter()
            .map(|(before, after)| Edit::PutIssuer(before, after)),
    );
    edits.extend(removed.into_iter().map(Edit::RemoveIssuer));
    edits
}

/// Rows put, each with what was there, and rows removed.
type Difference<T> = (Vec<(Option<T>, T)>, Vec<T>);

fn difference<T: Clone + PartialEq, K: Ord>(old: &[T], new: &[T], key: impl Fn(&T) -> K) -> Difference<T> {
    let mut left: BTreeMap<K, &T> = old.iter().map(|row| (key(row), row)).collect();
    let mut put = Vec::new();
    for row in new {
        let before = left.remove(&key(row));
        if before != Some(row) {
            put.push((before.cloned(), row.clone()));
        }
    }
    (put, left.into_values().cloned().collect())
}
