//! Properties of [`RetryPolicy`] over every policy that can be built.

use proptest::prelude::*;

use super::*;

fn any_policy() -> impl Strategy<Value = RetryPolicy> {
    let longest = u64::try_from(LONGEST_CAP.as_nanos()).unwrap();
    (1..=longest, 1..=50_u32)
        .prop_flat_map(move |(base, attempts)| (Just(base), base..=longest, Just(attempts)))
        .prop_map(|(base, cap, attempts)| {
            RetryPolicy::try_new(Duration::from_nanos(base), Duration::from_nanos(cap), attempts).unwrap()
        })
}

/// Bases of everyday size, where the progression takes many steps before it meets the cap.
fn everyday_policy() -> impl Strategy<Value = RetryPolicy> {
    (1..=5_000_u64, 5_000..=86_400_000_u64, 1..=50_u32).prop_map(|(base, cap, attempts)| {
        RetryPolicy::try_new(Duration::from_millis(base), Duration::from_millis(cap), attempts).unwrap()
    })
}

proptest! {
    #[test]
    fn the_ceiling_doubles_from_base_to_cap(
        policy in prop_oneof![any_policy(), everyday_policy()],
        attempt in 1..=100_u32,
    ) {
        let doubled = 1_u32.checked_shl(attempt - 1).and_then(|factor| policy.base.checked_mul(factor));
        let expected = doubled.map_or(policy.cap, |doubled| doubled.min(policy.cap));
        prop_assert_eq!(policy.ceiling(attempt), expected);
    }

    #[test]
    fn a_delay_stays_under_its_ceiling(policy in any_policy(), attempt in 1..=100_u32) {
        prop_assert!(policy.delay(attempt) <= policy.ceiling(attempt));
    }

    #[test]
    fn a_granted_delay_ends_inside_the_remaining_time(
        policy in everyday_policy(),
        attempt in 1..=60_u32,
        remaining_ms in 0..=100_000_u64,
        hint_ms in proptest::option::of(0..=100_000_u64),
    ) {
        let remaining = Duration::from_millis(remaining_ms);
        let hint = hint_ms.map(Duration::from_millis);
        if let Some(delay) = policy.delay_within(attempt, remaining, hint) {
            prop_assert!(delay < remaining);
            prop_assert!(attempt < policy.max_attempts());
            prop_assert!(hint.is_none_or(|hint| hint == delay));
        }
    }

    #[test]
    fn a_delay_is_refused_only_for_want_of_attempts_or_time(policy in everyday_policy(), attempt in 1..=60_u32) {
        let granted = policy.delay_within(attempt, Duration::MAX, None);
        prop_assert_eq!(granted.is_some(), attempt < policy.max_attempts());
    }
}

#[test]
fn jitter_uses_the_whole_range() {
    let policy = RetryPolicy::try_new(Duration::from_secs(1), Duration::from_secs(60), 5).unwrap();
    let delays: Vec<Duration> = (0..1_000).map(|_| policy.delay(2)).collect();

    assert!(delays.iter().any(|delay| *delay < Duration::from_millis(200)));
    assert!(delays.iter().any(|delay| *delay > Duration::from_millis(1_800)));
}

#[test]
fn an_attempt_beyond_counting_meets_the_cap() {
    let policy = RetryPolicy::try_new(Duration::from_nanos(1), LONGEST_CAP, u32::MAX).unwrap();
    assert_eq!(policy.ceiling(u32::MAX), LONGEST_CAP);
    assert_eq!(policy.ceiling(0), policy.ceiling(1));
}

#[test]
fn numbers_that_make_no_policy_are_refused() {
    let second = Duration::from_secs(1);
    let millisecond = Duration::from_millis(1);

    assert_eq!(
        RetryPolicy::try_new(Duration::ZERO, second, 1),
        Err(RetryPolicyError::ZeroBase)
    );
    assert_eq!(
        RetryPolicy::try_new(second, millisecond, 1),
        Err(RetryPolicyError::CapBelowBase {
            base: second,
            cap: millisecond
        })
    );
    assert_eq!(
        RetryPolicy::try_new(second, Duration::MAX, 1),
        Err(RetryPolicyError::CapTooLong { cap: Duration::MAX })
    );
    assert_eq!(
        RetryPolicy::try_new(second, second, 0),
        Err(RetryPolicyError::NoAttempts)
    );
}
