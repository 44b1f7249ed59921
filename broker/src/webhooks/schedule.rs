//! When a delivery that failed is tried again.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use duo_process::config::parse_duration;

use crate::config_file::span;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// A receiver's `Retry-After` is followed this far.
const LONGEST_HINT: Duration = Duration::from_secs(24 * HOUR);
/// Longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(30 * 24 * HOUR);
/// Most delays in a schedule.
const MOST_DELAYS: usize = 32;
/// Delays are spread this far to either side, so that what failed together does not come back together.
const JITTER: f64 = 0.1;

/// The delays between attempts, one after each that failed but the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(Vec<Duration>);

/// A text that is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write 1 to {MOST_DELAYS} delays with commas, such as 5s,5m,30m: {0}")]
pub struct ScheduleError(String);

impl Default for Schedule {
    /// Ten attempts in three days.
    fn default() -> Self {
        let delays = [
            5,
            5 * MINUTE,
            30 * MINUTE,
            2 * HOUR,
            5 * HOUR,
            10 * HOUR,
            14 * HOUR,
            20 * HOUR,
            24 * HOUR,
        ];
        Self(delays.map(Duration::from_secs).to_vec())
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let delays: Result<Vec<_>, _> = text.split(',').map(|part| parse_duration(part.trim())).collect();
        let delays = delays.map_err(ScheduleError)?;
        if delays.len() > MOST_DELAYS {
            return Err(ScheduleError(format!("there are {}", delays.len())));
        }
        if delays.iter().any(|delay| *delay > LONGEST_DELAY) {
            return Err(ScheduleError("a delay is 30d at most".to_owned()));
        }
        Ok(Self(delays))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |delay: &Duration| span(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        let delays: Vec<String> = self.0.iter().map(text).collect();
        f.write_str(&delays.join(","))
    }
}

impl Schedule {
    /// How long to wait after this attempt, counted from 1, has failed; nothing after the last. A receiver that asks for
    /// more time (`hint`) gets it.
    #[must_use]
    pub fn delay_after(&self, attempt: u32, hint: Option<Duration>) -> Option<Duration> {
        let at = usize::try_from(attempt).ok()?.checked_sub(1)?;
        let delay = self
            .0
            .get(at)?
            .mul_f64(rand::random_range(1.0 - JITTER..=1.0 + JITTER));
        let hint = hint.unwrap_or_default().min(LONGEST_HINT);
        Some(delay.max(hint))
    }

    /// The shortest of them.
    #[must_use]
    pub fn shortest(&self) -> Duration {
        self.0.iter().min().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(delay: Duration, seconds: f64) -> bool {
        (0.9 * seconds..=1.1 * seconds).contains(&delay.as_secs_f64())
    }

    #[test]
    fn ten_attempts_are_spread_over_three_days() {
        let schedule = Schedule::default();
        let hours = |hours: f64| hours * 3600.0;
        let expected = [
            5.0,
            300.0,
            1800.0,
            hours(2.0),
            hours(5.0),
            hours(10.0),
            hours(14.0),
            hours(20.0),
            hours(24.0),
        ];
        for (attempt, seconds) in (1..).zip(expected) {
            let delay = schedule.delay_after(attempt, None).expect("another attempt");
            assert!(near(delay, seconds), "{attempt}: {delay:?}");
        }
        assert_eq!(schedule.to_string(), "5s,5m,30m,2h,5h,10h,14h,20h,24h");
        assert_eq!(schedule.delay_after(10, None), None);
        assert_eq!(
            schedule.delay_after(10, Some(Duration::from_secs(1))),
            None,
            "no hint makes it longer"
        );
    }

    #[test]
    fn a_receiver_may_ask_for_more_time_but_not_for_less_and_not_for_ever() {
        let schedule = Schedule::default();
        let with = |seconds| {
            schedule
                .delay_after(1, Some(Duration::from_secs(seconds)))
                .expect("another")
        };
        assert_eq!(with(120), Duration::from_secs(120));
        assert!(near(with(1), 5.0));
        assert_eq!(with(10_000_000), LONGEST_HINT);
    }

    #[test]
    fn a_schedule_is_a_list_of_spans() {
        let schedule: Schedule = "20ms, 1s,2m".parse().expect("a schedule");
        assert_eq!(schedule.shortest(), Duration::from_millis(20));
        assert_eq!(schedule.delay_after(4, None), None);
        for text in ["", "5", "5s,,5m", "soon", "1s,31d"] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
        assert!(vec!["1s"; MOST_DELAYS + 1].join(",").parse::<Schedule>().is_err());
    }
}
