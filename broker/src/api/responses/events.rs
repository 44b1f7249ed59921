//! The events of a response, numbered without a gap, from any place to its end and from any broker.
//!
//! Which events there are and what is in each follows from the answer's text alone: it comes in pieces of [`PIECE`] characters,
//! however it came from the model server. So whoever asks for the events after one gets the very bytes that come after it.
//! Silence is filled with comments.

use std::collections::VecDeque;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, header};
use serde_json::{Value, json};

use super::{Kept, Leaving, shown, unfollowed};
use crate::api::error::ApiError;
use crate::jobs::Jobs;
use crate::jobs::follow::{Event, FollowError, Follower};
use crate::jobs::state::JobState;
use crate::jobs::work::Outcome;

const CONTENT_TYPE: &str = "text/event-stream; charset=utf-8";
/// Silence after which a comment is sent.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING: &[u8] = b": waiting\n\n";
/// Characters of a piece of text; the last one may have fewer.
const PIECE: usize = 16;

/// Streams the events after the one of number `after`, or all.
pub(super) async fn follow(
    jobs: &Jobs,
    response: Kept,
    after: Option<u64>,
    leaving: Option<Leaving>,
) -> Result<Response, ApiError> {
    let follower = jobs.follow(response.row.id, None).await.map_err(unfollowed)?;
    let mut numbered = Numbered::new(response, after);
    numbered.begin();
    let following = Following {
        follower,
        numbered,
        leaving,
    };
    let mut response = Response::new(Body::from_stream(stream::unfold(Some(following), step)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A stream on its way to a client.
struct Following {
    follower: Follower,
    numbered: Numbered,
    leaving: Option<Leaving>,
}

type Step = (Result<Bytes, FollowError>, Option<Following>);

/// The next event, or a comment; an error breaks the stream off.
async fn step(following: Option<Following>) -> Option<Step> {
    let mut following = following?;
    loop {
        if let Some(event) = following.numbered.out.pop_front() {
            return Some((Ok(event), Some(following)));
        }
        if following.numbered.is_over {
            if let Some(leaving) = &mut following.leaving {
                leaving.over();
            }
            return None;
        }
        match tokio::time::timeout(PING_EVERY, following.follower.next()).await {
            Err(_) => return Some((Ok(Bytes::from_static(PING)), Some(following))),
            Ok(Ok(Some(event))) => following.numbered.take(event),
            Ok(Ok(None)) => return None,
            Ok(Err(error)) => {
                let told = &error as &dyn std::error::Error;
                tracing::warn!(error = told, "the events of a response are broken off");
                return Some((Err(error), None));
            }
        }
    }
}

/// Makes events of what happens to the job.
struct Numbered {
    response: Kept,
    /// The client has those up to this one.
    after: Option<u64>,
    /// Number of the next.
    number: u64,
    /// What the run of the moment has said.
    text: String,
    /// What is in events, which the client has or gets.
    told: String,
    is_running: bool,
    has_item: bool,
    out: VecDeque<Bytes>,
    is_over: bool,
}

impl Numbered {
    fn new(response: Kept, after: Option<u64>) -> Self {
        Self {
            response,
            after,
            number: 0,
            text: String::new(),
            told: String::new(),
            is_running: false,
            has_item: false,
            out: VecDeque::new(),
            is_over: false,
        }
    }

    fn emit(&mut self, kind: &str, mut data: Value) {
        let number = self.number;
        self.number += 1;
        if self.after.is_some_and(|after| number <= after) {
            return;
        }
        data["type"] = json!(kind);
        data["sequence_number"] = json!(number);
        self.out
            .push_back(format!("event: {kind}\ndata: {data}\n\n").into());
    }

    fn state(&mut self, kind: &str, status: &str) {
        let shown = shown::begun(&self.response.request, &self.response.row, status);
        self.emit(kind, json!({ "response": shown }));
    }

    fn begin(&mut self) {
        match self.response.request.background {
            true => {
                self.state("response.created", "queued");
                self.state("response.queued", "queued");
            }
            false => self.state("response.created", "in_progress"),
        }
    }

    fn run(&mut self) {
        if !std::mem::replace(&mut self.is_running, true) {
            self.state("response.in_progress", "in_progress");
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::State(row) => {
                if row.started_at.is_some() {
                    self.run();
                }
            }
            Event::Text { text, .. } => {
                self.text.push_str(&text);
                self.tell(false);
            }
            Event::Restart { .. } => self.text.clear(),
            Event::End(found) => self.end(*found),
        }
    }

    /// Tells of the text what is a whole piece; at the end all of it.
    fn tell(&mut self, is_whole: bool) {
        let is_same = match self.text.len() < self.told.len() {
            // Another run has begun anew and is not so far yet.
            true => self.told.starts_with(&self.text),
            false => self.text.starts_with(&self.told),
        };
        if !is_same {
            return self.break_off();
        }
        while let Some(rest) = self.text.get(self.told.len()..).filter(|rest| !rest.is_empty()) {
            let piece = match rest.char_indices().nth(PIECE) {
                Some((end, _)) => rest[..end].to_owned(),
                None if is_whole => rest.to_owned(),
                None => break,
            };
            self.open_item();
            let item_id = shown::item_id(&self.response.row);
            let data = json!({
                "item_id": item_id, "output_index": 0, "content_index": 0, "delta": piece, "logprobs": [],
            });
            self.emit("response.output_text.delta", data);
            self.told.push_str(&piece);
        }
    }

    fn open_item(&mut self) {
        self.run();
        if std::mem::replace(&mut self.has_item, true) {
            return;
        }
        let row = &self.response.row;
        let item = shown::item(row, "in_progress", None);
        let item_id = shown::item_id(row);
        self.emit(
            "response.output_item.added",
            json!({"output_index": 0, "item": item}),
        );
        let part = shown::part("");
        let data = json!({"item_id": item_id, "output_index": 0, "content_index": 0, "part": part});
        self.emit("response.content_part.added", data);
    }

    fn end(&mut self, found: crate::jobs::Found) {
        if self.is_over {
            return;
        }
        if self.response.ended(found).is_err() {
            return self.break_off();
        }
        let Some(Outcome::Text(outcome)) = self.response.outcome.clone() else {
            return self.end_badly();
        };
        self.text.clone_from(&outcome.text);
        self.tell(true);
        if self.is_over {
            return;
        }
        self.open_item();
        let item_id = shown::item_id(&self.response.row);
        let data = json!({
            "item_id": item_id, "output_index": 0, "content_index": 0, "text": outcome.text, "logprobs": [],
        });
        self.emit("response.output_text.done", data);
        let part = shown::part(&outcome.text);
        let data = json!({"item_id": item_id, "output_index": 0, "content_index": 0, "part": part});
        self.emit("response.content_part.done", data);
        let item = shown::item(
            &self.response.row,
            shown::item_status(&outcome),
            Some(&outcome.text),
        );
        self.emit(
            "response.output_item.done",
            json!({"output_index": 0, "item": item}),
        );
        let kind = match shown::cut_by(&outcome) {
            Some(_) => "response.incomplete",
            None => "response.completed",
        };
        let shown = self.response.shown();
        self.emit(kind, json!({ "response": shown }));
        self.is_over = true;
    }

    /// OpenAI has no event for a response that was cancelled; its status says it.
    fn end_badly(&mut self) {
        let row = &self.response.row;
        debug_assert!(row.state != JobState::Succeeded, "it has a text");
        if row.started_at.is_some() {
            self.run();
        }
        // The text so far may be gone, and with it how many events there were.
        if let Some(after) = self.after {
            self.number = self.number.max(after + 1);
        }
        let shown = self.response.shown();
        self.emit("response.failed", json!({ "response": shown }));
        self.is_over = true;
    }

    /// What the client has is not what comes.
    fn break_off(&mut self) {
        if let Some(after) = self.after {
            self.number = self.number.max(after + 1);
        }
        let message =
            "the broker that ran this died and the answer began anew, in other words; read it from its start";
        self.emit(
            "error",
            json!({"code": "restarted", "message": message, "param": null}),
        );
        self.is_over = true;
    }
}

#[cfg(test)]
mod tests {
    use duo_contract::name::Lane;
    use duo_process::clock;
    use uuid::Uuid;

    use super::*;
    use crate::jobs::Found;
    use crate::jobs::follow::Place;
    use crate::jobs::work::{TextOutcome, Tokens};
    use crate::store::jobs::JobRow;

    fn row(state: JobState) -> JobRow {
        let now = clock::now();
        JobRow {
            id: Uuid::nil(),
            client: "c".to_owned(),
            state,
            feature: "openai_chat".to_owned(),
            model: "m".to_owned(),
            lane: Lane::Background,
            prompt: None,
            metadata: None,
            callback: None,
            retry_of: None,
            created_at: now,
            deadline: now,
            run_after: now,
            owner: None,
            run: 1,
            failures: 0,
            request_id: None,
            started_at: Some(now),
            ended_at: None,
            worker: None,
            reason: None,
            message: None,
            upstream_status: None,
            input_tokens: None,
            output_tokens: None,
        }
    }

    fn numbered(after: Option<u64>) -> Numbered {
        let request = shown::Shown {
            background: true,
            ..shown::Shown::default()
        };
        let response = Kept {
            row: row(JobState::Queued),
            outcome: None,
            request,
        };
        let mut numbered = Numbered::new(response, after);
        numbered.begin();
        numbered
    }

    fn text(text: &str) -> Event {
        let place = Place {
            run: 1,
            number: 1,
            end: 0,
        };
        Event::Text {
            place,
            text: text.to_owned(),
        }
    }

    fn end(text: &str) -> Event {
        let outcome = Outcome::Text(TextOutcome {
            text: text.to_owned(),
            finish_reason: Some("stop".to_owned()),
            usage: Tokens::default(),
        });
        Event::End(Box::new(Found::Job(
            Box::new(row(JobState::Succeeded)),
            Some(outcome),
        )))
    }

    fn events(mut numbered: Numbered, happens: impl IntoIterator<Item = Event>) -> Vec<Value> {
        for event in happens {
            numbered.take(event);
        }
        let out = numbered.out.iter().map(|event| {
            let event = std::str::from_utf8(event).expect("text");
            let data = event.lines().nth(1).and_then(|line| line.strip_prefix("data: "));
            serde_json::from_str(data.expect("data")).expect("JSON")
        });
        out.collect()
    }

    const WHOLE: &str = "ein längerer Text, in dem nicht alles von einem Byte ist: äöü€";

    #[test]
    fn events_depend_on_the_text_and_not_on_how_it_came() {
        let whole = events(numbered(None), [end(WHOLE)]);
        for (number, event) in whole.iter().enumerate() {
            assert_eq!(event["sequence_number"], number);
        }
        let without_times = |mut events: Vec<Value>| {
            for event in &mut events {
                event["response"]["created_at"] = Value::Null;
            }
            events
        };
        let whole = without_times(whole);
        for size in [1, 3, 16, 17] {
            let signs: Vec<char> = WHOLE.chars().collect();
            let pieces: Vec<Event> = signs
                .chunks(size)
                .map(|piece| text(&piece.iter().collect::<String>()))
                .chain([end(WHOLE)])
                .collect();
            assert_eq!(
                without_times(events(numbered(None), pieces)),
                whole,
                "in pieces of {size}"
            );
        }
        let rest = without_times(events(numbered(Some(6)), [end(WHOLE)]));
        assert_eq!(rest, whole[7..]);
    }

    #[test]
    fn an_answer_that_begins_anew_goes_on_where_it_says_the_same_and_is_broken_off_where_not() {
        let restart = || Event::Restart { run: 2 };
        let half = || text(&WHOLE[..40]);
        let same = events(
            numbered(None),
            [
                half(),
                restart(),
                text(&WHOLE[..9]),
                text(&WHOLE[9..]),
                end(WHOLE),
            ],
        );
        assert_eq!(same.last().expect("an end")["type"], "response.completed");
        let said: String = same.iter().filter_map(|event| event["delta"].as_str()).collect();
        assert_eq!(said, WHOLE);
        let other = events(numbered(None), [half(), restart(), text("etwas anderes")]);
        let last = other.last().expect("an end");
        assert_eq!(
            (&last["type"], &last["code"]),
            (&json!("error"), &json!("restarted"))
        );
        assert_eq!(last["sequence_number"], other.len() - 1);
    }
}
