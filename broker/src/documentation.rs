//! GitLab's documentation, from which its chat answers: building an index of a folder of Markdown, and asking it.
//!
//! The index is in Postgres ([`crate::store::documentation`]); the words of a question are found here, so that no
//! question can be an error there. What the endpoint's clients send and read is in [`crate::api`].

pub mod markdown;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::store::documentation::{FoundSection, NewIndex, Question, SectionRow};
use crate::store::{Store, StoreError};

/// Questions at once; the pool's other connections are for audit records and changes.
const AT_ONCE: usize = 3;
/// How long a question may take, waiting for its turn and for Postgres included: a person waits for the answer after it.
const WITHIN: Duration = Duration::from_secs(4);
/// As much of a question is read, in bytes.
const READ: usize = 8 * 1024;
/// Words that are looked for.
const MOST_WORDS: usize = 32;
/// A longer run of letters is no word.
const LONGEST_WORD: usize = 64;
/// Pages that are larger are left out.
const LARGEST_PAGE: u64 = 4 * 1024 * 1024;
/// Sections that go to Postgres together.
const BATCH: usize = 500;
/// How deep folders are entered; no documentation is deeper.
const DEEPEST_FOLDER: usize = 32;

/// Asks the index. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Documentation {
    store: Store,
    turns: Arc<Semaphore>,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// Postgres is away or gave up.
    #[error("the index cannot be read")]
    Store(#[from] StoreError),
    /// Too many ask, or Postgres is silent.
    #[error("the index did not answer within {} s", WITHIN.as_secs())]
    Late,
}

impl Documentation {
    /// The index in this database.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            store,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// The sections that fit `query` best, of the index of `version`, else of the nearest.
    ///
    /// # Errors
    /// Postgres is away, or did not answer in time.
    pub async fn search(
        &self,
        query: &str,
        version: &str,
        most: u8,
    ) -> Result<Vec<FoundSection>, SearchError> {
        let words = words(query);
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let version = version.replace('\0', "");
        let question = Question {
            words: &words,
            version: &version,
            release: release(&version),
            most,
        };
        let found = async {
            // Never closed.
            let _turn = self.turns.acquire().await;
            self.store.find_sections(question).await
        };
        Ok(timeout(WITHIN, found).await.map_err(|_| SearchError::Late)??)
    }
}

/// The words of a question: letters and digits alone, each once.
fn words(query: &str) -> Vec<String> {
    let query = &query[..query.floor_char_boundary(READ)];
    let mut words: Vec<String> = Vec::new();
    for word in query.split(|sign: char| !sign.is_alphanumeric()) {
        let word = word.to_lowercase();
        let fits = !word.is_empty() && word.len() <= LONGEST_WORD;
        // Postgres would take it for one of its own.
        if fits && word != "or" && !words.contains(&word) {
            words.push(word);
        }
        if words.len() == MOST_WORDS {
            break;
        }
    }
    words
}

/// `18.9` of `18.9.2-ee`; other texts as they are.
fn release(version: &str) -> &str {
    let numbers = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = version.splitn(3, '.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) if numbers(major) && numbers(minor) => {
            &version[..major.len() + 1 + minor.len()]
        }
        _ => version,
    }
}

/// Why an index could not be built.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A folder or page cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing to index.
    #[error("{} holds no Markdown: name the folder with GitLab's documentation, doc/ of its sources", .0.display())]
    Empty(PathBuf),
    /// Postgres is away or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How far an index is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Pages that are in it.
    pub pages: u64,
    /// Their sections.
    pub sections: u64,
    /// Pages left out, since they are larger than 4 MiB.
    pub too_large: u64,
}

/// Fills `index` with every page below `folder`, and lets it answer. Links of the file system are not followed.
///
/// # Errors
/// A file cannot be read, there is none, or Postgres refuses; then nothing has changed.
pub async fn build(
    mut index: NewIndex,
    folder: &Path,
    base_url: &str,
    mut progressed: impl FnMut(Progress),
) -> Result<Progress, IndexError> {
    let pages = pages(folder)?;
    let mut progress = Progress::default();
    let mut waiting = Vec::new();
    for path in &pages {
        let unreadable = |source| IndexError::Unreadable {
            path: path.clone(),
            source,
        };
        if fs::metadata(path).map_err(unreadable)?.len() > LARGEST_PAGE {
            progress.too_large += 1;
            continue;
        }
        let text = fs::read(path).map_err(unreadable)?;
        let relative = path.strip_prefix(folder).unwrap_or(path);
        let sections = sections(relative, base_url, &String::from_utf8_lossy(&text));
        progress.pages += 1;
        progress.sections += sections.len() as u64;
        waiting.extend(sections);
        if waiting.len() >= BATCH {
            index.add(&waiting).await?;
            waiting.clear();
            progressed(progress);
        }
    }
    if progress.sections == 0 {
        return Err(IndexError::Empty(folder.to_owned()));
    }
    index.add(&waiting).await?;
    index.commit(progress.pages).await?;
    Ok(progress)
}

/// Every page below `folder`, in the order of their paths.
fn pages(folder: &Path) -> Result<Vec<PathBuf>, IndexError> {
    let mut pages = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let unreadable = |source| IndexError::Unreadable {
            path: folder.clone(),
            source,
        };
        for entry in fs::read_dir(&folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let (kind, path) = (entry.file_type().map_err(unreadable)?, entry.path());
            if kind.is_dir() && !hidden && depth < DEEPEST_FOLDER {
                folders.push((path, depth + 1));
            } else if kind.is_file() && !hidden && path.extension().is_some_and(|end| end == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    Ok(pages)
}

fn sections(path: &Path, base_url: &str, text: &str) -> Vec<SectionRow> {
    let path = path.to_string_lossy().replace('\0', "");
    let page = markdown::cut(text);
    let url = url(base_url, &path);
    let title = page.title.unwrap_or_else(|| path.clone());
    let row = |section: markdown::Section| SectionRow {
        path: path.clone(),
        url: match section.anchor.as_str() {
            "" => url.clone(),
            anchor => format!("{url}#{}", encoded(anchor)),
        },
        title: title.clone(),
        heading: section.heading,
        content: section.content,
    };
    page.sections.into_iter().map(row).collect()
}

/// Where GitLab's site has the page: without its ending, and a folder's own page under the folder's name.
fn url(base_url: &str, path: &str) -> String {
    let page = path.strip_suffix(".md").unwrap_or(path);
    let page = match page.rsplit_once('/') {
        Some((folder, "_index" | "index" | "README")) => folder,
        None if matches!(page, "_index" | "index" | "README") => "",
        _ => page,
    };
    let base = base_url.trim_end_matches('/');
    match page {
        "" => format!("{base}/"),
        page => format!("{base}/{}/", encoded(page)),
    }
}

/// What a URL cannot hold as it is becomes `%XX`.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_question_is_words_and_nothing_else() {
        assert_eq!(
            words("How do I \"fork\" a project -- or & | ! <-> 'x':* (a) fork?"),
            ["how", "do", "i", "fork", "a", "project", "x"]
        );
        assert!(words("\0 & | ! () or OR").is_empty());
        assert_eq!(words(&"ab ".repeat(100_000)), ["ab"]);
        let many: String = (0..99).map(|number| format!("w{number} ")).collect();
        assert_eq!(words(&many).len(), MOST_WORDS);
    }

    #[test]
    fn a_page_has_the_address_of_gitlabs_site() {
        let url = |path| url("https://docs.example.com/", path);
        assert_eq!(
            url("user/project/merge_requests/_index.md"),
            "https://docs.example.com/user/project/merge_requests/"
        );
        assert_eq!(url("ci/yaml/index.md"), "https://docs.example.com/ci/yaml/");
        assert_eq!(url("user/my page.md"), "https://docs.example.com/user/my%20page/");
        assert_eq!(url("_index.md"), "https://docs.example.com/");
    }

    #[test]
    fn a_release_is_the_first_two_numbers() {
        assert_eq!(release("18.9.2-ee"), "18.9");
        assert_eq!(release("18.9"), "18.9");
        for other in ["", "18", "main", "v18.9", "18.x.1"] {
            assert_eq!(release(other), other);
        }
    }

    proptest! {
        #[test]
        fn any_question_has_words_that_postgres_takes(query in "(?s).{0,200}") {
            for word in words(&query) {
                prop_assert!(word.len() <= LONGEST_WORD && word.chars().all(char::is_alphanumeric), "{word:?}");
            }
        }
    }
}
