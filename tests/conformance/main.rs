//! The contract with GitLab, its editors, and who asks for vectors and inferences, line by line, over HTTP against the
//! running programs.
//!
//! A case is one thing that a client relies on; its name says which. All of them share a few clusters, because a case
//! takes milliseconds and a cluster seconds. What fails is told at the end, all of it together, with the count.

mod access;
mod administrator;
mod bodies;
mod case;
mod chat;
mod completions;
mod crowd;
mod documentation;
mod embeddings;
mod everywhere;
mod generations;
mod infer;
mod old_generations;
mod older;
mod openai_embeddings;
mod prompts;
mod setup;
mod trouble;

use std::any::Any;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use case::Case;
use duo_system_tests::harness::Cluster;
use futures_util::FutureExt as _;

/// What became of some cases.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_the_contract_holds() {
    let began = Instant::now();
    let (plain, troubled) = tokio::join!(Box::pin(setup::plain()), Box::pin(setup::troubled()));
    let mut tally = Tally::default();
    let usual = [
        access::cases(),
        everywhere::cases(),
        completions::cases(),
        generations::cases(),
        old_generations::cases(),
        chat::cases(),
        prompts::cases(),
        older::cases(),
        documentation::cases(),
        embeddings::cases(),
        infer::cases(),
        crowd::shares(),
        // Last: a second caller at work would have a part of the shares before.
        openai_embeddings::cases(),
    ];
    for case in usual.into_iter().flatten() {
        tally.take(case, &plain).await;
    }
    plain.assert_clean().await;
    let mut left = trouble::cases();
    let last = left.pop();
    for case in left {
        tally.take(case, &troubled).await;
        tally.settle(&troubled).await;
    }
    if let Some(last) = last {
        tally.take(last, &troubled).await;
    }
    troubled.assert_clean().await;
    tally.tell(began);
}

impl Tally {
    /// Runs a case, and keeps what it says when it fails.
    async fn take(&mut self, case: Case, cluster: &Arc<Cluster>) {
        if only().is_some_and(|word| !case.name.contains(&word)) {
            return;
        }
        let name = case.name.clone();
        match AssertUnwindSafe(case.run(Arc::clone(cluster)))
            .catch_unwind()
            .await
        {
            Ok(()) => self.passed += 1,
            Err(panic) => self.failed.push(format!("{name}\n      {}", words(panic))),
        }
    }

    /// Between two failures of the model server.
    async fn settle(&mut self, cluster: &Arc<Cluster>) {
        if only().is_some() && self.passed + self.failed.len() == 0 {
            return;
        }
        cluster
            .sim
            .set(|sim| *sim = duo_system_tests::sim::Settings::default());
        trouble::settle(cluster).await;
    }

    fn tell(self, began: Instant) {
        let (count, failed) = (self.passed + self.failed.len(), self.failed.len());
        let mut text = format!(
            "\nconformance: {count} cases, {failed} failed, {:.0?}\n",
            began.elapsed()
        );
        for failure in &self.failed {
            text += &format!("  - {failure}\n");
        }
        let _shown = std::io::stderr().write_all(text.as_bytes());
        assert!(self.failed.is_empty(), "{text}");
    }
}

/// While one works on a few cases: a word of their names.
fn only() -> Option<String> {
    let word = std::env::var_os("DUO_TEST_CONFORMANCE")?;
    word.into_string().ok().filter(|word| !word.is_empty())
}

/// What a case said when it failed.
fn words(panic: Box<dyn Any + Send>) -> String {
    let text = match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic
            .downcast::<&str>()
            .map_or("?".to_owned(), |text| (*text).to_owned()),
    };
    text.chars().take(1500).collect()
}
