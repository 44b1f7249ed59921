//! How a job ended, and what that means for its message.

use std::time::Duration;

use duo_process::nats::{Nats, RequestError, Settle};

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The owner has the whole answer, or the failure that ends the request.
    Answered,
    /// Nobody waits for the request.
    Gone,
    /// The owner stopped it.
    Cancelled,
    /// Another delivery may do better, after a delay.
    HandedBack(Duration),
    /// Nobody can read the message.
    Undecodable,
    /// A later attempt has the message now.
    Superseded,
    /// The owner was not heard; the lease brings the message back.
    Unheard,
}

impl Outcome {
    /// Every outcome's name, for metrics that start at zero.
    pub const NAMES: [&'static str; 7] = [
        "answered",
        "gone",
        "cancelled",
        "handed_back",
        "undecodable",
        "superseded",
        "unheard",
    ];

    /// The outcome's snake_case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Gone => "gone",
            Outcome::Cancelled => "cancelled",
            Outcome::HandedBack(_) => "handed_back",
            Outcome::Undecodable => "undecodable",
            Outcome::Superseded => "superseded",
            Outcome::Unheard => "unheard",
        }
    }

    /// What to tell JetStream; nothing where the message is no longer ours.
    #[must_use]
    pub fn settlement(self) -> Option<Settle> {
        match self {
            Outcome::Answered | Outcome::Gone | Outcome::Cancelled => Some(Settle::Ack),
            Outcome::HandedBack(delay) => Some(Settle::Nak(delay)),
            Outcome::Undecodable => Some(Settle::Term),
            Outcome::Superseded | Outcome::Unheard => None,
        }
    }

    /// Settles the delivery; a second time if the first was lost on the way.
    /// If that fails too, the message comes again and its owner calls it gone.
    pub async fn settle(self, nats: &Nats, ack_subject: &str) {
        let Some(settlement) = self.settlement() else {
            return;
        };
        for last in [false, true] {
            match nats.settle(ack_subject, settlement).await {
                Ok(()) => return,
                Err(RequestError::Disconnected) if !last => {
                    let mut connections = nats.connections();
                    // Bounded by the library's own pace of reconnecting; the hard token ends it.
                    let _ = connections.wait_for(|connection| connection.up).await;
                }
                Err(error) if last => {
                    tracing::warn!(%error, outcome = self.as_str(), "a delivery could not be settled");
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_no_longer_ours_is_left_alone() {
        assert_eq!(Outcome::Superseded.settlement(), None);
        assert_eq!(Outcome::Unheard.settlement(), None);
    }

    #[test]
    fn each_other_outcome_settles_its_message() {
        let delay = Duration::from_millis(250);
        assert_eq!(Outcome::Answered.settlement(), Some(Settle::Ack));
        assert_eq!(Outcome::Gone.settlement(), Some(Settle::Ack));
        assert_eq!(Outcome::Cancelled.settlement(), Some(Settle::Ack));
        assert_eq!(Outcome::HandedBack(delay).settlement(), Some(Settle::Nak(delay)));
        assert_eq!(Outcome::Undecodable.settlement(), Some(Settle::Term));
    }
}
