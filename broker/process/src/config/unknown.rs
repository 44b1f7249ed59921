//! What to tell an operator about a variable that no setting reads.

use std::collections::BTreeSet;

/// The most slips of the finger that still make a suggestion; more would suggest an unrelated name.
const MOST_SLIPS: usize = 4;

/// Says that `name` is unknown and what was probably meant; never shows `value`, which may be a secret.
pub(super) fn problem(name: &str, value: &str, known: &BTreeSet<String>) -> String {
    if is_service_link(name, value) {
        return format!(
            "{name} is unknown: it looks like a service link of Kubernetes, \
             set enableServiceLinks to false in the pod's spec"
        );
    }
    let nearest = known
        .iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .min();
    match nearest {
        Some((slips, candidate)) if slips <= MOST_SLIPS => {
            format!("{name} is unknown: did you mean {candidate}?")
        }
        _ => format!("{name} is unknown"),
    }
}

/// Tells whether Kubernetes set the variable, as it does in every pod for each service of the namespace.
fn is_service_link(name: &str, value: &str) -> bool {
    let port = name.contains("_PORT") && (value.starts_with("tcp://") || value.starts_with("udp://"));
    let part = name.contains("_PORT_") && (name.contains("_TCP") || name.contains("_UDP"));
    port || part || name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT")
}

/// The number of letters to insert, remove or replace to make one name the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (removed, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = removed + 1;
        for (column, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeSet<String> {
        ["DUO_NATS_URL", "DUO_LOG_FORMAT", "DUO_LISTEN"]
            .map(str::to_owned)
            .into()
    }

    #[test]
    fn a_slip_of_the_finger_suggests_the_nearest_name() {
        assert_eq!(
            problem("DUO_NAST_URL", "x", &known()),
            "DUO_NAST_URL is unknown: did you mean DUO_NATS_URL?"
        );
        assert_eq!(
            problem("DUO_NATS_URLS", "x", &known()),
            "DUO_NATS_URLS is unknown: did you mean DUO_NATS_URL?"
        );
    }

    #[test]
    fn an_unrelated_name_suggests_nothing() {
        assert_eq!(
            problem("DUO_MAX_ATTEMPTS_PER_JOB", "x", &known()),
            "DUO_MAX_ATTEMPTS_PER_JOB is unknown"
        );
        assert_eq!(problem("DUO_X", "x", &BTreeSet::new()), "DUO_X is unknown");
    }

    #[test]
    fn a_service_link_of_kubernetes_is_explained() {
        let links = [
            ("DUO_BROKER_SERVICE_HOST", "10.0.0.1"),
            ("DUO_BROKER_SERVICE_PORT_HTTP", "8080"),
            ("DUO_BROKER_PORT", "tcp://10.0.0.1:8080"),
            ("DUO_BROKER_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ];
        for (name, value) in links {
            assert!(
                problem(name, value, &known()).contains("enableServiceLinks"),
                "{name}"
            );
        }
    }

    #[test]
    fn a_distance_counts_single_letters() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
