//! What an owner tells a worker about a running attempt.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::claim::json_message;

/// A word from the owner, sent to [`crate::subject::cancels`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Stop: close the model server's connection and remove the message.
    Cancel {
        /// The request.
        request_id: Uuid,
        /// Why, for the worker's log.
        reason: CancelReason,
    },
    /// Send these frames again; they did not arrive.
    Resend {
        /// The request.
        request_id: Uuid,
        /// The attempt whose frames are missing.
        attempt: u32,
        /// First missing frame.
        from: u32,
        /// First frame that is not missing.
        until: u32,
    },
}

/// Why an attempt is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// The client closed its connection.
    ClientGone,
    /// The client read too slowly.
    SlowReader,
    /// A newer request of the same person and file took its place.
    Superseded,
    /// Its time ran out.
    DeadlineExceeded,
    /// A later attempt took over.
    Replaced,
}

impl CancelReason {
    /// The reason's snake_case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            CancelReason::ClientGone => "client_gone",
            CancelReason::SlowReader => "slow_reader",
            CancelReason::Superseded => "superseded",
            CancelReason::DeadlineExceeded => "deadline_exceeded",
            CancelReason::Replaced => "replaced",
        }
    }
}

json_message!(Order);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_the_first_version_still_decode() {
        let text = include_str!("../fixtures/orders_v1.jsonl");
        let orders: Vec<_> = text
            .lines()
            .map(|l| Order::decode(l.as_bytes()).expect("decodes"))
            .collect();
        let request_id = Uuid::from_u128(7);
        assert_eq!(
            orders,
            [
                Order::Cancel {
                    request_id,
                    reason: CancelReason::ClientGone
                },
                Order::Resend {
                    request_id,
                    attempt: 1,
                    from: 3,
                    until: 5
                },
            ]
        );
    }
}
