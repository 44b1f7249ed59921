//! `duo-broker docs`: index, status, drop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use duo_broker::documentation::{self, Progress};

use super::output::{self, line, say};
use super::{actor, store};

#[derive(Debug, Subcommand)]
pub(super) enum DocsCommand {
    /// Index a folder of Markdown, for chat's questions about GitLab.
    #[command(after_long_help = "Examples:
  duo-broker docs index /opt/gitlab/embedded/service/gitlab-rails/doc --version 18.9
  duo-broker docs index ./doc --base-url https://gitlab.example.internal/help --version 18.9

The index replaces the earlier one of the same version, whole or not at all; until then that one answers. A GitLab whose
version has none is answered by its release's (18.9 for 18.9.2), else by the index built last.")]
    Index(IndexArguments),
    /// Tell which indexes there are.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Remove the index of a version.
    Drop {
        /// As `docs status` shows it.
        version: String,
        /// Who the change is recorded under; the person logged in here by default.
        #[arg(long)]
        actor: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct IndexArguments {
    /// The folder; GitLab's is doc/ of its sources, installed with every GitLab.
    folder: PathBuf,
    /// GitLab's version that it documents, such as 18.9.
    #[arg(long, default_value = "")]
    version: String,
    /// Where people read it: the start of the addresses shown below answers.
    #[arg(long, default_value = "https://docs.gitlab.com")]
    base_url: String,
    /// Who the change is recorded under; the person logged in here by default.
    #[arg(long)]
    actor: Option<String>,
}

pub(super) async fn run(command: DocsCommand) -> anyhow::Result<ExitCode> {
    match command {
        DocsCommand::Index(arguments) => index(arguments).await?,
        DocsCommand::Status { json } => status(json).await?,
        DocsCommand::Drop { version, actor: who } => {
            let gone = store()?.drop_index(&actor(who), &version).await?;
            line(&format!(
                "dropped {} sections of {} pages",
                gone.sections, gone.pages
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn index(arguments: IndexArguments) -> anyhow::Result<()> {
    let index = store()?
        .begin_index(&actor(arguments.actor), &arguments.version)
        .await?;
    let told = |progress: Progress| {
        say(&format!(
            "{} pages, {} sections so far",
            progress.pages, progress.sections
        ));
    };
    let done = documentation::build(index, &arguments.folder, &arguments.base_url, told).await?;
    if done.too_large > 0 {
        say(&format!(
            "{} pages are larger than 4 MiB and left out",
            done.too_large
        ));
    }
    line(&format!(
        "indexed {} sections of {} pages for version {}",
        done.sections,
        done.pages,
        shown(&arguments.version)
    ))?;
    Ok(())
}

async fn status(json: bool) -> anyhow::Result<()> {
    let indexes = store()?.indexes().await?;
    if json {
        return output::json(&indexes);
    }
    let rows: Vec<_> = indexes
        .iter()
        .map(|index| {
            vec![
                shown(&index.version).to_owned(),
                index.pages.to_string(),
                index.sections.to_string(),
                output::moment(index.built_at),
            ]
        })
        .collect();
    output::table(&["VERSION", "PAGES", "SECTIONS", "BUILT"], &rows)?;
    if rows.is_empty() {
        say(
            "there is no index: chat answers questions about GitLab without its documentation; duo-broker docs index FOLDER makes one",
        );
    }
    Ok(())
}

fn shown(version: &str) -> &str {
    if version.is_empty() { "(none)" } else { version }
}
