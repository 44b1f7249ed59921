//! Sweepers' questions whether a request is known here at all.

use std::time::Duration;

use async_nats::{Message, Subscriber};
use duo_contract::frame::{FrameAnswer, ReplyFrame};
use duo_contract::subject;
use futures_util::StreamExt as _;

use super::Dispatch;
use crate::audit::sink::AuditSink;

/// An owner that has forgotten a request may take this long to hand over the terminal record.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Subscribes to the questions to this broker.
///
/// # Errors
/// The connection is closed for good.
pub async fn subscribe(dispatch: &Dispatch) -> Result<Subscriber, async_nats::SubscribeError> {
    let subject = subject::questions_of(&dispatch.0.broker);
    dispatch.0.nats.client().subscribe(subject).await
}

/// Answers questions until the connection is closed for good.
pub async fn run(dispatch: Dispatch, records: AuditSink, mut questions: Subscriber) {
    while let Some(message) = questions.next().await {
        if ReplyFrame::decode(&message.payload).is_ok_and(|frame| frame.is_question()) {
            dispatch.answer_question(message, &records);
        }
    }
}

impl Dispatch {
    /// Answers whether a request is open here. For one that is not, NATS has to have its terminal record first:
    /// whoever asks takes `Stale` to mean that there is none.
    fn answer_question(&self, message: Message, records: &AuditSink) {
        let (Some(request), Some(reply)) = (subject::request_of_question(&message.subject), message.reply)
        else {
            return;
        };
        let known = self.find(request).is_some();
        let (nats, records) = (self.0.nats.clone(), records.clone());
        tokio::spawn(async move {
            let answer = if known || !records.flushed(FLUSH_TIMEOUT).await {
                FrameAnswer::Confirmed
            } else {
                FrameAnswer::Stale
            };
            // A failure means that the connection is gone; the question comes again.
            let _ = nats.client().publish(reply, answer.encode()).await;
        });
    }
}
