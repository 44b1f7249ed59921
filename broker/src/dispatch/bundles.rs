//! What workers say of this broker's requests, several things in one message.

use async_nats::Subscriber;
use bytes::Bytes;
use duo_contract::bundle::{self, Answer, Entry, Kind};
use duo_contract::claim::ClaimRequest;
use duo_contract::subject;
use futures_util::StreamExt as _;

use super::Dispatch;

/// Subscribes to this broker's bundles.
///
/// # Errors
/// The connection is closed for good.
pub async fn subscribe(dispatch: &Dispatch) -> Result<Subscriber, async_nats::SubscribeError> {
    let subject = subject::bundles(&dispatch.0.broker);
    dispatch.0.nats.client().subscribe(subject).await
}

/// Takes bundles in order and answers each with one message, until the connection is closed for good.
pub async fn run(dispatch: Dispatch, mut bundles: Subscriber) {
    while let Some(message) = bundles.next().await {
        let entries = match bundle::decode(&message.payload) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(%error, "a bundle does not parse; is a worker newer than this broker?");
                continue;
            }
        };
        let mut answers = Vec::new();
        for Entry {
            kind,
            token,
            request_id,
            payload,
        } in entries
        {
            let framed = |job| {
                let answer = dispatch.framed(request_id, job, &payload);
                answer.map(|answer| answer.encode())
            };
            let answer = match kind {
                Kind::Claim => dispatch.answer_claim(&payload),
                Kind::Frame => framed(None),
                Kind::EarlyFrame(job) => framed(Some(job)),
            };
            if let (Some(payload), 1..) = (answer, token) {
                answers.push(Answer { token, payload });
            }
        }
        let Some(reply) = message.reply.filter(|_| !answers.is_empty()) else {
            continue;
        };
        let answers = bundle::encode_answers(&answers);
        if dispatch.0.nats.client().publish(reply, answers).await.is_err() {
            return;
        }
    }
}

impl Dispatch {
    fn answer_claim(&self, payload: &Bytes) -> Option<Bytes> {
        match ClaimRequest::decode(payload) {
            Ok(claim) => Some(self.claimed(&claim).encode()),
            Err(error) => {
                tracing::warn!(%error, "a claim does not parse; is a worker newer than this broker?");
                None
            }
        }
    }
}
