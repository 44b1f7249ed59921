//! Failure drills: load, a fault, and a checker that looks at everything afterwards.
//!
//! A [`Drill`] starts its own [`Cluster`](crate::harness::Cluster), sends [`load`], injects its fault, and hands the
//! [`history`] to the [`checker`], which yields a [`Report`]. Everything random comes from the seed. To add a drill:
//! a file `drill/<name>.rs` with `async fn run(size: Size) -> Report`, an entry in [`ALL`], and a test of its short
//! form in `tests/drills/main.rs`.

pub mod asking;
mod breaker;
mod broker_kill;
mod cancel;
pub mod checker;
mod disk;
mod disk_full;
mod fairness;
pub mod history;
mod jobs;
mod jobs_flood;
pub mod kind;
mod large_refusal;
pub mod load;
mod mix;
mod nats_cluster;
mod nats_deleted;
mod nats_server;
mod overload;
mod partition;
pub mod plot;
mod poison;
mod postgres_trouble;
pub mod pressure;
mod queue_trouble;
pub mod random;
pub mod real_cuts;
pub mod report;
mod retries;
mod retry_after;
mod rolling_restart;
mod scale_out;
mod slots_auto;
mod slow_reader;
pub mod stage;
mod store_restored;
mod worker_kill;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

use crate::harness::model_server;

pub use checker::Checker;
pub use history::{Asked, End, History, Strike};
pub use kind::Kind;
pub use load::{Load, Pace, Plan};
pub use report::{Counts, Report};
pub use stage::Stage;

/// One drill.
#[derive(Debug, Clone, Copy)]
pub struct Drill {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows, in one line.
    pub shows: &'static str,
    /// Runs it.
    pub run: fn(Size) -> LocalBoxFuture<'static, Report>,
}

/// How much of a drill is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Where all randomness comes from.
    pub seed: u64,
    /// How long the load lasts, if it was asked for.
    pub seconds: Option<u64>,
    /// Is this the form that is part of the tests, over in seconds?
    pub short: bool,
    /// How many faults, if it was asked for; only the mix looks at it.
    pub faults: Option<u64>,
    /// How many of them are kills, if it was asked for; only the mix looks at it.
    pub kills: Option<u64>,
    /// Which real model server; only `real-cuts` looks at it.
    pub model_server: model_server::Kind,
    /// How many cuts, if it was asked for; only `real-cuts` looks at it.
    pub cuts: Option<u64>,
}

/// Every drill, in the order in which `all` runs them.
pub const ALL: &[Drill] = &[
    Drill {
        name: "worker-kill",
        shows: "a killed worker is invisible: streams go on byte for byte",
        run: |size| worker_kill::kill(size).boxed_local(),
    },
    Drill {
        name: "worker-freeze",
        shows: "a frozen worker is replaced, and changes nothing when it thaws",
        run: |size| worker_kill::freeze(size).boxed_local(),
    },
    Drill {
        name: "broker-kill",
        shows: "a killed broker takes down its own clients only, and its work stops within two leases",
        run: |size| broker_kill::run(size).boxed_local(),
    },
    Drill {
        name: "cancel",
        shows: "a client that leaves, in whichever state, stops its generation at once and frees its places",
        run: |size| cancel::run(size).boxed_local(),
    },
    Drill {
        name: "retries",
        shows: "whatever a model server does: the right answer or an honest failure, within one budget of calls",
        run: |size| retries::run(size).boxed_local(),
    },
    Drill {
        name: "breaker",
        shows: "a model server that goes away is left alone, and gets work again soon after it is back",
        run: |size| breaker::run(size).boxed_local(),
    },
    Drill {
        name: "slots-auto",
        shows: "slots follow the model server's own line: it stays short, and the server busy",
        run: |size| slots_auto::run(size).boxed_local(),
    },
    Drill {
        name: "scale-out",
        shows: "a second worker takes load within a second of its start",
        run: |size| scale_out::run(size).boxed_local(),
    },
    Drill {
        name: "nats-restart",
        shows: "a nats-server that is killed and started again loses nothing",
        run: |size| nats_server::restart(size).boxed_local(),
    },
    Drill {
        name: "nats-pause",
        shows: "a nats-server that stands still holds work up and loses nothing",
        run: |size| nats_server::pause(size).boxed_local(),
    },
    Drill {
        name: "nats-leader-kill",
        shows: "the streams' leader dies: another is elected, nothing is lost",
        run: |size| nats_cluster::leader_kill(size).boxed_local(),
    },
    Drill {
        name: "nats-leader-pause",
        shows: "the streams' leader stands still: another is elected, nothing is lost",
        run: |size| nats_cluster::leader_pause(size).boxed_local(),
    },
    Drill {
        name: "nats-server-pause",
        shows: "each server of a cluster stands still in turn, the one that programs are connected to too",
        run: |size| nats_cluster::server_pause(size).boxed_local(),
    },
    Drill {
        name: "nats-leader-change",
        shows: "leaders hand over again and again, and nobody notices",
        run: |size| nats_cluster::leader_change(size).boxed_local(),
    },
    Drill {
        name: "nats-two-down",
        shows: "without a quorum everybody is told within five seconds, and it heals alone",
        run: |size| nats_cluster::two_down(size).boxed_local(),
    },
    Drill {
        name: "stream-deleted",
        shows: "a deleted stream is made again and its requests are published again",
        run: |size| nats_deleted::stream(size).boxed_local(),
    },
    Drill {
        name: "consumer-deleted",
        shows: "deleted consumers are made again",
        run: |size| nats_deleted::consumer(size).boxed_local(),
    },
    Drill {
        name: "disk-full",
        shows: "a full disk is told at once and loses nothing; takes root, for a small tmpfs",
        run: |size| disk_full::run(size).boxed_local(),
    },
    Drill {
        name: "postgres-away",
        shows: "ten minutes without PostgreSQL: no client notices, no record is missing",
        run: |size| postgres_trouble::away(size).boxed_local(),
    },
    Drill {
        name: "postgres-kill",
        shows: "a PostgreSQL that is killed again and again: no client notices, no record is missing",
        run: |size| postgres_trouble::killed(size).boxed_local(),
    },
    Drill {
        name: "postgres-pause",
        shows: "a PostgreSQL that stands still: no client notices, no record is missing",
        run: |size| postgres_trouble::stalled(size).boxed_local(),
    },
    Drill {
        name: "postgres-disk-full",
        shows: "a PostgreSQL with a full disk: no client notices, no record is missing; takes root, for a small tmpfs",
        run: |size| postgres_trouble::full(size).boxed_local(),
    },
    Drill {
        name: "partition-worker",
        shows: "a worker cut off from NATS is replaced, and changes nothing later",
        run: |size| partition::worker(size).boxed_local(),
    },
    Drill {
        name: "partition-broker",
        shows: "a broker cut off from NATS tells its clients, and goes on when it is back",
        run: |size| partition::broker(size).boxed_local(),
    },
    Drill {
        name: "slow-network",
        shows: "200 ms and late packets between broker and NATS make it slower and nothing else",
        run: |size| partition::far(size).boxed_local(),
    },
    Drill {
        name: "store-restored",
        shows: "the store comes back as it was earlier: requests under way are published again",
        run: |size| store_restored::restored(size).boxed_local(),
    },
    Drill {
        name: "store-damaged",
        shows: "damaged blocks of the live stream cost nothing",
        run: |size| store_restored::damaged(size).boxed_local(),
    },
    Drill {
        name: "slow-reader",
        shows: "clients that stop reading cost bounded memory and no GPU, and nobody else notices",
        run: |size| slow_reader::run(size).boxed_local(),
    },
    Drill {
        name: "poison",
        shows: "a request that kills its workers takes down no more than it has attempts",
        run: |size| poison::run(size).boxed_local(),
    },
    Drill {
        name: "rolling-restart",
        shows: "brokers, workers and nats-server restart one after another, and no client sees an error",
        run: |size| rolling_restart::run(size).boxed_local(),
    },
    Drill {
        name: "mix",
        shows: "random kills, freezes and hang-ups: nothing lost, doubled, corrupted, leaked or left running",
        run: |size| mix::run(size).boxed_local(),
    },
    Drill {
        name: "jobs",
        shows: "jobs that were accepted end once and well, whatever dies, freezes or is deleted meanwhile",
        run: |size| jobs::run(size).boxed_local(),
    },
    Drill {
        name: "jobs-flood",
        shows: "a backlog of background jobs keeps nobody waiting for a first token",
        run: |size| jobs_flood::run(size).boxed_local(),
    },
    Drill {
        name: "retry-after",
        shows: "a retry at the stated time is admitted, one at 70 % of it is refused",
        run: |size| retry_after::run(size).boxed_local(),
    },
    Drill {
        name: "large-refusal",
        shows: "a refusal reaches a client that is still sending 2.5 MB, and costs next to nothing",
        run: |size| large_refusal::run(size).boxed_local(),
    },
    Drill {
        name: "overload",
        shows: "twice and five times too much: all that the slots can do is in time, the rest is refused at once",
        run: |size| overload::run(size).boxed_local(),
    },
    Drill {
        name: "fairness",
        shows: "one person asks fifty times as much as nine others, who hardly notice",
        run: |size| fairness::run(size).boxed_local(),
    },
];

/// Drills that need more than this repository, and are run by their names alone.
pub const ASIDE: &[Drill] = &[Drill {
    name: "real-cuts",
    shows: "answers of a real model server, cut by killed workers, are token for token what they would have been",
    run: |size| real_cuts::run(size).boxed_local(),
}];

/// The drill of this name.
pub fn find(name: &str) -> Option<&'static Drill> {
    ALL.iter().chain(ASIDE).find(|drill| drill.name == name)
}

impl Size {
    /// The form that is part of the tests.
    pub fn short(seed: u64) -> Self {
        Self {
            seed,
            seconds: None,
            short: true,
            faults: None,
            kills: None,
            model_server: model_server::Kind::default(),
            cuts: None,
        }
    }

    /// How long the load lasts, given how long it does in the short and in the full form.
    pub fn span(&self, short: u64, full: u64) -> Duration {
        let usual = if self.short { short } else { full };
        Duration::from_secs(self.seconds.unwrap_or(usual))
    }
}
