//! The states of a batch and the ways between them: the one place that knows which are legal.

use std::str::FromStr;

/// Where a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BatchState {
    /// Its lines are looked at.
    Validating,
    /// A line is wrong; none was run.
    Failed,
    /// Its lines are jobs or become some.
    InProgress,
    /// All of them are over, and what came of them is written down.
    Finalizing,
    /// It is written down.
    Completed,
    /// The same, but for some lines there was no time.
    Expired,
    /// Somebody took it back, and its jobs are being ended.
    Cancelling,
    /// They are, and what came of those before is written down.
    Cancelled,
}

impl BatchState {
    /// Every state.
    pub const ALL: [BatchState; 8] = [
        BatchState::Validating,
        BatchState::Failed,
        BatchState::InProgress,
        BatchState::Finalizing,
        BatchState::Completed,
        BatchState::Expired,
        BatchState::Cancelling,
        BatchState::Cancelled,
    ];

    /// Its name, which is OpenAI's.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            BatchState::Validating => "validating",
            BatchState::Failed => "failed",
            BatchState::InProgress => "in_progress",
            BatchState::Finalizing => "finalizing",
            BatchState::Completed => "completed",
            BatchState::Expired => "expired",
            BatchState::Cancelling => "cancelling",
            BatchState::Cancelled => "cancelled",
        }
    }

    /// Is it final?
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self.next().is_empty()
    }

    /// The states that may come after it.
    #[must_use]
    pub fn next(self) -> &'static [BatchState] {
        use BatchState::{Cancelled, Cancelling, Completed, Expired, Failed, Finalizing, InProgress};
        match self {
            BatchState::Validating => &[InProgress, Failed, Cancelling],
            // Its file may have become unreadable at any time.
            InProgress => &[Finalizing, Cancelling, Failed],
            Finalizing => &[Completed, Expired, Failed],
            Cancelling => &[Cancelled, Failed],
            Failed | Completed | Expired | Cancelled => &[],
        }
    }

    /// The names of the states that may come before it: what a compare-and-set compares with.
    #[must_use]
    pub fn from(self) -> Vec<String> {
        let before = BatchState::ALL
            .into_iter()
            .filter(|state| state.next().contains(&self));
        before.map(|state| state.as_str().to_owned()).collect()
    }
}

impl FromStr for BatchState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = BatchState::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| format!("unknown state of a batch: {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_leads_to_an_end_and_what_is_over_cannot_be_cancelled() {
        for state in BatchState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
            let ends = state.is_terminal() || state.next().iter().any(|next| next.is_terminal());
            assert!(ends, "{state:?}");
        }
        assert_eq!(BatchState::Cancelling.from(), ["validating", "in_progress"]);
    }
}
