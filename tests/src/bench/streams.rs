//! Many streams at once at the pace of a real model: does every token come, and in time?
//!
//! The streams are opened one after the other at a steady rate, each at its own due moment, and all are open during
//! the window. Between two tokens of a stream lies a *gap*; that tokens come together shows as one long gap and some
//! of nothing. How *late* a token is counts from the stream's first: a way that falls behind a little with each token
//! shows there, and not in its gaps.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::Options;
use super::check::Shape;
use super::cpu::Usage;
use super::load::{Client, Measured, Sample, Target};
use super::report::{Spread, StreamsRow};
use super::target::{Servers, Way};
use super::throughput::{serves, taking_part};

/// Streams opened in a second.
const OPENED_A_SECOND: f64 = 500.0;
/// How long after the window the first stream ends.
const MARGIN: Duration = Duration::from_secs(1);
/// A gap of more than so many paces is a stall.
const STALL: u32 = 3;
/// Programs, by the beginning of their names, whose memory a stream through the broker takes; NATS and PostgreSQL keep
/// what they keep with or without.
const HOLDERS: [&str; 2] = ["broker", "worker"];

/// How the streams of one measurement lie in time.
#[derive(Clone, Copy)]
struct Plan {
    streams: usize,
    tokens: usize,
    pace: Duration,
    begins: Instant,
    /// When the last is opened and the window begins.
    opens: Instant,
    closes: Instant,
}

/// What came of some streams.
#[derive(Default)]
struct Seen {
    samples: Vec<Sample>,
    /// In nanoseconds, of tokens that came after the window had opened.
    gaps: Vec<u64>,
    late: Vec<u64>,
    tokens: u64,
    /// Tokens that came within the window.
    in_window: u64,
    /// Wrong answers.
    wrong: Measured,
}

/// One measurement for each number of streams and each way.
pub(super) fn measure(
    options: &Options,
    servers: &Servers,
    runtime: &Runtime,
    progress: &impl Fn(&str),
) -> anyhow::Result<Vec<StreamsRow>> {
    let pace = Duration::from_millis(options.pace_ms);
    let mut rows = Vec::new();
    let ways = |tokens| servers.ways(options, Shape::ChatStream, tokens);
    let mut idle = Vec::new();
    for Way { over, .. } in ways(1)? {
        idle.push(Usage::of_all(&taking_part(options, &over))?);
    }
    for streams in options.streams.iter().copied() {
        let ramp = Duration::from_secs_f64(streams as f64 / OPENED_A_SECOND);
        let window = Duration::from_secs(options.seconds);
        let tokens = ((ramp + window + MARGIN).as_secs_f64() / pace.as_secs_f64()).ceil() as usize;
        runtime.block_on(servers.set(&json!({"pace_ms": options.pace_ms, "tokens": tokens})))?;
        for (Way { over, target }, idle) in ways(tokens)?.into_iter().zip(&idle) {
            progress(&format!("streams: {streams} at a time, {over}"));
            let begins = Instant::now();
            let plan = Plan {
                streams,
                tokens,
                pace,
                begins,
                opens: begins + ramp,
                closes: begins + ramp + window,
            };
            rows.push(window_of(options, plan, (&over, target), idle)?);
        }
    }
    runtime.block_on(servers.set(&json!({"pace_ms": 0, "tokens": options.tokens})))?;
    Ok(rows)
}

fn window_of(
    options: &Options,
    plan: Plan,
    (over, target): (&str, Target),
    idle: &[Usage],
) -> anyhow::Result<StreamsRow> {
    let processes = taking_part(options, over);
    let target = Arc::new(target);
    let (mut seen, used, grown) = thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|thread| {
                let target = &target;
                scope.spawn(move || generate(plan, target, thread, options.threads))
            })
            .collect();
        thread::sleep(plan.opens.saturating_duration_since(Instant::now()));
        let before = Usage::of_all(&processes)?;
        thread::sleep(plan.closes.saturating_duration_since(Instant::now()));
        let after = Usage::of_all(&processes)?;
        let grown: Vec<_> = idle
            .iter()
            .zip(&after)
            .map(|(idle, after)| (after.name.clone(), after.resident.saturating_sub(idle.resident)))
            .collect();
        let mut all = Seen::default();
        for thread in threads {
            let one = thread.join();
            all.add(one.map_err(|_| io::Error::other("a generator's thread panicked"))??);
        }
        io::Result::Ok((all, Usage::between(before, after), grown))
    })?;
    let nanoseconds = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let long = nanoseconds(plan.pace * STALL);
    let cpu: Duration = used
        .iter()
        .filter(|used| serves(options, over, &used.name))
        .map(|used| used.cpu)
        .sum();
    let held: u64 = grown
        .iter()
        .filter(|(name, _)| name == over || HOLDERS.iter().any(|holder| name.starts_with(holder)))
        .map(|(_, bytes)| bytes)
        .sum();
    Ok(StreamsRow {
        over: over.to_owned(),
        streams: plan.streams,
        pace_ms: options.pace_ms,
        tokens: plan.tokens,
        ended: seen.samples.len(),
        missing: (plan.streams * plan.tokens) as u64 - seen.tokens,
        stalls: seen.gaps.iter().filter(|gap| **gap > long).count(),
        first_us: Spread::of(seen.samples.iter().map(|sample| sample.first).collect()),
        gap_us: Spread::of(std::mem::take(&mut seen.gaps)),
        late_us: Spread::of(std::mem::take(&mut seen.late)),
        tokens_per_second: seen.in_window as f64 / options.seconds as f64,
        cpu_us_per_token: (!cpu.is_zero() && seen.in_window > 0)
            .then(|| cpu.as_secs_f64() * 1e6 / seen.in_window as f64),
        bytes_per_stream: (held > 0).then(|| held / plan.streams as u64),
        used,
        wrong: seen.wrong.wrong,
        told: seen.wrong.told,
    })
}

/// One thread's share of the streams.
fn generate(plan: Plan, target: &Arc<Target>, thread: usize, threads: usize) -> io::Result<Seen> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let mut streams = JoinSet::new();
            for number in (thread..plan.streams).step_by(threads) {
                let client = Client::new(Arc::clone(target), number);
                streams.spawn(stream(plan, client, number, Arc::clone(&seen)));
            }
            while let Some(one) = streams.join_next().await {
                one.map_err(io::Error::other)?;
            }
            io::Result::Ok(())
        })?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *seen))
}

/// One stream, opened when it is due.
async fn stream(plan: Plan, mut client: Client, number: usize, seen: Arc<Mutex<Seen>>) {
    let due = plan.begins + (plan.opens - plan.begins).mul_f64(number as f64 / plan.streams as f64);
    tokio::time::sleep_until(due.into()).await;
    let mut came = Arrivals::default();
    let longest = plan.pace * u32::try_from(plan.tokens).unwrap_or(u32::MAX) * 3 + Duration::from_secs(30);
    let all = &seen;
    let answered = client
        .watch(due, longest, |texts| {
            if texts > came.tokens {
                let mut seen = all.lock().unwrap_or_else(PoisonError::into_inner);
                came.note(texts, Instant::now(), plan, &mut seen);
            }
        })
        .await;
    let mut seen = all.lock().unwrap_or_else(PoisonError::into_inner);
    match answered {
        Ok(sample) => seen.samples.push(sample),
        Err(problem) => seen.wrong.tell(problem),
    }
}

/// When a stream's tokens came.
#[derive(Default)]
struct Arrivals {
    tokens: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Arrivals {
    /// The answer has so many tokens by now.
    fn note(&mut self, tokens: u64, now: Instant, plan: Plan, seen: &mut Seen) {
        let first = *self.first.get_or_insert(now);
        for token in self.tokens..tokens {
            let gap = self.last.map(|last| now - last);
            self.last = Some(now);
            let paces = plan.pace * u32::try_from(token).unwrap_or(u32::MAX);
            if let Some(gap) = gap.filter(|_| now >= plan.opens) {
                seen.gaps.push(u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX));
                let late = (now - first).saturating_sub(paces);
                seen.late.push(u64::try_from(late.as_nanos()).unwrap_or(u64::MAX));
            }
        }
        if now >= plan.opens && now < plan.closes {
            seen.in_window += tokens - self.tokens;
        }
        seen.tokens += tokens - self.tokens;
        self.tokens = tokens;
    }
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.gaps.extend(other.gaps);
        self.late.extend(other.late);
        self.tokens += other.tokens;
        self.in_window += other.in_window;
        self.wrong.add(other.wrong);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_come_together_are_one_gap_and_none() {
        let begins = Instant::now();
        let plan = Plan {
            streams: 1,
            tokens: 4,
            pace: Duration::from_millis(50),
            begins,
            opens: begins,
            closes: begins + Duration::from_millis(150),
        };
        let (mut came, mut seen) = (Arrivals::default(), Seen::default());
        let at = |millis| begins + Duration::from_millis(millis);
        came.note(1, at(10), plan, &mut seen);
        came.note(3, at(120), plan, &mut seen);
        came.note(4, at(160), plan, &mut seen);
        assert_eq!(seen.gaps, [110_000_000, 0, 40_000_000]);
        assert_eq!(seen.late, [60_000_000, 10_000_000, 0]);
        assert_eq!((seen.tokens, seen.in_window), (4, 3));
    }
}
