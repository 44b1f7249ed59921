//! A delivery: a message from a stream, what its acknowledgement subject says
//! of it, and the slot taken for it.

use async_nats::Message;

use crate::slots::Slot;

const PREFIX: &str = "$JS.ACK.";

/// One hand-over of a request by JetStream.
#[derive(Debug)]
pub struct Delivery {
    /// The envelope's bytes and headers.
    pub message: Message,
    /// Where it is settled.
    pub ack_subject: String,
    /// What the subject says.
    pub ack: Ack,
    /// Taken before the message was accepted.
    pub slot: Slot,
}

/// What an acknowledgement subject says of its delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// How often the message has been delivered, from 1.
    pub delivered: u64,
    /// The message's sequence in its stream.
    pub stream_sequence: u64,
    /// Messages that still waited for this consumer.
    pub pending: u64,
}

/// The consumer that an acknowledgement subject names.
#[must_use]
pub fn consumer_of(ack_subject: &str) -> Option<&str> {
    let rest = ack_subject.strip_prefix(PREFIX)?;
    rest.split('.').nth(skipped(rest)? - 1)
}

/// Tokens before the number of deliveries, of which the last is the consumer.
fn skipped(rest: &str) -> Option<usize> {
    match rest.split('.').count() {
        7 => Some(2),
        9.. => Some(4),
        _ => None,
    }
}

impl Ack {
    /// Reads `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`
    /// or the longer form with domain and account hash behind `$JS.ACK`.
    #[must_use]
    pub fn parse(subject: &str) -> Option<Self> {
        let rest = subject.strip_prefix(PREFIX)?;
        let mut tokens = rest.split('.').skip(skipped(rest)?);
        let mut number = || tokens.next()?.parse().ok();
        let (delivered, stream_sequence) = (number()?, number()?);
        let (_consumer_sequence, _time, pending) = (number()?, number()?, number()?);
        Some(Self {
            delivered,
            stream_sequence,
            pending,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_acknowledgement_subject_are_read() {
        let ack = Ack {
            delivered: 2,
            stream_sequence: 41,
            pending: 7,
        };
        let short = "$JS.ACK.DUO_LIVE.interactive-mistral.2.41.99.1795343526000000000.7";
        let long = "$JS.ACK.hub.Ab12.DUO_LIVE.interactive-mistral.2.41.99.1795343526000000000.7";
        for subject in [short.to_owned(), long.to_owned(), format!("{long}.rnd")] {
            assert_eq!(Ack::parse(&subject), Some(ack), "{subject}");
            assert_eq!(consumer_of(&subject), Some("interactive-mistral"), "{subject}");
        }
    }

    #[test]
    fn other_subjects_are_no_acknowledgements() {
        for subject in [
            "",
            "$JS.ACK.",
            "$JS.ACK.S.C.x.1.1.1.1",
            "_INBOX.a.1",
            "$JS.ACK.S.C.1.2.3.4",
        ] {
            assert_eq!(Ack::parse(subject), None, "{subject}");
        }
    }
}
