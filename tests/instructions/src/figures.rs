//! The committed figures, and what has become of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::paths::PATHS;

/// A change of so many percent is none: inlining shifts with code elsewhere, and hash tables are seeded anew each time.
const TOLERANCE: f64 = 3.0;
/// Paths that are counted at the same time.
const AT_ONCE: usize = 2;
/// The function within which callgrind counts.
const COUNTED: &str = "--toggle-collect=*::collect_instructions*";

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Figures {
    /// The compiler and its target, without which they say nothing.
    compiler: String,
    /// Instructions of one run of each path.
    instructions: BTreeMap<String, u64>,
}

/// Counts all paths and prints what has become of them, or writes it into `file`; false if one got dearer.
///
/// # Errors
/// valgrind, a path or the file did not work.
pub(crate) fn compare(file: &Path, update: bool) -> anyhow::Result<bool> {
    let committed = match fs::read_to_string(file) {
        Ok(text) => {
            serde_json::from_str(&text).with_context(|| format!("{} does not parse", file.display()))?
        }
        Err(_) if update => Figures::default(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let compiler = compiler()?;
    if !update && compiler != committed.compiler {
        say(&format!(
            "NOT CHECKED: the committed figures are of {}, and this is {compiler}",
            committed.compiler
        ));
        return Ok(true);
    }
    let now = Figures {
        compiler,
        instructions: count()?.into_iter().collect(),
    };
    let good = report(&committed, &now);
    if update {
        let text = serde_json::to_string_pretty(&now)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        return Ok(true);
    }
    Ok(good)
}

/// Prints each path; true if none is dearer, new or missing.
fn report(committed: &Figures, now: &Figures) -> bool {
    say(&format!(
        "{:42} {:>10} {:>10} {:>8}",
        "INSTRUCTIONS", "COMMITTED", "NOW", "CHANGE"
    ));
    let (mut dearer, mut cheaper, mut unknown) = (0, 0, 0);
    for path in PATHS {
        let count = now.instructions.get(path.name).copied().unwrap_or_default();
        let Some(before) = committed.instructions.get(path.name).copied() else {
            unknown += 1;
            say(&format!("{:42} {:>10} {count:>10} {:>8}", path.name, "", "new"));
            continue;
        };
        let change = percent(before, count);
        let word = match change {
            change if change > TOLERANCE => {
                dearer += 1;
                "  DEARER"
            }
            change if change < -TOLERANCE => {
                cheaper += 1;
                "  cheaper"
            }
            _ => "",
        };
        say(&format!(
            "{:42} {before:>10} {count:>10} {change:>+7.1}%{word}",
            path.name
        ));
    }
    for name in committed.instructions.keys() {
        if !now.instructions.contains_key(name) {
            unknown += 1;
            say(&format!("{name:42} is no path any more"));
        }
    }
    if dearer > 0 {
        say(&format!(
            "{dearer} got dearer by more than {TOLERANCE} %. If that is meant, say why in the commit, and write the new \
             figures: ./tests/bench/instructions --update"
        ));
    }
    if cheaper > 0 {
        say(&format!(
            "{cheaper} got cheaper by more than {TOLERANCE} %: keep the gain with ./tests/bench/instructions --update"
        ));
    }
    if unknown > 0 {
        say("paths and figures do not go together: ./tests/bench/instructions --update");
    }
    dearer + unknown == 0
}

#[expect(clippy::cast_precision_loss, reason = "a percentage")]
fn percent(before: u64, now: u64) -> f64 {
    (now as f64 / before as f64 - 1.0) * 100.0
}

/// The compiler's version and target.
fn compiler() -> anyhow::Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("rustc does not run")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    match (field("release: "), field("host: ")) {
        (Some(release), Some(host)) => Ok(format!("rustc {release} {host}")),
        _ => bail!("rustc -vV says neither release nor host"),
    }
}

/// Instructions of one run of each path.
fn count() -> anyhow::Result<Vec<(String, u64)>> {
    let folder = tempfile::tempdir()?;
    let mut counts = Vec::new();
    let numbered: Vec<_> = PATHS.iter().enumerate().collect();
    for pair in numbered.chunks(AT_ONCE) {
        let running: Vec<_> = pair
            .iter()
            .map(|(index, path)| Ok((path.name, Running::start(&folder, *index, path.name)?)))
            .collect::<anyhow::Result<_>>()?;
        for (name, running) in running {
            let count = running.finish().with_context(|| format!("path {name:?}"))?;
            counts.push((name.to_owned(), count));
        }
    }
    Ok(counts)
}

/// A path under valgrind.
struct Running {
    child: std::process::Child,
    out: std::path::PathBuf,
    errors: std::path::PathBuf,
}

impl Running {
    fn start(folder: &TempDir, index: usize, name: &str) -> anyhow::Result<Self> {
        let place = |kind: &str| folder.path().join(format!("{index}.{kind}"));
        let (out, errors) = (place("out"), place("errors"));
        let child = Command::new("valgrind")
            .args(["-q", "--tool=callgrind", COUNTED])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(std::env::current_exe()?)
            .args(["--path", name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?)
            .spawn()
            .context("valgrind does not run; on Debian: apt-get install valgrind")?;
        Ok(Self { child, out, errors })
    }

    fn finish(self) -> anyhow::Result<u64> {
        let output = self.child.wait_with_output()?;
        if !output.status.success() {
            let errors = fs::read_to_string(&self.errors).unwrap_or_default();
            let last: Vec<_> = errors.lines().rev().take(10).collect();
            bail!(
                "{}: {}",
                output.status,
                last.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        let runs: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        let out = fs::read_to_string(&self.out)?;
        let total = out
            .lines()
            .find_map(|line| line.strip_prefix("summary: ").or(line.strip_prefix("totals: ")))
            .context("callgrind wrote no total")?;
        let total: u64 = total.trim().parse()?;
        ensure!(
            total > 0 && runs > 0,
            "nothing was counted: {COUNTED} fits no function"
        );
        Ok(total / runs)
    }
}

#[expect(clippy::print_stdout, reason = "the program's output")]
fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(count: u64) -> Figures {
        Figures {
            compiler: String::new(),
            instructions: PATHS.iter().map(|path| (path.name.to_owned(), count)).collect(),
        }
    }

    #[test]
    fn only_what_got_dearer_is_new_or_is_missing_fails() {
        let committed = figures(1000);
        for (now, good) in [(1000, true), (1029, true), (1031, false), (500, true)] {
            assert_eq!(report(&committed, &figures(now)), good, "{now}");
        }
        let mut fewer = figures(1000);
        fewer.instructions.remove(PATHS[0].name);
        assert!(!report(&fewer, &committed));
        let mut more = figures(1000);
        more.instructions.insert("gone".into(), 1000);
        assert!(!report(&more, &committed));
    }
}
