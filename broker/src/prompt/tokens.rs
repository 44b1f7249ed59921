//! Counting tokens with a model's own tokenizer.
//!
//! An operator may put tokenizer files (`tokenizer.json`, as model repositories hold them) into a folder; a model
//! without one is measured by the estimate of [`super::budget`]. Files are read once, at start-up. Counting never
//! happens on a thread that serves requests, and not at all where it could not change anything: no text has more
//! tokens than bytes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use duo_contract::snapshot::Model;
use kitoken::Kitoken;
use tokio::sync::Semaphore;

use super::family;
use super::template::Content;

/// Prompts counted at once. One that comes when all of them are busy is measured by the estimate: it waits for nobody.
const COUNTED_AT_ONCE: usize = 2;
const ENDING: &str = "json";

/// Why there are no tokenizers.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The folder or a file in it cannot be read.
    #[error("{path} cannot be read: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is no tokenizer that this program knows.
    #[error("{path} is no tokenizer.json that can be used: {problem}")]
    Unknown {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Tokenizers by the name of a model or a family. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizers {
    by_name: Arc<HashMap<String, Arc<Kitoken>>>,
    turns: Arc<Semaphore>,
}

impl Default for Tokenizers {
    fn default() -> Self {
        Self::of_names(HashMap::new())
    }
}

impl std::fmt::Debug for Tokenizers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Tokenizers {
    /// Reads every `NAME.json` of a folder; `NAME` is a model, a family, or a family's part before its first `_`.
    /// Takes its time: not for a thread that serves.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn load(folder: &Path) -> Result<Self, TokenizerError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| TokenizerError::Unreadable { path, source }
        };
        let mut by_name = HashMap::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable(folder))? {
            let path = entry.map_err(unreadable(folder))?.path();
            let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
                continue;
            };
            if path.extension().is_none_or(|ending| ending != ENDING) {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(unreadable(&path))?;
            let tokenizer =
                Kitoken::from_tokenizers_slice(&bytes).map_err(|problem| TokenizerError::Unknown {
                    path: path.clone(),
                    problem: problem.to_string(),
                })?;
            by_name.insert(name.to_owned(), Arc::new(tokenizer));
        }
        Ok(Self::of_names(by_name))
    }

    /// What there is a tokenizer for, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    fn of_names(by_name: HashMap<String, Arc<Kitoken>>) -> Self {
        Self {
            by_name: Arc::new(by_name),
            turns: Arc::new(Semaphore::new(COUNTED_AT_ONCE)),
        }
    }

    pub(super) fn of(&self, model: &Model) -> Option<Arc<Kitoken>> {
        if self.by_name.is_empty() {
            return None;
        }
        let names = [
            model.name.as_str(),
            &model.family,
            family::prompt_family(&model.family),
        ];
        names.iter().find_map(|name| self.by_name.get(*name)).cloned()
    }

    /// Tokens of a prompt; `None` when nobody has time to count or the tokenizer does not know the text.
    pub(super) async fn count(&self, tokenizer: Arc<Kitoken>, content: Content) -> (Content, Option<usize>) {
        let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() else {
            return (content, None);
        };
        let content = Arc::new(content);
        let counted = Arc::clone(&content);
        let count = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            counted.texts().try_fold(0, |sum, text| {
                let tokens = tokenizer.encode(text, true).ok()?;
                Some(sum + tokens.len())
            })
        });
        let count = count.await.ok().flatten();
        // The other holder has ended with its thread's work.
        (Arc::unwrap_or_clone(content), count)
    }
}

#[cfg(test)]
mod tests;
