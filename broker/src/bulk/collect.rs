//! Writes what came of a batch's lines into its output file and its error file, in the order of the lines.

use std::collections::{HashMap, VecDeque};

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::content::Lines;
use super::run::{Next, Turn};
use super::state::BatchState;
use super::{BulkError, line_id};
use crate::api::line::custom_id;
use crate::jobs::state::JobState;
use crate::jobs::work::{Outcome, WorkError};
use crate::store::batches::{Collected, LineEnd, Mark};

/// Lines whose ends are looked at together.
const LINES_AT_ONCE: usize = 256;
/// Bytes of results that make one piece of a file; a result of more makes one alone.
const BYTES_AT_ONCE: usize = 1 << 20;

/// What a batch tells of a line for which there was no time, in OpenAI's words.
const EXPIRED: &str = "This request could not be executed before the completion window expired.";
const CANCELLED: &str = "This request was cancelled together with its batch.";
const UNKEPT: &str = "the request succeeded, but its result is not there any more";

/// A line whose end is to be written.
struct Waiting {
    number: u32,
    end: Mark,
    custom_id: String,
}

/// Writes ends until all are written or the turn is spent.
pub(super) async fn collect(turn: &mut Turn<'_>) -> Result<Next, BulkError> {
    let bulk = turn.bulk;
    let (file, from) = (turn.batch.input_file, turn.batch.collected_to);
    let mut lines = Lines::open(bulk, file, from).await?;
    let mut waiting = VecDeque::new();
    while !turn.is_spent() {
        if waiting.is_empty() {
            while waiting.len() < LINES_AT_ONCE {
                let Some(line) = lines.next().await? else { break };
                waiting.push_back(Waiting {
                    number: line.number,
                    end: line.end,
                    custom_id: line.text.map(|text| custom_id(&text)).unwrap_or_default(),
                });
            }
        }
        if waiting.is_empty() {
            return end(turn).await;
        }
        step(turn, &mut waiting).await?;
    }
    Ok(Next::After(std::time::Duration::ZERO))
}

async fn end(turn: &Turn<'_>) -> Result<Next, BulkError> {
    let state = match (turn.batch.state, turn.batch.ran_out) {
        (BatchState::Cancelling, _) => BatchState::Cancelled,
        (_, true) => BatchState::Expired,
        (_, false) => BatchState::Completed,
    };
    let id = turn.batch.id.simple();
    let names = [
        format!("batch_{id}_output.jsonl"),
        format!("batch_{id}_error.jsonl"),
    ];
    let names = [names[0].as_str(), names[1].as_str()];
    let store = turn.bulk.store();
    match store.end_batch(&turn.batch, &turn.fence, state, names).await? {
        true => {
            turn.bulk.parts().metrics.note_ended(state);
            Ok(Next::Over)
        }
        false => Err(BulkError::Overtaken),
    }
}

/// Writes one piece, of as many of the lines as it holds.
async fn step(turn: &mut Turn<'_>, waiting: &mut VecDeque<Waiting>) -> Result<(), BulkError> {
    let (bulk, batch) = (turn.bulk, &turn.batch);
    let ids: Vec<Uuid> = waiting
        .iter()
        .map(|line| line_id(batch.id, line.number))
        .collect();
    let ends = bulk.store().line_ends(batch.id, &ids).await?;
    let ends: HashMap<Uuid, LineEnd> = ends.into_iter().map(|end| (end.id, end)).collect();
    let (mut count, mut bytes, mut succeeded) = (0, 0, Vec::<(Uuid, OffsetDateTime)>::new());
    for id in &ids {
        let end = ends.get(id);
        let size = end.and_then(|end| end.result_bytes).unwrap_or(0);
        bytes += usize::try_from(size).unwrap_or(0);
        if count > 0 && bytes > BYTES_AT_ONCE {
            break;
        }
        count += 1;
        if let Some((id, Some(at))) = end.map(|end| (end.id, end.ended_at))
            && size > 0
        {
            succeeded.push((id, at));
        }
    }
    let results = bulk.store().line_results(&succeeded).await?;
    let mut written = Pieces::default();
    for (line, id) in waiting.drain(..count).zip(&ids) {
        // One that cannot be opened is not to take the others with it.
        let opened = results
            .get(id)
            .map(|sealed| Outcome::open(*id, sealed, bulk.keys()));
        let result = opened.and_then(|opened| {
            let told = |error: &WorkError| {
                let error = error as &dyn std::error::Error;
                tracing::error!(job = %id, error, "a result cannot be opened");
            };
            opened.inspect_err(told).ok()
        });
        written.add(turn, &line, *id, ends.get(id), result)?;
    }
    let batch = &turn.batch;
    let seal = |piece: &[u8], file: Option<crate::store::batches::Written>| {
        let file = file.ok_or(BulkError::Overtaken)?;
        if piece.is_empty() {
            return Ok(None);
        }
        let sealed = bulk.seal_piece(file.id, file.chunks, piece)?;
        Ok::<_, BulkError>(Some((sealed, piece.len())))
    };
    let collected = Collected {
        to: written.to,
        ran_out: written.ran_out,
        output: seal(&written.output, batch.output)?,
        failures: seal(&written.failures, batch.failures)?,
    };
    let lease = bulk.parts().lease;
    let store = bulk.store();
    if !store.add_collected(batch, &turn.fence, &collected, lease).await? {
        return Err(BulkError::Overtaken);
    }
    bulk.parts().metrics.written.inc_by(count as u64);
    let batch = &mut turn.batch;
    batch.collected_to = collected.to;
    batch.ran_out |= collected.ran_out;
    for (file, piece) in [
        (&mut batch.output, &collected.output),
        (&mut batch.failures, &collected.failures),
    ] {
        if let (Some(file), Some((_, bytes))) = (file, piece) {
            file.chunks += 1;
            file.bytes += i64::try_from(*bytes).unwrap_or(0);
        }
    }
    Ok(())
}

/// What is to be written next.
#[derive(Default)]
struct Pieces {
    output: Vec<u8>,
    failures: Vec<u8>,
    ran_out: bool,
    to: Mark,
}

#[derive(Serialize)]
struct Written<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<Response<'a>>,
    error: Option<Value>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: i32,
    request_id: String,
    body: &'a RawValue,
}

impl<'a> Response<'a> {
    fn new(status_code: i32, request_id: Option<Uuid>, body: &'a RawValue) -> Self {
        Self {
            status_code,
            request_id: request_id.map(|id| id.simple().to_string()).unwrap_or_default(),
            body,
        }
    }
}

impl Waiting {
    fn ended<'a>(&'a self, id: Uuid, response: Option<Response<'a>>, error: Option<Value>) -> Written<'a> {
        Written {
            id: format!("batch_req_{}", id.simple()),
            custom_id: &self.custom_id,
            response,
            error,
        }
    }
}

impl Pieces {
    fn add(
        &mut self,
        turn: &Turn<'_>,
        line: &Waiting,
        id: Uuid,
        end: Option<&LineEnd>,
        result: Option<Outcome>,
    ) -> Result<(), BulkError> {
        self.to = line.end;
        let request_id = end.and_then(|end| end.request_id);
        if let Some(Outcome::Body { body }) = &result {
            let body = on_one_line(body);
            let response = Response::new(200, request_id, &body);
            return push(&mut self.output, &line.ended(id, Some(response), None));
        }
        let own = |code: &str, message: &str| Some(json!({"code": code, "message": message}));
        let is_cancelled = turn.batch.state == BatchState::Cancelling;
        let written = match end {
            None if is_cancelled => line.ended(id, None, own("batch_cancelled", CANCELLED)),
            Some(end) if end.state == JobState::Cancelled && is_cancelled => {
                line.ended(id, None, own("batch_cancelled", CANCELLED))
            }
            Some(end) if end.state == JobState::Succeeded => {
                line.ended(id, None, own("result_expired", UNKEPT))
            }
            Some(end) if end.state != JobState::Expired => {
                let code = end.reason.as_deref().unwrap_or("failed");
                let message = end.message.as_deref().unwrap_or_default();
                match end.upstream_status {
                    // The model server's own answer, as far as it is kept.
                    Some(status) => {
                        let kind = match status {
                            400..=499 => "invalid_request_error",
                            _ => "server_error",
                        };
                        let error = json!({"message": message, "type": kind, "param": null, "code": code});
                        let body = json!({ "error": error }).to_string();
                        let body = RawValue::from_string(body).map_err(|_| BulkError::Gone)?;
                        let response = Response::new(status, request_id, &body);
                        return push(&mut self.failures, &line.ended(id, Some(response), None));
                    }
                    None => line.ended(id, None, own(code, message)),
                }
            }
            Some(_) | None => {
                self.ran_out = true;
                line.ended(id, None, own("batch_expired", EXPIRED))
            }
        };
        push(&mut self.failures, &written)
    }
}

fn push(piece: &mut Vec<u8>, line: &Written<'_>) -> Result<(), BulkError> {
    // What is no JSON cannot have been a result.
    serde_json::to_writer(&mut *piece, line).map_err(|_| BulkError::Gone)?;
    piece.push(b'\n');
    Ok(())
}

/// JSON has line breaks only between its tokens, where any other blank does as well.
fn on_one_line(body: &RawValue) -> std::borrow::Cow<'_, RawValue> {
    let text = body.get();
    if !text.contains(['\n', '\r']) {
        return std::borrow::Cow::Borrowed(body);
    }
    let text = text.replace(['\n', '\r'], " ");
    match RawValue::from_string(text) {
        Ok(body) => std::borrow::Cow::Owned(body),
        Err(_) => std::borrow::Cow::Borrowed(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_many_lines_is_written_on_one() {
        let body = "{\n  \"text\": \"a\\nb\",\r\n  \"number\": 1.50\n}";
        let raw = RawValue::from_string(body.to_owned()).expect("JSON");
        let one = on_one_line(&raw);
        assert!(!one.get().contains('\n'), "{one}");
        let value = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        assert_eq!(value(one.get()), value(body));
        assert!(one.get().contains("1.50"));
    }
}
