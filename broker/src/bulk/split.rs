//! Looks at every line of a batch, and makes jobs of them.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use serde_json::{Value, json};

use super::content::{Line, Lines};
use super::run::{Turn, caller};
use super::state::BatchState;
use super::{BulkError, MAX_LINES, line_id};
use crate::api::line::{BatchLine, LineError};
use crate::store::batches::Mark;
use crate::store::jobs::NewJob;

/// Errors that a failed batch tells.
const MAX_ERRORS: usize = 100;
/// Jobs of a batch that have not ended; the next ones are made when some have.
const AHEAD: u32 = 4096;
/// Lines of one transaction, and bytes of them.
const LINES_AT_ONCE: usize = 256;
const BYTES_AT_ONCE: usize = 1 << 20;

/// What came of looking at a batch's lines.
pub(super) enum Validated {
    /// They are all good.
    Good,
    /// This broker does not have the configuration that the batch was made under yet.
    Behind,
    /// They are not, and the batch has failed.
    Wrong,
}

/// Looks at every line.
pub(super) async fn validate(turn: &mut Turn<'_>) -> Result<Validated, BulkError> {
    let bulk = turn.bulk;
    let routing = bulk.parts().exchange.routing();
    let revision = routing.load().revision();
    if revision < turn.batch.config_revision {
        return Ok(Validated::Behind);
    }
    let caller = caller(&turn.batch);
    let mut lines = Lines::open(bulk, turn.batch.input_file, Mark::default()).await?;
    let mut look = Look::default();
    while let Some(line) = lines.next().await? {
        look.total += 1;
        if look.total > MAX_LINES {
            let message = format!("a batch may have at most {MAX_LINES} requests");
            look.add(None, LineError::new("too_many_tasks", message, None));
            break;
        }
        let batch = &turn.batch;
        let checked = match &line.text {
            Some(text) => BatchLine::parse(text, &batch.endpoint).and_then(|parsed| {
                look.known(&parsed)?;
                parsed.check(&routing.load(), &caller, &batch.feature)
            }),
            None => Err(LineError::new(
                "line_too_long",
                "the line has more bytes than a request may have",
                None,
            )),
        };
        if let Err(error) = checked {
            look.add(Some(&line), error);
        }
        turn.hold().await?;
    }
    if look.total == 0 {
        look.add(
            None,
            LineError::new("empty_file", "the file has no requests", None),
        );
    }
    let (store, fence) = (bulk.store(), &turn.fence);
    let is_good = look.errors.is_empty();
    let done = match is_good {
        true => store.start_batch(fence, look.total, revision).await?,
        false => {
            let errors = Value::Array(look.errors);
            store
                .fail_batch(fence, look.total.min(MAX_LINES), &errors)
                .await?
        }
    };
    match (done, is_good) {
        (false, _) => Err(BulkError::Overtaken),
        (true, false) => {
            bulk.parts().metrics.note_ended(BatchState::Failed);
            Ok(Validated::Wrong)
        }
        (true, true) => {
            turn.batch.total = look.total;
            turn.batch.config_revision = revision;
            Ok(Validated::Good)
        }
    }
}

/// What was seen so far.
#[derive(Default)]
struct Look {
    total: u32,
    errors: Vec<Value>,
    /// Of the names so far, which may be long and are many.
    hashes: HashSet<u64>,
    hasher: RandomState,
}

impl Look {
    fn known(&mut self, line: &BatchLine<'_>) -> Result<(), LineError> {
        match self.hashes.insert(self.hasher.hash_one(&*line.custom_id)) {
            true => Ok(()),
            false => Err(LineError::new(
                "duplicate_custom_id",
                "custom_id: another line of the file has the same",
                Some("custom_id"),
            )),
        }
    }

    fn add(&mut self, line: Option<&Line>, error: LineError) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(json!({
                "code": error.code,
                "line": line.map(|line| line.number),
                "message": error.message,
                "param": error.param,
            }));
        }
    }
}

/// May more lines become jobs now?
pub(super) fn has_room(turn: &Turn<'_>) -> bool {
    let (batch, jobs) = (&turn.batch, &turn.bulk.parts().jobs);
    let open = batch
        .made
        .saturating_sub(batch.counts.completed + batch.counts.failed);
    open < AHEAD && jobs.room_for(&batch.client) > 0
}

/// Makes jobs of the next lines, as many as there is room for.
pub(super) async fn make(turn: &mut Turn<'_>) -> Result<(), BulkError> {
    if turn.batch.made == turn.batch.total || !has_room(turn) {
        return Ok(());
    }
    let bulk = turn.bulk;
    let mut lines = Lines::open(bulk, turn.batch.input_file, turn.batch.made_to).await?;
    while turn.batch.made < turn.batch.total && has_room(turn) && !turn.is_spent() {
        let (mut made, mut to, mut bytes) = (Vec::new(), turn.batch.made_to, 0);
        while made.len() < LINES_AT_ONCE && bytes < BYTES_AT_ONCE {
            let Some(line) = lines.next().await? else { break };
            let job = job(turn, &line)?;
            bytes += job.input.bytes.len();
            made.push(job);
            to = line.end;
        }
        if made.is_empty() {
            // There were more when they were looked at.
            return Err(BulkError::Gone);
        }
        let rows: Vec<&NewJob> = made.iter().collect();
        let lease = bulk.parts().lease;
        if !bulk.store().make_lines(&turn.fence, &rows, to, lease).await? {
            return Err(BulkError::Overtaken);
        }
        bulk.parts().jobs.note_accepted(rows.into_iter());
        bulk.parts().metrics.made.inc_by(made.len() as u64);
        turn.batch.made += u32::try_from(made.len()).unwrap_or(0);
        turn.batch.made_to = to;
    }
    Ok(())
}

fn job(turn: &Turn<'_>, line: &Line) -> Result<NewJob, BulkError> {
    let batch = &turn.batch;
    let text = line.text.as_ref().ok_or(BulkError::Gone)?;
    let parsed = BatchLine::parse(text, &batch.endpoint).map_err(|_| BulkError::Gone)?;
    let id = line_id(batch.id, line.number);
    let input = turn.bulk.parts().jobs.seal(id, &parsed.work())?;
    Ok(NewJob {
        id,
        client: batch.client.clone(),
        client_limit: batch.client_limit,
        who: batch.who.clone(),
        feature: batch.feature.clone(),
        model: parsed.model().ok_or(BulkError::Gone)?,
        lane: duo_contract::name::Lane::Background,
        prompt: None,
        config_revision: batch.config_revision,
        traceparent: batch.traceparent.clone(),
        correlation_id: batch.correlation_id.clone(),
        metadata: Some(json!({"batch_id": format!("batch_{}", batch.id.simple())})),
        callback: None,
        retry_of: None,
        deadline: batch.expires_at,
        input,
        key: None,
    })
}
