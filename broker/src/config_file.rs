//! The configuration file: read, checked as a whole, applied in one change, and written back. One resource of it
//! ([`resource`]) goes the same way.
//!
//! A file names what is to be, not what is to be done. `models`, `issuers` and `prompts` are full lists where they
//! are present; of `features` and `support_levels` only what is named changes. A file with a mistake is refused
//! whole, with every mistake and its place. The rules for the state that results ([`rules`]) hold for every other
//! way to change the configuration too.

mod export;
mod node;
mod plan;
mod read;
pub mod receiver;
pub mod resource;
pub mod rules;

use std::path::Path;

use duo_contract::snapshot::PromptOverride;

pub use self::export::export;
pub(crate) use self::export::span;
pub use self::plan::{Plan, plan};
pub use self::read::ConfigFile;

use crate::store::change::{Change, Edit};
use crate::store::snapshot::ConfigState;
use crate::store::{Store, StoreError};

/// Tells whether a template can be used; the prompt module knows how.
pub type PromptCheck<'a> = &'a (dyn Fn(&PromptOverride) -> Result<(), String> + Send + Sync);

/// A place in the file, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The column.
    pub column: u64,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, if the file says it; a rule may be broken by what it does not say.
    pub place: Option<Place>,
    /// Which part, such as `features.duo_chat.model`.
    pub part: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(place) = self.place {
            write!(f, "line {}, column {}: ", place.line, place.column)?;
        }
        if !self.part.is_empty() {
            write!(f, "{}: ", self.part)?;
        }
        f.write_str(&self.message)
    }
}

/// Why a file was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It has mistakes; nothing was changed.
    #[error("the configuration is refused, nothing was changed: {}", list(.0))]
    Refused(Vec<Problem>),
    /// Somebody else changed the configuration since the caller looked.
    #[error("the configuration is at revision {current} by now, not {expected}; nothing was changed")]
    Stale {
        /// What the caller had seen.
        expected: u64,
        /// The revision of the moment.
        current: u64,
    },
    /// There is no such resource.
    #[error("{0}")]
    Absent(String),
    /// Postgres is away or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What applying a file did, or would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The revision from now on; as before when there was nothing to change.
    pub revision: u64,
    /// What changed, in order.
    pub edits: Vec<Edit>,
    /// What results.
    pub state: ConfigState,
}

/// Reads a file. With `folder`, prompt texts in other files below it too; without, no other file is read.
///
/// # Errors
/// Every mistake that shows without a database.
pub fn parse(
    text: &str,
    folder: Option<&Path>,
    check_prompt: PromptCheck<'_>,
) -> Result<ConfigFile, Vec<Problem>> {
    read::read(text, folder, check_prompt)
}

/// What [`apply`] would do to the configuration of the moment.
///
/// # Errors
/// [`ApplyError::Refused`] with every broken rule, or Postgres is away.
pub async fn dry_run(
    store: &Store,
    file: &ConfigFile,
    actor: &str,
    check_prompt: PromptCheck<'_>,
) -> Result<Applied, ApplyError> {
    let state = store.config_state().await?;
    let mut plan = plan(file, &state, actor, check_prompt).map_err(ApplyError::Refused)?;
    let revision = state.revision + u64::from(!plan.edits.is_empty());
    plan.state.revision = revision;
    Ok(Applied {
        revision,
        edits: plan.edits,
        state: plan.state,
    })
}

/// Makes the configuration what the file says, whole or not at all. With `expected`, only if that is its revision.
///
/// # Errors
/// [`ApplyError::Refused`] with every broken rule, [`ApplyError::Stale`], or Postgres is away.
pub async fn apply(
    store: &Store,
    file: &ConfigFile,
    actor: &str,
    expected: Option<u64>,
    check_prompt: PromptCheck<'_>,
) -> Result<Applied, ApplyError> {
    let (change, state) = begin(store, actor, expected).await?;
    make(change, file, &state, check_prompt).await
}

/// Begins a change of the configuration as the caller has seen it.
async fn begin(
    store: &Store,
    actor: &str,
    expected: Option<u64>,
) -> Result<(Change, ConfigState), ApplyError> {
    let mut change = store.begin_change(actor).await?;
    let current = change.base_revision();
    if let Some(expected) = expected.filter(|expected| *expected != current) {
        return Err(ApplyError::Stale { expected, current });
    }
    let state = change.state().await?;
    Ok((change, state))
}

/// Plans against `state`, writes every row with its record, and commits.
async fn make(
    mut change: Change,
    file: &ConfigFile,
    state: &ConfigState,
    check_prompt: PromptCheck<'_>,
) -> Result<Applied, ApplyError> {
    let mut plan = plan(file, state, change.actor(), check_prompt).map_err(ApplyError::Refused)?;
    for edit in &plan.edits {
        change.perform(edit).await?;
    }
    let revision = change.commit().await?;
    plan.state.revision = revision;
    Ok(Applied {
        revision,
        edits: plan.edits,
        state: plan.state,
    })
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests;
