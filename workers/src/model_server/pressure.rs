//! Asks a model server for its load, and sets the slots by it (`slots: auto`).
//!
//! vLLM and SGLang tell it on their metrics page. What is not known any more
//! is held for a while, then the slots fall back to their least number.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ModelServer;
use crate::slots::auto::{Auto, Pressure};

/// How often the server is asked; its page costs it some milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the last number holds when the server does not tell its load.
const HOLD: Duration = Duration::from_secs(5);

/// Requests in the server's own line, by each server's name for them.
const WAITING: [&str; 2] = ["vllm:num_requests_waiting", "sglang:num_queue_reqs"];
/// Share of the cache in use: vLLM's name, its older one, and SGLang's.
const CACHE: [&str; 3] = [
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
];

/// Keeps the slots of `server` in step with its load, if its file says so.
pub async fn follow(server: Arc<ModelServer>) {
    let Some(bounds) = server.auto else { return };
    let mut auto = Auto::new(bounds);
    let mut heard = Instant::now();
    let mut known = true;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        match server.http().pressure().await {
            Ok(pressure) => {
                heard = Instant::now();
                known = true;
                server.slots.resize(auto.look(pressure, server.slots.usage()));
            }
            Err(error) if known && heard.elapsed() >= HOLD => {
                known = false;
                let slots = auto.forget();
                tracing::warn!(
                    server = &*server.name,
                    slots,
                    error = format!("{error:#}"),
                    "the model server does not tell its load; its slots fall back to slots_min"
                );
                server.slots.resize(slots);
            }
            Err(_) => {}
        }
    }
}

/// Reads a page of metrics in Prometheus' text format; several engines or
/// models of one server add up their lines, and the fullest cache counts.
pub(super) fn parse(page: &str) -> Option<Pressure> {
    let (mut waiting, mut cache) = (None, None);
    for line in page.lines() {
        let Some((name, value)) = sample(line) else {
            continue;
        };
        if WAITING.contains(&name) {
            *waiting.get_or_insert(0.0) += value;
        } else if CACHE.contains(&name) {
            let fullest = cache.get_or_insert(value);
            *fullest = fullest.max(value);
        }
    }
    let waiting = waiting?.clamp(0.0, f64::from(u32::MAX));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to what fits"
    )]
    let waiting = waiting as u64;
    Some(Pressure {
        waiting,
        cache: cache?,
    })
}

/// Name and value of a sample: `name{labels} value` or `name value`.
fn sample(line: &str) -> Option<(&str, f64)> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    // A label's value may hold anything but the last brace of its line.
    let value = rest.rsplit_once('}').map_or(rest, |(_, value)| value);
    let value: f64 = value.split_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_read_from_vllms_page_old_and_new() {
        let page = "# HELP vllm:num_requests_waiting Number of requests waiting.\n\
            # TYPE vllm:num_requests_waiting gauge\n\
            vllm:num_requests_waiting{engine=\"0\",model_name=\"a } b\"} 3.0\n\
            vllm:num_requests_waiting{engine=\"1\",model_name=\"m\"} 4.0\n\
            vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 9.0\n\
            vllm:gpu_cache_usage_perc{engine=\"0\"} 0.25\n\
            vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n";
        let load = parse(page).expect("the load");
        assert_eq!(
            load,
            Pressure {
                waiting: 7,
                cache: 0.5
            }
        );
    }

    #[test]
    fn the_load_is_read_from_sglangs_page() {
        let page = "sglang:token_usage{model_name=\"m\"} 0.28\nsglang:num_queue_reqs{model_name=\"m\"} 2.0\n";
        let load = parse(page).expect("the load");
        assert_eq!(
            load,
            Pressure {
                waiting: 2,
                cache: 0.28
            }
        );
    }

    #[test]
    fn half_a_load_is_none() {
        assert_eq!(parse("vllm:num_requests_waiting 1\n"), None);
        assert_eq!(parse("vllm:kv_cache_usage_perc 0.1\n"), None);
        assert_eq!(parse("<html>not metrics</html>"), None);
        assert_eq!(
            parse("vllm:num_requests_waiting NaN\nvllm:kv_cache_usage_perc 1\n"),
            None
        );
    }
}
