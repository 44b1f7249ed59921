//! What the simulated model server counts.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::settings::Settings;

/// One look at the counters.
///
/// Every request that reaches generation ends once: `started` plus those aborted in the line equals `finished` plus
/// `aborted` plus `failed` plus `running`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Generations that got a slot.
    pub started: u64,
    /// Generations whose whole answer was handed out.
    pub finished: u64,
    /// Requests whose client went before the end, running or waiting.
    pub aborted: u64,
    /// The part of `aborted` that was still waiting for a slot.
    pub aborted_waiting: u64,
    /// Generations ended by a simulated fault or by the kill switch.
    pub failed: u64,
    /// Requests refused before generation, simulated failures included.
    pub refused: u64,
    /// Generations that hold a slot now.
    pub running: u64,
    /// Requests that wait for a slot now.
    pub waiting: u64,
    /// Tokens generated.
    pub tokens: u64,
    /// Tokens of prompts read.
    pub prompt_tokens: u64,
    /// Requests that went on from a beginning of this model's own answer.
    pub continued: u64,
    /// Requests that brought a beginning this model would not have said.
    pub diverged: u64,
    /// Tokens of running requests, prompts and answers, that fill the cache now.
    pub cached_tokens: u64,
    /// Requests by endpoint.
    pub requests: Requests,
}

/// Requests by endpoint.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// `/v1/chat/completions`
    pub chat: u64,
    /// `/v1/completions`
    pub completions: u64,
    /// `/v1/embeddings`
    pub embeddings: u64,
    /// `/v2/models/{model}/infer`
    pub infer: u64,
    /// `/v1/models`
    pub models: u64,
    /// `/health`
    pub health: u64,
    /// `/metrics`
    pub metrics: u64,
    /// `/tokenize` and `/detokenize`
    pub tokenize: u64,
}

macro_rules! counters {
    ($($name:ident),+; $($sum:ident),+) => {
        /// The live counters; `Stats` is one look at them.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)+
            $(pub(crate) $sum: AtomicU64,)+
            changed: Notify,
        }
        impl Counters {
            $(
                /// Counts one.
                pub(crate) fn $name(&self) {
                    self.$name.fetch_add(1, Ordering::SeqCst);
                    self.changed.notify_waiters();
                }
            )+
        }
    };
}

counters!(
    started, finished, aborted, aborted_waiting, failed, refused, continued, diverged, chat, completions, embeddings,
    infer, models, health, metrics, tokenize; tokens, prompt_tokens, cached_tokens
);

impl Counters {
    /// Adds to one of the counters.
    pub(crate) fn add(&self, counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Takes running requests' tokens out of the cache.
    pub(crate) fn uncache(&self, count: usize) {
        self.cached_tokens.fetch_sub(count as u64, Ordering::SeqCst);
    }

    /// Resolves at the next change after this call.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Wakes those who wait for a change that is not one of a counter.
    pub(crate) fn touch(&self) {
        self.changed.notify_waiters();
    }

    /// One look, given how many run and wait.
    pub(crate) fn look(&self, (running, waiting): (usize, usize)) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Stats {
            started: read(&self.started),
            finished: read(&self.finished),
            aborted: read(&self.aborted),
            aborted_waiting: read(&self.aborted_waiting),
            failed: read(&self.failed),
            refused: read(&self.refused),
            running: running as u64,
            waiting: waiting as u64,
            tokens: read(&self.tokens),
            prompt_tokens: read(&self.prompt_tokens),
            cached_tokens: read(&self.cached_tokens),
            continued: read(&self.continued),
            diverged: read(&self.diverged),
            requests: Requests {
                chat: read(&self.chat),
                completions: read(&self.completions),
                embeddings: read(&self.embeddings),
                infer: read(&self.infer),
                models: read(&self.models),
                health: read(&self.health),
                metrics: read(&self.metrics),
                tokenize: read(&self.tokenize),
            },
        }
    }
}

impl Stats {
    /// These numbers as Prometheus text, under vLLM's names and the simulator's own.
    pub(crate) fn prometheus(&self, model: &str, settings: &Settings) -> String {
        let cache = match settings.kv_tokens {
            0 => self.running as f64 / settings.slots.max(1) as f64,
            holds => (self.cached_tokens as f64 / holds as f64).min(1.0),
        };
        let vllm = [
            ("num_requests_running", "gauge", self.running as f64),
            ("num_requests_waiting", "gauge", self.waiting as f64),
            ("kv_cache_usage_perc", "gauge", cache),
            ("prompt_tokens_total", "counter", self.prompt_tokens as f64),
            ("generation_tokens_total", "counter", self.tokens as f64),
        ];
        let own = [
            ("started", self.started),
            ("finished", self.finished),
            ("aborted", self.aborted),
            ("failed", self.failed),
            ("refused", self.refused),
        ];
        let mut text = String::new();
        // Writing to a string cannot fail.
        for (name, kind, value) in vllm {
            let _written = write!(
                text,
                "# HELP vllm:{name} As vLLM reports it.\n# TYPE vllm:{name} {kind}\n\
                 vllm:{name}{{engine=\"0\",model_name=\"{model}\"}} {value:?}\n"
            );
        }
        for (name, value) in own {
            let _written = write!(
                text,
                "# HELP sim_generations_{name}_total Requests {name}.\n# TYPE sim_generations_{name}_total counter\n\
                 sim_generations_{name}_total {value}\n"
            );
        }
        text
    }
}
