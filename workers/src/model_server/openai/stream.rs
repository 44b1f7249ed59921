//! A streamed answer: reads of the HTTP body to events, judged and joined.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use reqwest::Response;
use tokio::time::{Instant, timeout, timeout_at};

use super::lines::{Collector, Lines};
use crate::model_server::facts::Facts;
use crate::model_server::sse::EventReader;
use crate::model_server::{Call, Fault, Spent};

/// How long the end of a finished body is waited for, so that its connection can serve again.
const TAIL_TIMEOUT: Duration = Duration::from_millis(200);
/// Bytes and reads from which on nothing more joins a step.
const MOST_JOINED_BYTES: usize = 64 << 10;
const MOST_JOINED_READS: usize = 64;
const DONE: &[u8] = b"[DONE]";

/// A stream whose first data is here.
#[derive(Debug)]
pub struct AnswerStream {
    response: Response,
    reader: EventReader,
    facts: Facts,
    spent: Spent,
    collector: Collector,
    idle_timeout: Duration,
    /// The next data has to come by then.
    data_by: Instant,
    /// The request's own bound on its first data.
    requests_by: Instant,
    end_by: Instant,
    /// Read but not yet handed on.
    ahead: Option<Result<Step, Fault>>,
    /// No data has come yet.
    silent: bool,
}

/// One step of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Events.
    Chunks(Lines),
    /// The last events, perhaps none, of an answer that is whole.
    End(Bytes),
}

impl AnswerStream {
    /// Waits for the first data of `call`, until `data_by`.
    pub(super) async fn begin(
        response: Response,
        idle_timeout: Duration,
        data_by: Instant,
        call: &Call,
    ) -> Result<Self, Fault> {
        let mut stream = Self {
            response,
            reader: EventReader::default(),
            facts: Facts::default(),
            spent: call.spent.clone(),
            collector: Collector::new(call.hide_ids, call.seam.clone()),
            idle_timeout,
            data_by,
            requests_by: call.requests_by(),
            end_by: call.end_by,
            ahead: None,
            silent: true,
        };
        let first = stream.next().await?;
        // Nothing has been handed on: a fault right behind the first data may still be retried.
        if let Some(Err(fault)) = stream.ahead.take() {
            return Err(fault);
        }
        stream.ahead = Some(Ok(first));
        Ok(stream)
    }

    /// The next events.
    ///
    /// # Errors
    /// The answer failed; what came before it has been handed on.
    pub async fn next(&mut self) -> Result<Step, Fault> {
        if let Some(step) = self.ahead.take() {
            return step;
        }
        let mut events = Vec::new();
        loop {
            let mut read = timeout_at(self.data_by.min(self.end_by), self.response.chunk())
                .await
                .map_err(|_| self.late())?;
            let (mut reads, mut bytes) = (0, 0);
            // What came before a fault is good, and handed on first.
            let (ended, fault) = loop {
                match read {
                    Err(_) => break (false, Some(Fault::server("the model server's answer broke off"))),
                    Ok(None) => {
                        self.reader.finish(&mut events);
                        break (true, None);
                    }
                    Ok(Some(part)) => {
                        (reads, bytes) = (reads + 1, bytes + part.len());
                        if let Err(error) = self.reader.push(part, &mut events) {
                            break (false, Some(Fault::server(&error.to_string())));
                        }
                    }
                }
                if reads >= MOST_JOINED_READS || bytes >= MOST_JOINED_BYTES {
                    break (false, None);
                }
                read = match self.next_if_there().await {
                    Some(read) => read,
                    None => break (false, None),
                };
            };
            let step = self.judge(&mut events, ended)?;
            match (step, fault) {
                (None, None) => {}
                (None, Some(fault)) => return Err(fault),
                // An answer that is whole has no fault.
                (Some(step @ Step::End(_)), _) | (Some(step), None) => return Ok(step),
                (Some(step), Some(fault)) => {
                    self.ahead.get_or_insert(Err(fault));
                    return Ok(step);
                }
            }
        }
    }

    /// The next read if the server has sent it already: what is there together travels in one frame.
    async fn next_if_there(&mut self) -> Option<reqwest::Result<Option<Bytes>>> {
        // The connection's task hands over one read at a time, and needs a turn for the next.
        tokio::task::yield_now().await;
        self.response.chunk().now_or_never()
    }

    /// What is known of the answer as far as this call generated it.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.facts.clone().after(self.collector.earlier())
    }

    /// Reads a finished body to its end, so that the connection can serve again.
    pub async fn recycle(mut self) {
        let rest = async { while let Ok(Some(_)) = self.response.chunk().await {} };
        // A server that keeps the body open loses the connection.
        let _ = timeout(TAIL_TIMEOUT, rest).await;
    }

    /// Events to a step; nothing if there was no data.
    fn judge(&mut self, events: &mut Vec<Bytes>, ended: bool) -> Result<Option<Step>, Fault> {
        let mut done = ended;
        let mut fault = None;
        let mut good = false;
        for event in events.drain(..) {
            if &event[..] == DONE {
                done = true;
                break;
            }
            let read = self.facts.event(&event);
            if let Err(error) = read.and_then(|ids| self.collector.event(&event, &ids)) {
                fault = Some(error);
                break;
            }
            good = true;
        }
        if done && fault.is_none() {
            fault = self.facts.complete().err();
        }
        self.spent.set(self.facts.spent());
        if good {
            self.silent = false;
            self.data_by = Instant::now() + self.idle_timeout;
        }
        let lines = self.collector.take();
        match fault {
            Some(fault) if lines.text.is_empty() => Err(fault),
            Some(fault) => {
                self.ahead = Some(Err(fault));
                Ok(Some(Step::Chunks(lines)))
            }
            None if done => Ok(Some(Step::End(lines.text))),
            None if lines.text.is_empty() => Ok(None),
            None => Ok(Some(Step::Chunks(lines))),
        }
    }

    fn late(&self) -> Fault {
        if self.end_by <= self.data_by {
            Fault::deadline("the model server did not finish its answer in time")
        } else if self.silent {
            not_begun(self.requests_by)
        } else {
            Fault::server("the model server stalled in mid-answer")
        }
    }
}

/// No first data in time: the request's time is over, or the server has been silent for too long before that.
pub(super) fn not_begun(requests_by: Instant) -> Fault {
    let message = "the model server did not begin to answer in time";
    if Instant::now() >= requests_by {
        Fault::deadline(message)
    } else {
        Fault::silent(message)
    }
}
