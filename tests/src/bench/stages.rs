//! Where the time of a hop goes: the stages that broker and worker count ([`Stage`]), read before and after a window.
//!
//! Every stage is measured on one clock, so the way between two programs is nobody's. What a claim takes there and back
//! is known, and half of it is taken for the way there, which lies at the end of *wait* and beside the model's part. So
//! that half and *work* are the model's part and the frame's way, and all stages add up to the time from the request's
//! head at the broker to its answer's first data in the hands of the client's side. The claim itself is on nobody's way:
//! it is told beside the sum.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use duo_contract::stage::Stage;
use serde::Serialize;

use super::Options;
use super::check::Shape;
use super::load::{Client, Measured};
use super::report::{Row, Spread};
use super::target::Servers;

/// Longest window of one kind of request.
const LONGEST_WINDOW: Duration = Duration::from_secs(5);

/// What one kind of request spent in each stage, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct StagesRow {
    /// `unary` or `stream`.
    pub request: &'static str,
    /// Requests of the window.
    pub requests: usize,
    /// The stages in their order.
    pub stages: Vec<StageTime>,
    /// The claim there and back, beside them.
    pub claim: StageTime,
    /// What the client saw: to the first text, or the whole of what is no stream.
    pub client: StageTime,
    /// What it saw without the broker.
    pub direct: StageTime,
}

/// The time of one stage, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StageTime {
    /// Its name.
    pub name: &'static str,
    /// Exact.
    pub mean_us: f64,
    /// For a stage between the bounds of a bucket, for what a client saw exact.
    pub p50_us: f64,
}

/// One stage's histogram.
#[derive(Clone, Debug, Default, PartialEq)]
struct Histogram {
    /// Samples up to each bound, cumulative.
    below: Vec<(f64, f64)>,
    sum: f64,
    count: f64,
}

/// The histograms of all stages, at the index of [`Stage::ALL`].
#[derive(Clone, Debug, Default, PartialEq)]
struct Look([Histogram; Stage::ALL.len()]);

/// One window for each kind of request, one at a time over the broker alone.
pub(super) async fn measure(
    options: &Options,
    servers: &Servers,
    rows: &mut [Row],
) -> anyhow::Result<Vec<StagesRow>> {
    let mut stages = Vec::new();
    for (request, shape) in [("unary", Shape::Chat), ("stream", Shape::ChatStream)] {
        let ways = servers.ways(options, shape, options.tokens)?;
        let Some(broker) = ways.into_iter().find(|way| way.over == "broker") else {
            break;
        };
        let mut client = Client::new(Arc::new(broker.target), 0);
        let mut measured = Measured::default();
        for _ in 0..20 {
            client.ask(Instant::now()).await.map_err(anyhow::Error::msg)?;
        }
        let before = look(options, servers).await?;
        let until = Instant::now() + LONGEST_WINDOW.min(Duration::from_secs(options.seconds));
        while Instant::now() < until {
            match client.ask(Instant::now()).await {
                Ok(sample) => measured.samples.push(sample),
                Err(problem) => measured.tell(problem),
            }
        }
        let seen = look(options, servers).await?.since(&before);
        let first = |sample: &super::load::Sample| {
            if request == "stream" {
                sample.first
            } else {
                sample.whole
            }
        };
        let spread = Spread::of(measured.samples.iter().map(first).collect());
        let of = |over: &str| {
            rows.iter()
                .position(|row| row.request == request && row.over == over)
        };
        let direct = of("direct").map(|index| &rows[index]);
        let direct = direct.map(|row| {
            if request == "stream" {
                row.first_us
            } else {
                row.whole_us
            }
        });
        stages.push(StagesRow {
            request,
            requests: measured.samples.len(),
            stages: seen.stages(),
            claim: StageTime {
                name: "claim (beside)",
                ..seen.of(Stage::Claim)
            },
            client: StageTime::of("client", spread),
            direct: StageTime::of("direct", direct.unwrap_or_default()),
        });
        // A wrong answer here is one of the hop's.
        if let Some(index) = of("broker") {
            rows[index].wrong += measured.wrong;
            rows[index].told.extend(measured.told);
        }
    }
    Ok(stages)
}

/// What broker and workers have counted so far, all added up.
async fn look(options: &Options, servers: &Servers) -> anyhow::Result<Look> {
    let mut look = Look::default();
    for url in &options.metrics {
        let text = servers
            .text(url)
            .await
            .with_context(|| format!("no metrics at {url}"))?;
        look.add(&text);
    }
    Ok(look)
}

impl StagesRow {
    /// What the client saw beyond all stages: HTTP at both ends, and the generator itself.
    #[must_use]
    pub fn left(&self) -> StageTime {
        let sum = self.sum();
        StageTime {
            name: "left over",
            mean_us: self.client.mean_us - sum.mean_us,
            p50_us: self.client.p50_us - sum.p50_us,
        }
    }

    /// All stages together.
    #[must_use]
    pub fn sum(&self) -> StageTime {
        StageTime {
            name: "sum",
            mean_us: self.stages.iter().map(|stage| stage.mean_us).sum(),
            p50_us: self.stages.iter().map(|stage| stage.p50_us).sum(),
        }
    }

    /// What the broker's way took longer than the direct one.
    #[must_use]
    pub fn added(&self) -> StageTime {
        StageTime {
            name: "added",
            mean_us: self.client.mean_us - self.direct.mean_us,
            p50_us: self.client.p50_us - self.direct.p50_us,
        }
    }
}

impl StageTime {
    fn of(name: &'static str, spread: Spread) -> Self {
        Self {
            name,
            mean_us: spread.mean,
            p50_us: spread.p50,
        }
    }
}

impl Look {
    /// Adds what a page of metrics says.
    fn add(&mut self, page: &str) {
        for line in page.lines() {
            let Some(rest) = line.strip_prefix(Stage::METRIC) else {
                continue;
            };
            let Some(value) = rest.rsplit(' ').next().and_then(|value| value.parse().ok()) else {
                continue;
            };
            let label = |name: &str| {
                rest.split_once(&format!("{name}=\""))?
                    .1
                    .split_once('"')
                    .map(|(text, _)| text)
            };
            let Some(index) =
                label("stage").and_then(|stage| Stage::ALL.iter().position(|known| known.as_str() == stage))
            else {
                continue;
            };
            let histogram = &mut self.0[index];
            match (
                rest.split('{').next(),
                label("le").and_then(|le| le.parse::<f64>().ok()),
            ) {
                (Some("_bucket"), Some(bound)) => histogram.bucket(bound, value),
                (Some("_sum"), _) => histogram.sum += value,
                (Some("_count"), _) => histogram.count += value,
                _ => {}
            }
        }
    }

    fn since(mut self, before: &Self) -> Self {
        for (after, before) in self.0.iter_mut().zip(&before.0) {
            after.sum -= before.sum;
            after.count -= before.count;
            for (bucket, (_, count)) in after.below.iter_mut().zip(&before.below) {
                bucket.1 -= count;
            }
        }
        self
    }

    /// One stage as it was counted, in microseconds.
    fn of(&self, stage: Stage) -> StageTime {
        let index = Stage::ALL
            .iter()
            .position(|known| *known == stage)
            .unwrap_or_default();
        let histogram = &self.0[index];
        StageTime {
            name: stage.as_str(),
            mean_us: histogram.mean() * 1e6,
            p50_us: histogram.median() * 1e6,
        }
    }

    /// The stages of a hop in their order, in microseconds.
    fn stages(&self) -> Vec<StageTime> {
        let of = |stage| self.of(stage);
        let (claim, model) = (of(Stage::Claim), of(Stage::Model));
        let less = |whole: StageTime, name, parts: &[(StageTime, f64)]| StageTime {
            name,
            mean_us: whole.mean_us
                - parts
                    .iter()
                    .map(|(part, share)| part.mean_us * share)
                    .sum::<f64>(),
            p50_us: whole.p50_us - parts.iter().map(|(part, share)| part.p50_us * share).sum::<f64>(),
        };
        vec![
            of(Stage::Auth),
            of(Stage::Admit),
            of(Stage::Publish),
            less(of(Stage::Wait), "wait", &[(claim, 0.5)]),
            model,
            less(of(Stage::Work), "frame", &[(model, 1.0), (claim, -0.5)]),
            of(Stage::Reply),
        ]
    }
}

impl Histogram {
    fn bucket(&mut self, bound: f64, count: f64) {
        match self.below.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, sum)) => *sum += count,
            None => self.below.push((bound, count)),
        }
    }

    fn mean(&self) -> f64 {
        if self.count > 0.0 {
            self.sum / self.count
        } else {
            0.0
        }
    }

    /// Samples are taken to lie evenly within their bucket.
    fn median(&self) -> f64 {
        let half = self.count / 2.0;
        let (mut bound, mut below) = (0.0, 0.0);
        for (next, count) in &self.below {
            if *count >= half && *count > below && next.is_finite() {
                return bound + (next - bound) * (half - below) / (count - below);
            }
            (bound, below) = (*next, *count);
        }
        if bound.is_finite() { bound } else { self.mean() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE duo_stage_seconds histogram\n\
        duo_stage_seconds_bucket{stage=\"claim\",le=\"0.0001\"} 2\n\
        duo_stage_seconds_bucket{stage=\"claim\",le=\"0.0003\"} 6\n\
        duo_stage_seconds_bucket{stage=\"claim\",le=\"+Inf\"} 6\n\
        duo_stage_seconds_sum{stage=\"claim\"} 0.0012\n\
        duo_stage_seconds_count{stage=\"claim\"} 6\n\
        duo_stage_seconds_sum{stage=\"wait\"} 0.0018\n\
        duo_stage_seconds_count{stage=\"wait\"} 6\n\
        duo_stage_seconds_sum{stage=\"work\"} 0.003\n\
        duo_stage_seconds_count{stage=\"work\"} 6\n\
        duo_stage_seconds_sum{stage=\"model\"} 0.0006\n\
        duo_stage_seconds_count{stage=\"model\"} 6\n\
        duo_other_seconds_sum{stage=\"claim\"} 7\n";

    #[test]
    fn work_falls_apart_and_nothing_gets_lost() {
        let mut look = Look::default();
        look.add(PAGE);
        let stages = look.stages();
        let mean = |name| {
            let stage = stages.iter().find(|stage| stage.name == name).unwrap();
            stage.mean_us.round()
        };
        assert_eq!(
            [mean("wait"), mean("model"), mean("frame")],
            [200.0, 100.0, 500.0]
        );
        // Wait and work as the broker has them.
        assert_eq!(
            stages.iter().map(|stage| stage.mean_us).sum::<f64>().round(),
            800.0
        );
    }

    #[test]
    fn a_median_lies_within_its_bucket() {
        let mut look = Look::default();
        look.add(PAGE);
        assert_eq!(look.of(Stage::Claim).p50_us.round(), 150.0);
        assert_eq!(Histogram::default().median(), 0.0);
    }

    #[test]
    fn only_what_came_since_counts() {
        let (mut before, mut after) = (Look::default(), Look::default());
        before.add(PAGE);
        after.add(PAGE);
        after.add(PAGE);
        assert_eq!(after.since(&before), before);
    }
}
