//! The states of a job and the ways between them: the one place that knows which are legal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits, in Postgres or in the queue.
    Queued,
    /// A worker has it.
    Running,
    /// Its result is there.
    Succeeded,
    /// It cannot be done: the model server calls it bad, its answer is of no use, its feature or model is gone.
    Failed,
    /// Somebody took it back.
    Cancelled,
    /// Its deadline passed.
    Expired,
    /// The system failed it as often as it is tried.
    Dead,
}

impl JobState {
    /// Every state.
    pub const ALL: [JobState; 7] = [
        JobState::Queued,
        JobState::Running,
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
        JobState::Expired,
        JobState::Dead,
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
            JobState::Expired => "expired",
            JobState::Dead => "dead",
        }
    }

    /// Is it final?
    #[must_use]
    pub fn is_terminal(self) -> bool {
        !matches!(self, JobState::Queued | JobState::Running)
    }

    /// The states that may come after it.
    #[must_use]
    pub fn next(self) -> &'static [JobState] {
        use JobState::{Cancelled, Dead, Expired, Failed, Queued, Running, Succeeded};
        match self {
            // What ends within moments is never seen running.
            Queued => &[Running, Succeeded, Failed, Cancelled, Expired, Dead],
            Running => &[Queued, Succeeded, Failed, Cancelled, Expired, Dead],
            Succeeded | Failed | Cancelled | Expired | Dead => &[],
        }
    }

    /// The names of the states that may come before it: what a compare-and-set compares with.
    #[must_use]
    pub fn from(self) -> Vec<String> {
        let before = JobState::ALL
            .into_iter()
            .filter(|state| state.next().contains(&self));
        before.map(|state| state.as_str().to_owned()).collect()
    }

    /// What a webhook calls the end, where it is one.
    #[must_use]
    pub fn event(self) -> Option<&'static str> {
        match self {
            JobState::Queued | JobState::Running => None,
            JobState::Succeeded => Some("job.succeeded"),
            JobState::Failed => Some("job.failed"),
            JobState::Cancelled => Some("job.cancelled"),
            JobState::Expired => Some("job.expired"),
            JobState::Dead => Some("job.dead"),
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        JobState::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| {
                let known: Vec<_> = JobState::ALL.iter().map(|state| state.as_str()).collect();
                format!("has to be one of {}", known.join(", "))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_final_and_can_be_reached_from_everywhere_else() {
        for state in JobState::ALL {
            assert_eq!(state.is_terminal(), state.next().is_empty(), "{state}");
            assert_eq!(state.is_terminal(), state.event().is_some(), "{state}");
            assert_eq!(state.as_str().parse(), Ok(state));
            if state.is_terminal() {
                assert_eq!(state.from(), ["queued", "running"], "{state}");
            }
        }
        assert_eq!(JobState::Running.from(), ["queued"]);
        assert_eq!(JobState::Queued.from(), ["running"]);
    }
}
