//! Which requests go wrong, and how.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::sequence::mix;
use super::settings::Settings;

/// A way to go wrong.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// An error status instead of an answer.
    Fail,
    /// The connection is closed before any header.
    Reset,
    /// The connection is closed in mid-stream.
    Cut,
    /// Silence for ever, connection open.
    Stall,
    /// `finish_reason: "abort"`, then `[DONE]`.
    Abort,
    /// An error event, then `[DONE]`.
    ErrorMid,
    /// One event of broken JSON.
    Malformed,
}

/// A fault and the random number that places it in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawn {
    pub(crate) fault: Fault,
    place: u64,
}

/// Hands out faults: first those asked for by name, then by rate.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    asked: AtomicU64,
    drawn: AtomicU64,
    next: Mutex<VecDeque<Fault>>,
}

impl Faults {
    /// Takes the exact faults out of new settings.
    pub(crate) fn adopt(&self, settings: &mut Settings) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.extend(std::iter::repeat_n(
            Fault::Fail,
            std::mem::take(&mut settings.fail_next),
        ));
        next.extend(settings.next_faults.drain(..));
        self.asked.store(next.len() as u64, Ordering::SeqCst);
    }

    /// Exact faults that no request has met yet.
    pub(crate) fn pending(&self) -> Vec<Fault> {
        self.next
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .copied()
            .collect()
    }

    /// The fate of the next request.
    pub(crate) fn draw(&self, settings: &Settings) -> Option<Drawn> {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        let random = mix(mix(settings.seed).wrapping_add(number));
        let place = mix(random);
        if self.asked.load(Ordering::SeqCst) > 0 {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let fault = next.pop_front();
            self.asked.store(next.len() as u64, Ordering::SeqCst);
            if let Some(fault) = fault {
                return Some(Drawn { fault, place });
            }
        }
        let mut left = (random >> 11) as f64 / (1_u64 << 53) as f64;
        for (fault, rate) in rates(settings) {
            if left < rate {
                return Some(Drawn { fault, place });
            }
            left -= rate;
        }
        None
    }
}

impl Drawn {
    /// After how many of `tokens` tokens the fault strikes.
    pub(crate) fn after(self, settings: &Settings, tokens: usize) -> usize {
        if let Some(after) = settings.fault_after {
            return after.min(tokens);
        }
        // Only silence may come before the first token; the others need a stream to break.
        let least = usize::from(self.fault != Fault::Stall);
        let range = tokens.saturating_sub(least).max(1) as u64;
        (least + (self.place % range) as usize).min(tokens)
    }
}

fn rates(settings: &Settings) -> [(Fault, f64); 7] {
    [
        (Fault::Fail, settings.fail_rate),
        (Fault::Reset, settings.reset_rate),
        (Fault::Cut, settings.cut_rate),
        (Fault::Stall, settings.stall_rate),
        (Fault::Abort, settings.abort_rate),
        (Fault::ErrorMid, settings.error_mid_rate),
        (Fault::Malformed, settings.malformed_rate),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_draw_equal_faults_at_about_the_rates_asked_for() {
        let settings = Settings {
            cut_rate: 0.25,
            stall_rate: 0.25,
            ..Settings::default()
        };
        let draw = || {
            let faults = Faults::default();
            (0..1000).map(|_| faults.draw(&settings)).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
        let cuts = draw()
            .into_iter()
            .flatten()
            .filter(|drawn| drawn.fault == Fault::Cut)
            .count();
        assert!((200..300).contains(&cuts), "{cuts} of 1000");
    }

    #[test]
    fn faults_asked_for_come_first_and_once() {
        let mut settings = Settings {
            fail_next: 1,
            next_faults: vec![Fault::Cut, Fault::Stall],
            ..Settings::default()
        };
        let faults = Faults::default();
        faults.adopt(&mut settings);
        assert_eq!(faults.pending(), [Fault::Fail, Fault::Cut, Fault::Stall]);
        let drawn: Vec<_> = (0..4)
            .map(|_| faults.draw(&settings).map(|drawn| drawn.fault))
            .collect();
        assert_eq!(
            drawn,
            [Some(Fault::Fail), Some(Fault::Cut), Some(Fault::Stall), None]
        );
        assert_eq!((settings.fail_next, settings.next_faults), (0, vec![]));
    }
}
