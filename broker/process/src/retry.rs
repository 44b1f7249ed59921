//! How long to wait before trying again, and when to stop trying.
//!
//! A [`RetryPolicy`] only computes: it neither sleeps nor decides which failures are worth another attempt. Every
//! retry of the project takes its delays from here. This is the only code that names the `backoff` package, which
//! is no longer maintained (RUSTSEC-2025-0012): it supplies the progression of intervals, and replacing it means
//! rewriting [`RetryPolicy::ceiling`] alone.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

/// The longest cap a policy accepts: a caller that wants to wait for days wants a schedule, not a retry.
const LONGEST_CAP: Duration = Duration::from_secs(24 * 60 * 60);

/// Exponential backoff with full jitter: delays are spread over zero to a ceiling that doubles up to a cap.
///
/// Full jitter keeps callers that failed together from returning together. Attempts are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    base: Duration,
    cap: Duration,
    max_attempts: u32,
}

/// Numbers from which no sensible [`RetryPolicy`] can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetryPolicyError {
    /// A zero base never grows, so every delay would be zero.
    #[error("the base delay of a retry policy must be longer than zero")]
    ZeroBase,
    /// The cap would cut the very first delay.
    #[error("the cap of a retry policy ({cap:?}) must not be shorter than its base ({base:?})")]
    CapBelowBase {
        /// The ceiling of the first delay.
        base: Duration,
        /// The ceiling of every delay.
        cap: Duration,
    },
    /// The cap is longer than a day.
    #[error("the cap of a retry policy ({cap:?}) must not be longer than a day")]
    CapTooLong {
        /// The ceiling of every delay.
        cap: Duration,
    },
    /// Not even the first attempt would be made.
    #[error("a retry policy must allow at least one attempt")]
    NoAttempts,
}

impl RetryPolicy {
    /// Builds a policy whose first ceiling is `base` and which allows `max_attempts` attempts, the first included.
    ///
    /// # Errors
    /// One [`RetryPolicyError`] per rule: `base` above zero, `cap` from `base` to a day, at least one attempt.
    pub fn try_new(
        base: Duration,
        cap: Duration,
        max_attempts: u32,
    ) -> Result<RetryPolicy, RetryPolicyError> {
        if base.is_zero() {
            return Err(RetryPolicyError::ZeroBase);
        }
        if cap < base {
            return Err(RetryPolicyError::CapBelowBase { base, cap });
        }
        if cap > LONGEST_CAP {
            return Err(RetryPolicyError::CapTooLong { cap });
        }
        if max_attempts == 0 {
            return Err(RetryPolicyError::NoAttempts);
        }
        Ok(RetryPolicy {
            base,
            cap,
            max_attempts,
        })
    }

    /// Returns the upper bound of the delay that follows `attempt`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use duo_process::retry::RetryPolicy;
    ///
    /// let policy = RetryPolicy::try_new(Duration::from_millis(100), Duration::from_secs(1), 6)?;
    /// assert_eq!(policy.ceiling(1), Duration::from_millis(100));
    /// assert_eq!(policy.ceiling(2), Duration::from_millis(200));
    /// assert_eq!(policy.ceiling(4), Duration::from_millis(800));
    /// assert_eq!(policy.ceiling(5), Duration::from_secs(1));
    /// # Ok::<(), duo_process::retry::RetryPolicyError>(())
    /// ```
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let mut schedule = self.schedule();
        for _ in 1..attempt {
            if schedule.current_interval >= self.cap {
                break;
            }
            schedule.next_backoff();
        }
        schedule.current_interval
    }

    /// Returns a delay to follow `attempt`, uniformly random from zero to its [`ceiling`](RetryPolicy::ceiling).
    pub fn delay(&self, attempt: u32) -> Duration {
        rand::random_range(Duration::ZERO..=self.ceiling(attempt))
    }

    /// Returns the delay to follow a failed `attempt`, or `None` when no further attempt should be made: all
    /// attempts are spent, or the delay would not end inside `remaining`.
    ///
    /// A server's `hint` (its `Retry-After`) replaces the computed delay, whatever the cap says: the server knows.
    ///
    /// ```
    /// use std::time::Duration;
    /// use duo_process::retry::RetryPolicy;
    ///
    /// let policy = RetryPolicy::try_new(Duration::from_millis(100), Duration::from_secs(1), 3)?;
    /// let (minute, hint) = (Duration::from_secs(60), Duration::from_secs(5));
    /// assert_eq!(policy.delay_within(1, minute, Some(hint)), Some(hint));
    /// assert_eq!(policy.delay_within(1, hint, Some(hint)), None);
    /// assert_eq!(policy.delay_within(3, minute, None), None);
    /// # Ok::<(), duo_process::retry::RetryPolicyError>(())
    /// ```
    pub fn delay_within(
        &self,
        attempt: u32,
        remaining: Duration,
        hint: Option<Duration>,
    ) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let delay = hint.unwrap_or_else(|| self.delay(attempt));
        (delay < remaining).then_some(delay)
    }

    /// Returns how many attempts are made in all, the first included.
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts
    }

    /// The progression before jitter; the package's own randomness is off, since it never reaches down to zero.
    fn schedule(&self) -> ExponentialBackoff {
        ExponentialBackoff {
            current_interval: self.base,
            initial_interval: self.base,
            randomization_factor: 0.0,
            multiplier: 2.0,
            max_interval: self.cap,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        }
    }
}

#[cfg(test)]
mod tests;
