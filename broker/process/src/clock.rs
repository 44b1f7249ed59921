//! The only place that reads the wall clock.
//!
//! Records, envelopes and audit entries stamp their moments here, so that they agree. It does not measure spans:
//! those use [`std::time::Instant`], which never runs backwards.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// Returns the milliseconds since the epoch, UTC; zero on a machine whose clock stands before 1970.
pub fn unix_ms() -> u64 {
    let since_epoch = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the current moment, UTC.
pub fn now() -> OffsetDateTime {
    wall_clock().into()
}

#[expect(
    clippy::disallowed_methods,
    reason = "this module is where the ban on the wall clock sends everybody"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_readings_come_from_one_utc_clock() {
        let before = unix_ms();
        let moment = now();
        let after = unix_ms();

        let moment_ms = u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).unwrap();
        assert!((before..=after).contains(&moment_ms));
        assert!(moment.offset().is_utc());
    }
}
