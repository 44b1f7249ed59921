//! Pages and counts over HTTP.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;
use time::format_description::well_known::Rfc3339;

use super::super::report::Spread;
use super::{Asked, Door};

/// People whose records are looked for, of all that records were made of.
const PEOPLE: u64 = 40;
/// Pages of one of them at most.
const DEPTH: usize = 25;
const PAGE: usize = 100;
/// How often the same count is asked for.
const TIMES: u64 = 20;
/// Features that records are made of.
const FEATURES: [&str; 6] = [
    "code_completion",
    "code_generation",
    "duo_chat",
    "code_review_summary",
    "merge_request_summary",
    "vulnerability_explanation",
];

/// Answers of one kind.
#[derive(Default)]
struct Answers {
    took: Vec<u64>,
    cut: usize,
}

impl Answers {
    fn asked(self, what: &'static str, cpu_us: Vec<(String, f64)>) -> Asked {
        Asked {
            what,
            times: self.took.len(),
            cut: self.cut,
            took_us: Spread::of(self.took),
            cpu_us,
        }
    }
}

/// The id of one of the people that records are made of.
fn person(number: u64) -> String {
    hex::encode(digest(&SHA256, format!("user {number}").as_bytes()))
}

impl Door<'_> {
    /// The answer to a question, and how many nanoseconds it took.
    async fn ask(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<(Value, u64)> {
        let broker = self
            .options
            .broker
            .as_ref()
            .context("this scenario needs a broker")?;
        let mut url = broker.join(path)?;
        url.query_pairs_mut().extend_pairs(query);
        let began = Instant::now();
        let answer = self
            .servers
            .http()
            .get(url)
            .bearer_auth(self.token)
            .send()
            .await?;
        let status = answer.status();
        let body = answer.bytes().await?;
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        ensure!(
            status.is_success(),
            "{path}: {status} {}",
            String::from_utf8_lossy(&body)
        );
        Ok((serde_json::from_slice(&body)?, took))
    }
}

/// Pages of people's records of a feature, from the newest down; the counts have to be of the same number.
pub(super) async fn pages(door: &Door<'_>, wrong: &mut Vec<String>) -> anyhow::Result<Vec<Asked>> {
    let until = door.until.format(&Rfc3339)?;
    let since = door.since.format(&Rfc3339)?;
    let (mut first, mut further, mut counts) = (Answers::default(), Answers::default(), Answers::default());
    let (mut of_first, mut of_further) = (Vec::new(), Vec::new());
    for index in 0..PEOPLE {
        let user = person(index * door.options.users / PEOPLE);
        let feature = FEATURES[usize::try_from(index)? % FEATURES.len()];
        let filter = [
            ("user", user.as_str()),
            ("feature", feature),
            ("since", &since),
            ("until", &until),
        ];
        let (mut cursor, mut found, mut last) = (None::<String>, 0, String::new());
        for depth in 0..DEPTH {
            let mut query = filter.to_vec();
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let before = door.used()?;
            let (page, took) = door.ask("/audit/v1/events", &query).await?;
            let (answers, used) = match depth {
                0 => (&mut first, &mut of_first),
                _ => (&mut further, &mut of_further),
            };
            used.extend(door.used_since(before, 1)?);
            answers.took.push(took);
            let events = page["events"].as_array().context("a page without events")?;
            answers.cut += usize::from(!page["searched_to"].is_null());
            for event in events {
                let at = event["occurred_at"].as_str().unwrap_or_default().to_owned();
                // Texts of moments have more or fewer digits, so only their seconds are compared.
                let seconds = |text: &str| text.get(..19).map(str::to_owned);
                if event["user_id"] != user
                    || event["feature"] != feature
                    || (!last.is_empty() && seconds(&at) > seconds(&last))
                {
                    wrong.push(format!("a page of {user} and {feature} has {event}"));
                }
                last = at;
            }
            found += events.len();
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                break;
            }
            if events.len() != PAGE && page["searched_to"].is_null() {
                wrong.push(format!("a page that is not the last has {} events", events.len()));
            }
        }
        let (facets, took) = door.ask("/audit/v1/facets", &filter).await?;
        counts.took.push(took);
        counts.cut += usize::from(!facets["counted_to"].is_null());
        let records = facets["records"].as_u64().unwrap_or_default();
        let is_right = match cursor {
            None => records == found as u64,
            Some(_) => records >= found as u64,
        };
        if !is_right {
            wrong.push(format!("{user}, {feature}: {found} on pages, {records} counted"));
        }
    }
    Ok(vec![
        first.asked("a person's page of a feature, the first", mean(of_first)),
        further.asked("the same, further down", mean(of_further)),
        counts.asked("counts of a person and a feature", Vec::new()),
    ])
}

/// Counts that nothing but time and sorts restrict.
pub(super) async fn counts(door: &Door<'_>, wrong: &mut Vec<String>) -> anyhow::Result<Vec<Asked>> {
    let until = door.until.format(&Rfc3339)?;
    let month = (door.until - time::Duration::days(30)).max(door.since);
    let hours = (month + time::Duration::minutes(90)).format(&Rfc3339)?;
    let expected = door.counted(time::OffsetDateTime::UNIX_EPOCH, door.until).await?;
    let (facets, _) = door.ask("/audit/v1/facets", &[("until", &until)]).await?;
    if facets["records"] != expected {
        wrong.push(format!("{} records are counted of {expected}", facets["records"]));
    }
    let mut asked = Vec::new();
    let kinds: [(&'static str, &[(&str, &str)]); 3] = [
        ("counts by all facets", &[]),
        (
            "the same, a feature in 30 days",
            &[("feature", "duo_chat"), ("since", &hours)],
        ),
        ("the newest page", &[("limit", "100")]),
    ];
    for (what, query) in kinds {
        let path = match what {
            "the newest page" => "/audit/v1/events",
            _ => "/audit/v1/facets",
        };
        let mut answers = Answers::default();
        let before = door.used()?;
        for _ in 0..TIMES {
            let (_, took) = door.ask(path, query).await?;
            answers.took.push(took);
        }
        asked.push(answers.asked(what, door.used_since(before, TIMES)?));
    }
    let mut answers = Answers::default();
    let before = door.used()?;
    for index in 0..TIMES {
        let user = person(index * door.options.users / TIMES);
        let (facets, took) = door.ask("/audit/v1/facets", &[("user", &user)]).await?;
        answers.took.push(took);
        answers.cut += usize::from(!facets["counted_to"].is_null());
    }
    asked.push(answers.asked("counts of a person", door.used_since(before, TIMES)?));
    Ok(asked)
}

/// The mean of each process.
fn mean(used: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let mut means: Vec<(String, f64, f64)> = Vec::new();
    for (name, us) in used {
        match means.iter_mut().find(|(of, ..)| *of == name) {
            Some((_, sum, count)) => (*sum, *count) = (*sum + us, *count + 1.0),
            None => means.push((name, us, 1.0)),
        }
    }
    means
        .into_iter()
        .map(|(name, sum, count)| (name, sum / count))
        .collect()
}
