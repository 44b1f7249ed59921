//! The paths that are counted.

use duo_contract::claim::{ClaimReply, ClaimRequest};
use duo_contract::envelope::RequestEnvelope;
use duo_contract::frame::ReplyFrame;
use std::hint::black_box;
use uuid::Uuid;

use crate::broker::{Ask, Broker};
use crate::inputs;
use crate::worker::{Answer, Worker};

/// One path.
pub(crate) struct Path {
    /// Its name in the file of figures.
    pub(crate) name: &'static str,
    /// Runs it, and counts some of the runs: how many.
    pub(crate) run: fn() -> anyhow::Result<usize>,
}

/// Runs of a function that are counted, after as many that are not.
const CALLS: usize = 200;
/// Requests that are counted, in so many batches, after a batch that is not.
const BATCHES: usize = 4;
const REQUESTS: usize = 25;

/// Every path: whole programs first, then what they are made of.
pub(crate) const PATHS: &[Path] = &[
    Path {
        name: "broker: chat, answered whole",
        run: || ask(Ask::Chat { stream: false }, vec![inputs::done(inputs::WHOLE)]),
    },
    Path {
        name: "broker: chat, 16 frames of a token",
        run: || ask(Ask::Chat { stream: true }, inputs::stream_frames(false)),
    },
    Path {
        name: "broker: chat, 16 tokens in a frame",
        run: || ask(Ask::Chat { stream: true }, inputs::stream_frames(true)),
    },
    Path {
        name: "broker: code completion, GitLab token",
        run: || ask(Ask::Completion, vec![inputs::done(inputs::WHOLE)]),
    },
    Path {
        name: "worker: delivery, answered whole",
        run: || work(Answer::Whole),
    },
    Path {
        name: "worker: delivery, 16 tokens one by one",
        run: || work(Answer::TokenByToken),
    },
    Path {
        name: "worker: delivery, 16 tokens at once",
        run: || work(Answer::AllAtOnce),
    },
    Path {
        name: "broker: known GitLab token",
        run: || {
            with_broker(|runtime, broker| {
                let mut check = || {
                    black_box(runtime.block_on(broker.authenticate()));
                };
                calls(&mut check)
            })
        },
    },
    Path {
        name: "broker: admission",
        run: || with_broker(|_, broker| calls(&mut || broker.admit())),
    },
    Path {
        name: "broker: claim, 17 frames, end",
        run: || {
            let frames = inputs::stream_frames(false);
            with_broker(|_, broker| calls(&mut || broker.turns(&frames)))
        },
    },
    Path {
        name: "contract: envelope sealed",
        run: || {
            let (envelope, keys) = (inputs::envelope(Uuid::now_v7(), false), inputs::keys());
            Ok(calls(&mut || {
                black_box(black_box(&envelope).encode(&keys)).expect("seals");
            }))
        },
    },
    Path {
        name: "contract: envelope opened",
        run: || {
            let keys = inputs::keys();
            let (bytes, key_id) = inputs::envelope(Uuid::now_v7(), false).encode(&keys)?;
            Ok(calls(&mut || {
                black_box(RequestEnvelope::decode(black_box(&bytes), &key_id, &keys)).expect("opens");
            }))
        },
    },
    Path {
        name: "contract: claim and answer, both ways",
        run: || {
            let claim = inputs::claim(Uuid::now_v7());
            Ok(calls(&mut || {
                let bytes = black_box(&claim).encode();
                black_box(ClaimRequest::decode(&bytes)).expect("decodes");
                let bytes = black_box(ClaimReply::Proceed { attempt: 1 }).encode();
                black_box(ClaimReply::decode(&bytes)).expect("decodes");
            }))
        },
    },
    Path {
        name: "contract: frame of a token written",
        run: || {
            let frame = token_frame();
            Ok(calls(&mut || {
                black_box(black_box(&frame).encode());
            }))
        },
    },
    Path {
        name: "contract: frame of a token read",
        run: || {
            let bytes = token_frame().encode();
            Ok(calls(&mut || {
                black_box(ReplyFrame::decode(black_box(&bytes))).expect("decodes");
            }))
        },
    },
    Path {
        name: "contract: audit record written",
        run: || {
            let record = inputs::record();
            Ok(calls(&mut || {
                black_box(black_box(&record).encode());
            }))
        },
    },
];

fn token_frame() -> ReplyFrame {
    ReplyFrame {
        attempt: 1,
        number: 7,
        kind: inputs::token_frame(7),
    }
}

/// What callgrind is told to count, by this function's name.
#[inline(never)]
fn collect_instructions(work: &mut dyn FnMut()) -> bool {
    work();
    // Something to do after the call, so that it is no jump.
    black_box(true)
}

fn calls(work: &mut dyn FnMut()) -> usize {
    let mut all = || (0..CALLS).for_each(|_| work());
    all();
    collect_instructions(&mut all);
    CALLS
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    // One thread, so that nothing depends on which of them is faster.
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn with_broker(run: impl FnOnce(&tokio::runtime::Runtime, &Broker) -> usize) -> anyhow::Result<usize> {
    let runtime = runtime()?;
    let broker = runtime.block_on(Broker::start(Vec::new()))?;
    Ok(run(&runtime, &broker))
}

fn ask(ask: Ask, frames: Vec<duo_contract::frame::FrameKind>) -> anyhow::Result<usize> {
    let runtime = runtime()?;
    let mut broker = runtime.block_on(Broker::start(frames))?;
    for batch in 0..=BATCHES {
        broker.freshen();
        let mut requests = || {
            runtime.block_on(async {
                for _ in 0..REQUESTS {
                    black_box(broker.ask(ask).await);
                }
            });
        };
        if batch == 0 {
            requests();
        } else {
            collect_instructions(&mut requests);
        }
    }
    Ok(BATCHES * REQUESTS)
}

fn work(answer: Answer) -> anyhow::Result<usize> {
    let runtime = runtime()?;
    let mut worker = runtime.block_on(Worker::start(answer))?;
    for batch in 0..=BATCHES {
        let mut deliveries = worker.deliveries(REQUESTS);
        let mut all = || {
            runtime.block_on(async {
                for delivery in deliveries.drain(..) {
                    worker.work(delivery).await;
                }
            });
        };
        if batch == 0 {
            all();
        } else {
            collect_instructions(&mut all);
        }
    }
    Ok(BATCHES * REQUESTS)
}
