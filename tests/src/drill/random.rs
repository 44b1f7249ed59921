//! Random choices that a seed repeats.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// A source of choices.
#[derive(Debug)]
pub struct Random(StdRng);

impl Random {
    /// The source number `stream` of a seed: what one draws changes nothing in another.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(StdRng::seed_from_u64(seed.rotate_left(32) ^ stream))
    }

    /// Is it so, with this probability?
    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability.clamp(0.0, 1.0))
    }

    /// A number of a range that is not empty.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// The time until the next of events that happen at `rate` a second, each on its own.
    pub fn until_next(&mut self, rate: f64) -> Duration {
        let fraction: f64 = self.0.random_range(f64::MIN_POSITIVE..1.0);
        Duration::from_secs_f64(-fraction.ln() / rate)
    }

    /// A span between two.
    pub fn span(&mut self, range: Range<Duration>) -> Duration {
        self.0.random_range(range)
    }

    /// One of several, by weight.
    ///
    /// # Panics
    /// There is none with a weight.
    pub fn weighted<T: Copy>(&mut self, of: &[(T, u32)]) -> T {
        let all: u32 = of.iter().map(|(_, weight)| weight).sum();
        let mut left = self.0.random_range(0..all);
        for (one, weight) in of {
            if left < *weight {
                return *one;
            }
            left -= weight;
        }
        unreachable!("a number below the sum of the weights")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_choices_and_weights_are_kept() {
        let draw = |seed| {
            let mut random = Random::new(seed, 7);
            (0..1000)
                .map(|_| random.weighted(&[('a', 1), ('b', 0), ('c', 3)]))
                .collect::<String>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let often = draw(1).matches('c').count();
        assert!((650..850).contains(&often), "{often} of 1000");
        assert!(!draw(1).contains('b'));
    }
}
