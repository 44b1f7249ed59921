//! `duo-broker config`: check, diff, apply, export.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use duo_broker::config_file::{self, Applied, ApplyError, ConfigFile, Problem};
use duo_broker::store::change::Edit;
use duo_contract::snapshot::PromptOverride;
use serde_json::Value;

use super::output::{line, say};
use super::{ConfigProblem, actor, optional_store, store};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say everything that is wrong with a file, and change nothing.
    ///
    /// Without DUO_DATABASE_URL only what shows in the file itself is checked: syntax, names, numbers, templates. With
    /// it, also what the file would do to the configuration of the moment.
    Check {
        /// The file, YAML.
        file: PathBuf,
    },
    /// Make the configuration what a file says, whole or not at all.
    #[command(after_long_help = "Example of a file:
  models:                       # where present, the full list; as are issuers and prompts
    - {name: mistral, family: mistral_7b, context_tokens: 32768, max_output_tokens: 4096}
  features:                     # only those named change
    code_generation: {model: mistral}
    duo_chat: {model: mistral, acknowledge: \"evaluated locally by the platform team\"}
    code_completion: inactive
  issuers:
    - {url: \"https://gitlab.example.com\", audience: gitlab-ai-gateway}
  support_levels:               # only those named change, each with a reason
    - {feature: duo_chat, family: mistral_7b, level: supported, reason: \"two weeks of trials\"}
  prompts:                      # text, or file relative to this one
    - {id: chat/explain_code, family: base, file: prompts/explain_code.md}

Brokers and workers follow within a second.")]
    Apply(ApplyArguments),
    /// Say what applying a file would change, and change nothing.
    Diff {
        /// The file, YAML.
        file: PathBuf,
    },
    /// Print the configuration as a file that applies to the same state.
    Export,
}

#[derive(Debug, Args)]
pub(super) struct ApplyArguments {
    /// The file, YAML.
    file: PathBuf,
    /// Who the change is recorded under; the person logged in here by default.
    #[arg(long)]
    actor: Option<String>,
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(command: ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check { file } => check(&file).await,
        ConfigCommand::Apply(arguments) => apply(arguments).await,
        ConfigCommand::Diff { file } => {
            apply(ApplyArguments {
                file,
                actor: None,
                dry_run: true,
            })
            .await
        }
        ConfigCommand::Export => {
            let state = store()?.config_state().await?;
            line(config_file::export(&state).trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn check(path: &Path) -> anyhow::Result<ExitCode> {
    let file = read(path)?;
    let Some(store) = optional_store()? else {
        line("the file itself is good; set DUO_DATABASE_URL to check it against the configuration in use")?;
        return Ok(ExitCode::SUCCESS);
    };
    let would = config_file::dry_run(&store, &file, &actor(None), &check_prompt).await;
    let applied = would.map_err(|error| refused(path, error))?;
    line(&format!(
        "the file is good and would change {}",
        counted(applied.edits.len())
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn apply(arguments: ApplyArguments) -> anyhow::Result<ExitCode> {
    let path = &arguments.file;
    let file = read(path)?;
    let (store, actor) = (store()?, actor(arguments.actor));
    let applied = if arguments.dry_run {
        config_file::dry_run(&store, &file, &actor, &check_prompt).await
    } else {
        config_file::apply(&store, &file, &actor, None, &check_prompt).await
    };
    let applied = applied.map_err(|error| refused(path, error))?;
    print(&applied, arguments.dry_run)?;
    Ok(ExitCode::SUCCESS)
}

fn print(applied: &Applied, dry_run: bool) -> anyhow::Result<()> {
    for edit in &applied.edits {
        line(&described(edit))?;
    }
    let revision = applied.revision;
    line(&match (applied.edits.len(), dry_run) {
        (0, _) => format!("nothing to change; the revision stays {revision}"),
        (count, true) => format!("would change {} and make revision {revision}", counted(count)),
        (count, false) => format!("changed {}; the revision is {revision}", counted(count)),
    })?;
    Ok(())
}

/// One line per row: what was done, to which one, and which of its fields are others now.
fn described(edit: &Edit) -> String {
    let record = edit.record();
    let fields = match (&record.before, &record.after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let changed = after
                .iter()
                .filter(|(name, value)| before.get(*name) != Some(value));
            let gone = before.iter().filter(|(name, _)| !after.contains_key(*name));
            let changed = changed.map(|(name, value)| format!("{name}={}", short(value)));
            let gone = gone.map(|(name, _)| format!("{name}=none"));
            changed.chain(gone).collect()
        }
        (None, Some(Value::Object(after))) => {
            let fields = after.iter();
            fields
                .map(|(name, value)| format!("{name}={}", short(value)))
                .collect()
        }
        _ => Vec::new(),
    };
    let sign = match (&record.before, &record.after) {
        (None, _) => '+',
        (_, None) => '-',
        _ => '~',
    };
    format!("{sign} {} {} {}", record.what, record.subject, fields.join(" "))
        .trim_end()
        .to_owned()
}

/// A value on one line; a template's text is only measured.
fn short(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() > 60 || text.contains('\n') => format!("({} bytes)", text.len()),
        Value::Object(fields) => fields.get("text").map_or_else(|| value.to_string(), short),
        other => other.to_string(),
    }
}

fn counted(rows: usize) -> String {
    if rows == 1 {
        "1 row".to_owned()
    } else {
        format!("{rows} rows")
    }
}

fn read(path: &Path) -> anyhow::Result<ConfigFile> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    config_file::parse(&text, Some(folder), &check_prompt).map_err(|problems| listed(path, &problems))
}

fn refused(path: &Path, error: ApplyError) -> anyhow::Error {
    match error {
        ApplyError::Refused(problems) => listed(path, &problems),
        ApplyError::Store(error) => error.into(),
        other => other.into(),
    }
}

/// Lists every problem as editors and people read them, and makes the error that ends the program.
fn listed(path: &Path, problems: &[Problem]) -> anyhow::Error {
    for problem in problems {
        say(&format!("{}: {problem}", path.display()));
    }
    let count = if problems.len() == 1 {
        "1 problem".to_owned()
    } else {
        format!("{} problems", problems.len())
    };
    ConfigProblem(format!(
        "{} is refused with {count}; nothing was changed",
        path.display()
    ))
    .into()
}

/// Tells whether a template can be used.
fn check_prompt(replacement: &PromptOverride) -> Result<(), String> {
    duo_broker::prompt::check(replacement)
}
