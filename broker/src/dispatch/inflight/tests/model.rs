//! One request driven by random turns of honest workers over a bad network:
//! what must hold after every one of them.

use duo_contract::audit::AuditKind;
use duo_contract::failure::RetryRule;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use super::*;

/// The pieces of the one valid answer; two of them end where no other attempt can go on.
const PIECES: [&str; 10] = ["a0", "b1", "c2 ", "d3", "e4", "f5\n", "g6", "h7", "i8", "j9"];
const MAX_ATTEMPTS: u32 = 2;
const WORKERS: [&str; 3] = ["w1", "w2", "w3"];

fn whole() -> String {
    PIECES.concat()
}

/// Which of the jobs an operation is about.
type Which = Index;

#[derive(Debug, Clone)]
enum Op {
    /// The queue hands the message to a worker, whose job asks; `anew`: its consumer counts from 1 again.
    Deliver {
        worker: Which,
        anew: bool,
        heard: bool,
    },
    /// A copy from before the last publication turns up.
    DeliverOld {
        worker: Which,
    },
    /// A job that has heard no answer asks again.
    Ask {
        job: Which,
        heard: bool,
    },
    /// A job produces a chunk of so many pieces; the frame may be lost.
    Produce {
        job: Which,
        pieces: usize,
        arrives: bool,
    },
    /// A frame arrives late, or again.
    Repeat {
        job: Which,
        frame: Which,
    },
    Heartbeat {
        job: Which,
    },
    /// A job sends its last frame, or sends it again.
    Finish {
        job: Which,
        told: bool,
    },
    Fail {
        job: Which,
        how: usize,
    },
    /// The oldest order reaches its worker, or is lost.
    Obey {
        arrives: bool,
        word: bool,
    },
    Wait {
        ms: u64,
    },
    Poll,
    /// Deadlines and records are looked after.
    Tick,
    Stop {
        how: usize,
    },
    GiveWay,
    /// The message is lost; the owner looks for it.
    Lose,
    /// The owner has not found it.
    PublishAgain,
    /// What became of a publication under way.
    Stored {
        well: bool,
    },
    /// The acknowledgement of a publication from before the last comes late.
    StoredLate,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let which = any::<Which>;
    let op = prop_oneof![
        6 => (which(), prop::bool::weighted(0.2), prop::bool::weighted(0.8))
            .prop_map(|(worker, anew, heard)| Op::Deliver { worker, anew, heard }),
        1 => which().prop_map(|worker| Op::DeliverOld { worker }),
        2 => (which(), any::<bool>()).prop_map(|(job, heard)| Op::Ask { job, heard }),
        12 => (which(), 0..4_usize, prop::bool::weighted(0.8))
            .prop_map(|(job, pieces, arrives)| Op::Produce { job, pieces, arrives }),
        4 => (which(), which()).prop_map(|(job, frame)| Op::Repeat { job, frame }),
        2 => which().prop_map(|job| Op::Heartbeat { job }),
        3 => (which(), any::<bool>()).prop_map(|(job, told)| Op::Finish { job, told }),
        3 => (which(), 0..5_usize).prop_map(|(job, how)| Op::Fail { job, how }),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(arrives, word)| Op::Obey { arrives, word }),
        5 => prop_oneof![Just(40), Just(1_000), Just(4_999), Just(5_000), Just(8_000), Just(60_000)]
            .prop_map(|ms| Op::Wait { ms }),
        6 => Just(Op::Poll),
        3 => Just(Op::Tick),
        1 => (0..4_usize).prop_map(|how| Op::Stop { how }),
        1 => Just(Op::GiveWay),
        2 => Just(Op::Lose),
        3 => Just(Op::PublishAgain),
        3 => any::<bool>().prop_map(|well| Op::Stored { well }),
        1 => Just(Op::StoredLate),
    ];
    prop::collection::vec(op, 1..80)
}

/// A job at a worker, as honest as `workers/src/job.rs`.
#[derive(Debug)]
struct Job {
    claim: ClaimRequest,
    /// The attempt it was given, once it has heard so.
    attempt: Option<u32>,
    asking: bool,
    frames: Vec<FrameKind>,
    /// The next piece of the answer it generates.
    at: usize,
    generated: u64,
    /// Its last frame is made, or it was told to stop.
    over: bool,
}

struct World {
    bench: Bench,
    stream: bool,
    /// Its answer can be gone on with.
    plain: bool,
    now: Instant,
    jobs: Vec<Job>,
    /// Publication and sequence of the message in the stream.
    message: Option<(u32, u64)>,
    old: Option<(u32, u64)>,
    deliveries: u64,
    /// Where a message was that the owner has not found.
    missed: Option<u64>,
    /// A publication whose acknowledgement has not come: its number and its predecessor's sequence.
    publishing: Option<(u32, u64)>,
    next_sequence: u64,
    /// It was delivered all the same.
    early: bool,
    orders: Vec<(String, CancelReason)>,
    /// Which job holds each attempt.
    holders: std::collections::HashMap<u32, usize>,
    /// Attempts that a leaving worker gave up.
    given_up: u32,
    /// When the attempt that is alive was last heard of.
    heard: Instant,
    /// What each attempt that ended by its own last frame was told.
    told: std::collections::HashMap<u32, FrameAnswer>,
    /// What the client has.
    text: String,
    roles: usize,
    done: bool,
    failed: bool,
    over: bool,
    forgotten: u32,
    ends: Vec<duo_contract::audit::End>,
    /// Somebody has to ask for the delete when the publication under way is stored.
    to_delete: bool,
}

fn role() -> FrameKind {
    let chunk = json!({"id": "x", "created": 7, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]});
    FrameKind::Chunk(chunk.to_string().into())
}

fn lines_of(pieces: &[&str], plain: bool) -> Bytes {
    let lines: Vec<_> = pieces
        .iter()
        .map(|piece| {
            let logprobs = (!plain).then(|| json!({"content": []}));
            let choice = json!({"index": 0, "delta": {"content": piece}, "logprobs": logprobs});
            json!({"id": "x", "created": 7, "choices": [choice]}).to_string()
        })
        .collect();
    lines.join("\n").into()
}

impl World {
    fn new(stream: bool, plain: bool) -> Self {
        let bench = Bench::new(stream);
        Self {
            stream,
            plain,
            now: bench.start,
            heard: bench.start,
            told: std::collections::HashMap::new(),
            bench,
            jobs: Vec::new(),
            message: Some((1, 10)),
            old: None,
            deliveries: 0,
            missed: None,
            publishing: None,
            next_sequence: 11,
            early: false,
            orders: Vec::new(),
            holders: std::collections::HashMap::new(),
            given_up: 0,
            text: String::new(),
            roles: 0,
            done: false,
            failed: false,
            over: false,
            forgotten: 0,
            ends: Vec::new(),
            to_delete: false,
        }
    }

    /// One call of the state machine, and what has to hold after any of them.
    /// `last_word`: it was the last frame of the attempt that may speak.
    fn turn<R>(&mut self, last_word: bool, call: impl FnOnce(&InFlight, Instant) -> (R, Todo)) -> R {
        let (was_over, worker, sequence) = {
            let state = self.bench.inflight.state();
            (state.end.is_some(), state.alive_worker(), state.sequence)
        };
        let (result, todo) = call(&self.bench.inflight, self.now);
        let is_over = self.bench.inflight.state().end.is_some();
        if is_over && !was_over {
            let ordered = todo.cancel.as_ref().map(|(worker, _)| worker.clone());
            if last_word {
                assert_eq!(
                    (ordered, todo.delete),
                    (None, None),
                    "the worker settles its own delivery"
                );
            } else {
                assert_eq!(ordered, worker, "a worker alive at the end is told to stop");
                let known = self.bench.inflight.state().sequence.or(sequence);
                assert_eq!(todo.delete, known, "its message is deleted");
                self.to_delete = known.is_none();
            }
        } else if is_over {
            assert_eq!(todo.cancel, None, "an ended request orders nothing");
            if todo.delete.is_some() {
                assert!(self.to_delete, "a delete that nobody needs");
                self.to_delete = false;
            }
        } else {
            assert_eq!(todo.delete, None, "only an ended request's message is deleted");
        }
        if todo.delete.is_some() && todo.delete == self.message.map(|message| message.1) {
            self.message = None;
        }
        if let Some((worker, reason)) = todo.cancel {
            assert!(is_over || reason == CancelReason::Replaced);
            self.orders.push((worker, reason));
        }
        if todo.forget {
            self.forgotten += 1;
        }
        self.check(is_over);
        result
    }

    fn check(&mut self, is_over: bool) {
        while let Some(record) = self.bench.records.next() {
            assert_eq!(record.kind, AuditKind::Ended);
            self.ends.extend(record.end);
        }
        let (queued, running) = {
            let model = &self.bench.inflight.task.routed.model.name;
            self.bench.admission.line(model).counts()
        };
        let state = self.bench.inflight.state();
        let places = (queued.iter().sum::<usize>(), running);
        let expected = match (is_over, state.attempt.alive) {
            (true, _) => (0, 0),
            (false, false) => (1, 0),
            (false, true) => (0, 1),
        };
        assert_eq!(places, expected, "one place while it is open, none after");
        assert!(!self.over || is_over, "an end stays");
        self.over = is_over;
        assert!(self.ends.len() <= 1, "one terminal record");
        assert_eq!(
            self.forgotten as usize,
            self.ends.len(),
            "forgotten when the record is written"
        );
        assert!(
            state.attempt.number <= MAX_ATTEMPTS + self.given_up,
            "no more attempts than the limit and those given up"
        );
        assert!(whole().starts_with(&self.text), "{:?}", self.text);
        assert!(self.roles <= 1, "the role is said once");
    }

    fn job(&self, which: Which) -> Option<usize> {
        (!self.jobs.is_empty()).then(|| which.index(self.jobs.len()))
    }

    fn deliver(&mut self, worker: Which, (publication, sequence): (u32, u64), delivery: u64, heard: bool) {
        let claim = ClaimRequest {
            request_id: self.bench.inflight.request_id,
            publication,
            stream_sequence: sequence,
            delivery,
            worker: (*worker.get(&WORKERS)).to_owned(),
            job: Some(Uuid::from_u128(self.jobs.len() as u128)),
            server: None,
        };
        self.jobs.push(Job {
            claim,
            attempt: None,
            asking: true,
            frames: Vec::new(),
            at: 0,
            generated: 0,
            over: false,
        });
        self.ask(self.jobs.len() - 1, heard);
    }

    fn ask(&mut self, index: usize, heard: bool) {
        if !self.jobs[index].asking || self.jobs[index].over {
            return;
        }
        let claim = self.jobs[index].claim.clone();
        let was_over = self.over;
        let (before, publication, alive) = {
            let state = self.bench.inflight.state();
            (state.attempt.number, state.publication, state.alive_worker())
        };
        let (may_go_on, ordered) = (self.may_go_on(), self.orders.len());
        let answer = self.turn(false, |inflight, now| inflight.claim(&claim, now));
        let attempt = match &answer {
            ClaimReply::Proceed { attempt } | ClaimReply::Continue { attempt, .. } => Some(*attempt),
            ClaimReply::Busy { .. } | ClaimReply::Gone => None,
        };
        let silent = self.now - self.heard;
        if was_over || claim.publication < publication {
            assert_eq!(
                answer,
                ClaimReply::Gone,
                "nothing goes on after the end, nor an older copy"
            );
        } else {
            let sequence = self.bench.inflight.state().sequence;
            assert_eq!(sequence, Some(claim.stream_sequence), "it is where it was taken");
            if alive.is_some() && self.holders.get(&before) == Some(&index) {
                assert_eq!(attempt, Some(before), "asked again, answered again");
            } else if alive.is_some() && silent < LEASE {
                let delay_ms = (LEASE - silent).as_millis() as u64;
                assert_eq!(answer, ClaimReply::Busy { delay_ms }, "an attempt is alive");
            } else if may_go_on {
                assert_eq!(attempt, Some(before + 1), "the next attempt begins");
                self.heard = self.now;
                let told: Vec<_> = self.orders[ordered..].iter().map(|(worker, _)| worker).collect();
                let replaced = alive.as_ref().filter(|worker| **worker != claim.worker);
                assert_eq!(
                    told,
                    Vec::from_iter(replaced),
                    "whoever is replaced is told to stop"
                );
            } else {
                assert_eq!(answer, ClaimReply::Gone, "no attempt is left");
            }
        }
        let (attempt, have) = match answer {
            ClaimReply::Proceed { attempt } => (attempt, None),
            ClaimReply::Continue { attempt, have } => (attempt, Some(have)),
            ClaimReply::Busy { .. } | ClaimReply::Gone => {
                self.jobs[index].over |= heard;
                if answer == ClaimReply::Gone && heard && self.is_current(index) {
                    self.message = None;
                }
                return;
            }
        };
        let holder = *self.holders.entry(attempt).or_insert(index);
        assert_eq!(holder, index, "an attempt is one job's");
        assert!(attempt == before || attempt == before + 1);
        if !heard {
            return;
        }
        let worker = claim.worker;
        for (other, job) in self.jobs.iter_mut().enumerate() {
            // As `Running::replace_others` does.
            job.over |= other != index && job.claim.worker == worker;
        }
        let job = &mut self.jobs[index];
        job.attempt = Some(attempt);
        job.asking = false;
        let text = have.map(|have| have.text).unwrap_or_default();
        assert!(
            whole().starts_with(&text),
            "a successor is told what the client has"
        );
        job.at = (0..=PIECES.len())
            .find(|n| PIECES[..*n].concat() == text)
            .expect("cut between pieces");
        if self.stream {
            job.frames.push(role());
            self.send(index, 0);
        }
    }

    /// May another attempt begin?
    fn may_go_on(&self) -> bool {
        let inflight = &self.bench.inflight;
        let state = inflight.state();
        let in_time = match state.received.is_empty() {
            true => self.now < inflight.first_byte_by.min(inflight.end_by),
            false => {
                self.now < inflight.end_by && self.stream && (self.plain || state.received.tokens() == 0)
            }
        };
        in_time && state.attempt.number < MAX_ATTEMPTS + self.given_up
    }

    /// Is the message in the stream the one that this job was delivered?
    fn is_current(&self, index: usize) -> bool {
        let claim = &self.jobs[index].claim;
        self.message == Some((claim.publication, claim.stream_sequence))
    }

    /// A frame arrives.
    fn send(&mut self, index: usize, number: usize) -> FrameAnswer {
        let job = &self.jobs[index];
        let frame = ReplyFrame {
            attempt: job.attempt.expect("only who may speaks"),
            number: u32::try_from(number).expect("few"),
            kind: job.frames[number].clone(),
        };
        self.arrive(frame)
    }

    fn arrive(&mut self, frame: ReplyFrame) -> FrameAnswer {
        let (current, alive, before) = {
            let state = self.bench.inflight.state();
            (state.attempt.number, state.attempt.alive, format!("{state:?}"))
        };
        let fenced = frame.attempt < current;
        let last_word = frame.is_last() && !fenced && alive;
        if !fenced && alive && !self.over {
            self.heard = self.now;
        }
        let (attempt, was_over) = (frame.attempt, self.over);
        let answer = self.turn(last_word, |inflight, now| inflight.frame(frame, None, now));
        let ended = last_word && !was_over && !self.bench.inflight.state().attempt.alive;
        if ended {
            self.told.insert(attempt, answer.clone());
        } else if !fenced && !alive {
            let told = self.told.get(&attempt).cloned();
            assert_eq!(
                answer,
                told.unwrap_or(FrameAnswer::Stale),
                "an attempt that is over stays so"
            );
        }
        if fenced {
            assert_eq!(answer, FrameAnswer::Stale);
            let after = format!("{:?}", self.bench.inflight.state());
            assert_eq!(before, after, "an older attempt changes nothing");
        }
        answer
    }

    fn produce(&mut self, index: usize, pieces: usize, arrives: bool) {
        let job = &mut self.jobs[index];
        if job.over || job.attempt.is_none() || !self.stream {
            return;
        }
        let until = (job.at + pieces).min(PIECES.len());
        if job.at == until {
            return;
        }
        job.frames
            .push(FrameKind::Chunk(lines_of(&PIECES[job.at..until], self.plain)));
        job.generated += (until - job.at) as u64;
        job.at = until;
        let number = job.frames.len() - 1;
        if arrives {
            self.send(index, number);
        }
    }

    fn finish(&mut self, index: usize, told: bool) {
        let job = &mut self.jobs[index];
        if job.attempt.is_none() {
            return;
        }
        if !job.over {
            let rest = &PIECES[job.at..];
            job.generated += rest.len() as u64;
            job.at = PIECES.len();
            let body = if self.stream {
                lines_of(rest, self.plain)
            } else {
                whole().into()
            };
            let summary = Summary {
                output_tokens: Some(job.generated),
                ..Summary::default()
            };
            job.frames.push(FrameKind::Done { summary, body });
            job.over = true;
        }
        self.end(index, told);
    }

    fn fail(&mut self, index: usize, how: usize) {
        let job = &mut self.jobs[index];
        if job.attempt.is_none() || job.over {
            return;
        }
        let leaving = how == 4;
        let kinds = [
            FailureKind::ModelServerFault,
            FailureKind::ModelUnavailable,
            FailureKind::InvalidRequest,
            FailureKind::DeadlineExceeded,
            FailureKind::ModelUnavailable,
        ];
        job.frames.push(FrameKind::Failed(FailedAttempt {
            worker: job.claim.worker.clone(),
            failure: Failure::new(kinds[how], "it failed"),
            model_calls: 1,
            output_tokens: Some(job.generated),
            leaving,
        }));
        job.over = true;
        let (attempt, was_over) = (job.attempt, self.over);
        let alive = |world: &Self| {
            let state = world.bench.inflight.state();
            state.attempt.alive && Some(state.attempt.number) == attempt
        };
        let was_alive = alive(self);
        // What it leaves behind counts for nothing.
        self.given_up += u32::from(leaving && was_alive && !was_over);
        let answer = self.end(index, true);
        if !was_alive || was_over {
            return;
        }
        assert!(!alive(self), "a failed attempt is over");
        let again = kinds[how].retry() != RetryRule::Never && self.may_go_on();
        let delay = match answer {
            Some(FrameAnswer::HandBack { delay_ms }) => Some(delay_ms),
            _ => None,
        };
        assert_eq!(delay.is_some(), again, "handed back where it may go on");
        assert!(delay.unwrap_or(0) < 1_000, "another worker need not wait long");
        assert_eq!(self.over, !again);
    }

    /// Hands the last frame over, with what is missing before it; the job settles its delivery if it is told.
    fn end(&mut self, index: usize, told: bool) -> Option<FrameAnswer> {
        let frames = &self.jobs[index].frames;
        let Some(FrameKind::Done { .. } | FrameKind::Failed(_)) = frames.last() else {
            return None;
        };
        let last = frames.len() - 1;
        for _ in 0..2 {
            let answer = self.send(index, last);
            if !matches!(answer, FrameAnswer::Missing { .. }) {
                assert_eq!(self.send(index, last), answer, "asked again, answered again");
            }
            match answer {
                FrameAnswer::Missing { from, until } => {
                    assert!(
                        from < until && until as usize <= last,
                        "{from}..{until} of {last}"
                    );
                    for number in from..until {
                        self.send(index, number as usize);
                    }
                }
                answer => {
                    if answer == FrameAnswer::Confirmed && told && self.is_current(index) {
                        self.message = None;
                    }
                    return Some(answer);
                }
            }
        }
        panic!("a last frame is taken once nothing is missing before it");
    }

    fn obey(&mut self, arrives: bool, word: bool) {
        if self.orders.is_empty() {
            return;
        }
        let (worker, reason) = self.orders.remove(0);
        if !arrives {
            return;
        }
        for index in 0..self.jobs.len() {
            let job = &mut self.jobs[index];
            if job.over || job.claim.worker != worker {
                continue;
            }
            job.over = true;
            if let (Some(attempt), true) = (job.attempt, word && reason != CancelReason::Replaced) {
                let frame = ReplyFrame {
                    attempt,
                    number: u32::try_from(job.frames.len()).expect("few"),
                    kind: FrameKind::Failed(FailedAttempt {
                        worker: worker.clone(),
                        failure: Failure::new(FailureKind::Cancelled, "stopped"),
                        model_calls: 1,
                        output_tokens: Some(job.generated),
                        leaving: false,
                    }),
                };
                let earlier = self.bench.inflight.state().received.earlier_tokens();
                let (spent, written) = (earlier + job.generated, self.ends.len());
                self.arrive(frame);
                if self.ends.len() > written {
                    assert_eq!(self.ends[0].output_tokens, i64::try_from(spent).ok());
                }
            }
        }
    }

    fn poll(&mut self) {
        let Some(next) = self.bench.inflight.poll() else {
            assert!(!self.over, "an ended request has an end to tell");
            return;
        };
        match next {
            Some(Ok(ReplyEvent::Chunks(lines))) => {
                assert!(!self.done && !self.failed, "nothing after the end");
                for line in lines.split(|byte| *byte == b'\n') {
                    let chunk: Value = serde_json::from_slice(line).expect("a chunk");
                    let delta = &chunk["choices"][0]["delta"];
                    self.roles += usize::from(delta.get("role").is_some());
                    self.text.push_str(delta["content"].as_str().expect("text"));
                }
            }
            Some(Ok(ReplyEvent::Done { body, .. })) => {
                assert!(!self.done && !self.failed, "one end");
                self.done = true;
                self.text.push_str(&String::from_utf8_lossy(&body));
                assert_eq!(self.text, whole(), "what ends well is whole");
            }
            Some(Err(_)) => {
                assert!(!self.done && !self.failed, "one end");
                self.failed = true;
            }
            None => assert!(self.done || self.failed, "an end without a word"),
        }
        self.check(self.over);
    }

    fn lose(&mut self) {
        if self.publishing.is_some() {
            return;
        }
        if let Some(message) = self.message.take() {
            self.old = Some(message);
        }
        let Some(sequence) = self.bench.inflight.lost_suspect(self.now) else {
            return;
        };
        assert_eq!(
            Some(sequence),
            self.old.map(|old| old.1),
            "it is looked for where it was"
        );
        self.missed = Some(sequence);
    }

    fn publish_again(&mut self) {
        let Some(sequence) = self.missed.take() else {
            return;
        };
        let (publication, alive) = {
            let state = self.bench.inflight.state();
            (state.publication, state.attempt.alive)
        };
        let worked_on = alive && self.now - self.heard <= LEASE;
        let next = self.turn(false, |inflight, now| {
            match inflight.next_publication(sequence, now) {
                Some((publication, todo)) => (Some(publication), todo),
                None => (None, Todo::default()),
            }
        });
        if let Some(next) = next {
            assert!(!worked_on, "what is worked on is not published again");
            assert_eq!(next, publication + 1);
            self.publishing = Some((next, sequence));
        }
    }

    /// The message of a publication under way may be delivered before its acknowledgement comes.
    fn deliverable(&mut self) -> Option<(u32, u64)> {
        if let Some((publication, _)) = self.publishing.filter(|_| !self.early) {
            self.message = Some((publication, self.next_sequence));
            self.deliveries = 0;
            self.early = true;
        }
        self.message
    }

    fn stored_late(&mut self) {
        let Some((publication, sequence)) = self.old else {
            return;
        };
        let state = |world: &Self| format!("{:?}", world.bench.inflight.state());
        if publication == self.bench.inflight.state().publication {
            return;
        }
        let before = state(self);
        let todo = self.bench.inflight.stored(publication, sequence, self.now);
        assert_eq!(todo, Todo::default());
        assert_eq!(state(self), before, "an older publication changes nothing");
    }

    fn stored(&mut self, well: bool) {
        let Some((publication, lost)) = self.publishing.take() else {
            return;
        };
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let early = std::mem::take(&mut self.early);
        if !well {
            self.bench.inflight.not_stored(publication, lost);
            self.to_delete = false;
            return;
        }
        if !early {
            self.deliveries = 0;
            self.message = Some((publication, sequence));
        }
        self.turn(false, |inflight, now| {
            ((), inflight.stored(publication, sequence, now))
        });
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Deliver { worker, anew, heard } => {
                let Some(message) = self.deliverable() else { return };
                self.deliveries = if anew { 1 } else { self.deliveries + 1 };
                self.deliver(worker, message, self.deliveries, heard);
            }
            Op::DeliverOld { worker } => {
                if let Some(message) = self.old {
                    self.deliver(worker, message, 9, true);
                }
            }
            Op::Wait { ms } => self.now += Duration::from_millis(ms),
            Op::Poll => self.poll(),
            Op::Obey { arrives, word } => self.obey(arrives, word),
            Op::Tick => {
                let inflight = &self.bench.inflight;
                let stop = inflight.overdue(self.now);
                if let Some(stop) = stop.or_else(|| inflight.without_taker(Vec::new, self.now)) {
                    self.turn(false, |inflight, now| ((), inflight.stop(stop, now)));
                }
                self.turn(false, |inflight, now| ((), inflight.write_late_end(now, false)));
            }
            Op::Stop { how } => {
                let stop = [
                    Stop::ClientGone,
                    Stop::SlowReader,
                    Stop::Superseded,
                    Stop::Leaving,
                ][how];
                self.turn(false, |inflight, now| ((), inflight.stop(stop, now)));
            }
            Op::GiveWay => {
                let (begun, was_over) = {
                    let state = self.bench.inflight.state();
                    (state.attempt.alive || !state.received.is_empty(), self.over)
                };
                self.turn(false, |inflight, now| ((), inflight.give_way(now)));
                assert!(
                    !begun || was_over == self.over,
                    "only what nobody has begun gives way"
                );
            }
            Op::Lose => self.lose(),
            Op::PublishAgain => self.publish_again(),
            Op::StoredLate => self.stored_late(),
            Op::Stored { well } => self.stored(well),
            Op::Ask { job, heard } => {
                if let Some(job) = self.job(job) {
                    self.ask(job, heard);
                }
            }
            Op::Produce { job, pieces, arrives } => {
                if let Some(job) = self.job(job) {
                    self.produce(job, pieces, arrives);
                }
            }
            Op::Repeat { job, frame } => {
                if let Some(job) = self.job(job).filter(|job| !self.jobs[*job].frames.is_empty()) {
                    self.send(job, frame.index(self.jobs[job].frames.len()));
                }
            }
            Op::Heartbeat { job } => {
                if let Some(job) = self.job(job) {
                    let Job {
                        attempt,
                        frames,
                        over,
                        ..
                    } = &self.jobs[job];
                    if let (Some(attempt), false) = (*attempt, *over) {
                        let number = u32::try_from(frames.len()).expect("few");
                        let kind = FrameKind::Heartbeat;
                        let answer = self.arrive(ReplyFrame {
                            attempt,
                            number,
                            kind,
                        });
                        self.jobs[job].over |= answer == FrameAnswer::Stale;
                    }
                }
            }
            Op::Finish { job, told } => {
                if let Some(job) = self.job(job) {
                    self.finish(job, told);
                }
            }
            Op::Fail { job, how } => {
                if let Some(job) = self.job(job) {
                    self.fail(job, how);
                }
            }
        }
    }

    /// The client leaves, if it has not been told the end; all has to be put away then.
    fn close(mut self) {
        self.turn(false, |inflight, now| ((), inflight.stop(Stop::ClientGone, now)));
        self.turn(false, |inflight, now| {
            ((), inflight.write_late_end(now + LEASE, false))
        });
        self.stored(true);
        assert!(!self.to_delete, "a message stored after the end is deleted");
        assert_eq!((self.ends.len(), self.forgotten), (1, 1));
        for _ in 0..PIECES.len() * 3 {
            self.poll();
        }
        assert!(self.done != self.failed, "one end, good or bad");
        assert_eq!(self.ends[0].outcome == Outcome::Completed, self.done);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_request_has_one_answer_one_end_and_one_record(
        stream in prop::bool::weighted(0.8), plain in prop::bool::weighted(0.8), ops in ops()
    ) {
        let mut world = World::new(stream, plain);
        for op in ops {
            world.step(op);
        }
        world.close();
    }
}
