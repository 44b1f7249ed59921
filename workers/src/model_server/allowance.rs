//! How many calls an attempt may make: known once its owner has numbered it.

use std::sync::Arc;

use duo_contract::failure::calls_of_attempt;
use tokio::sync::SetOnce;

/// An attempt's share of its request's budget. Cheap to clone. The first call
/// needs no leave, since it may begin beside the claim; any other waits for it.
#[derive(Debug, Clone, Default)]
pub struct Allowance(Arc<SetOnce<u32>>);

impl Allowance {
    /// The owner has let attempt `attempt` proceed.
    pub fn grant(&self, attempt: u32) {
        // Granted once; the owner's answer does not change.
        let _ = self.0.set(calls_of_attempt(attempt));
    }

    /// The calls that may be made, once that is known.
    pub(super) async fn calls(&self) -> u32 {
        *self.0.wait().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn nothing_is_allowed_before_the_owner_has_spoken() {
        let allowance = Allowance::default();
        assert_eq!(allowance.calls().now_or_never(), None);
        allowance.grant(2);
        allowance.grant(1);
        assert_eq!(allowance.calls().await, 2);
    }
}
