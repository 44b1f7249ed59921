//! Fields of webhook receivers. They are no part of a file, but what is wrong with them is told in the same way.

use std::time::Duration;

use duo_contract::snapshot::PromptOverride;
use duo_process::config::parse_duration;
use serde_json::Value as Json;

use super::Problem;
use super::node::{Node, Value};
use super::read::Reader;
use crate::store::webhooks::{NewReceiver, ReceiverChange};
use crate::webhooks::address::Cidr;
use crate::webhooks::receiver::{ReceiverName, ReceiverUrl};

/// How long an old secret is good beside a new one, unless a rotation says another time.
pub const OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest such time.
pub const LONGEST_OVERLAP: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Most networks of a receiver.
const MOST_ADDRESSES: usize = 64;

/// Reads what a new receiver is to be.
///
/// # Errors
/// Every mistake, by field.
pub fn read_new(body: Json) -> Result<NewReceiver, Vec<Problem>> {
    read(body, |reader, node| {
        let mut fields = reader.fields(String::new(), node, &["name", "url", "addresses"])?;
        let name = reader.required(&mut fields, "name", Reader::parsed::<ReceiverName>);
        let url = reader.required(&mut fields, "url", Reader::parsed::<ReceiverUrl>);
        let addresses = reader.optional(&mut fields, "addresses", Reader::networks);
        let new = NewReceiver {
            name: name?,
            url: url?,
            addresses: addresses.unwrap_or_default(),
        };
        reader.check_url(&new.url, &new.addresses);
        Some(new)
    })
}

/// Reads what is to be different of a receiver.
///
/// # Errors
/// Every mistake, by field.
pub fn read_change(body: Json) -> Result<ReceiverChange, Vec<Problem>> {
    read(body, |reader, node| {
        let mut fields = reader.fields(String::new(), node, &["url", "addresses", "enabled"])?;
        let change = ReceiverChange {
            url: reader.optional(&mut fields, "url", Reader::parsed::<ReceiverUrl>),
            addresses: reader.optional(&mut fields, "addresses", Reader::networks),
            enabled: reader.optional(&mut fields, "enabled", Reader::flag),
        };
        if let (Some(url), Some(addresses)) = (&change.url, &change.addresses) {
            reader.check_url(url, addresses);
        }
        Some(change)
    })
}

/// Reads how long the old secret is to be good beside a new one.
///
/// # Errors
/// Every mistake, by field.
pub fn read_overlap(body: Json) -> Result<Duration, Vec<Problem>> {
    read(body, |reader, node| {
        let mut fields = reader.fields(String::new(), node, &["overlap"])?;
        let overlap = reader.optional(&mut fields, "overlap", Reader::overlap);
        Some(overlap.unwrap_or(OVERLAP))
    })
}

fn read<T>(body: Json, part: impl FnOnce(&mut Reader<'_>, Node) -> Option<T>) -> Result<T, Vec<Problem>> {
    let accept = |_: &PromptOverride| Ok(());
    let mut reader = Reader::new(None, &accept);
    let value = part(&mut reader, Node::of_json(body));
    let problems = reader.finish().err().unwrap_or_default();
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(problems),
    }
}

/// Reads a time for which the old secret is good; none at all may be meant.
///
/// # Errors
/// No span, or too long a one.
pub fn parse_overlap(text: &str) -> Result<Duration, String> {
    let overlap = parse_duration(text)?;
    if overlap <= LONGEST_OVERLAP {
        Ok(overlap)
    } else {
        Err("may be 30d at most".to_owned())
    }
}

impl Reader<'_> {
    fn networks(&mut self, path: &str, node: Node) -> Option<Vec<Cidr>> {
        let place = node.place;
        let networks = self.names(path, node, Self::parsed::<Cidr>)?;
        if networks.len() <= MOST_ADDRESSES {
            return Some(networks);
        }
        self.problem(
            place,
            path.to_owned(),
            format!("may have at most {MOST_ADDRESSES} networks"),
        );
        None
    }

    fn overlap(&mut self, path: &str, node: Node) -> Option<Duration> {
        let place = node.place;
        if matches!(node.value, Value::Count(_) | Value::Number(_)) {
            self.expected(place, path, "a span of time such as 0s, 1h or 24h", &node.value);
            return None;
        }
        let text = self.text(path, node)?;
        parse_overlap(&text)
            .map_err(|error| self.problem(place, path.to_owned(), error))
            .ok()
    }

    fn check_url(&mut self, url: &ReceiverUrl, addresses: &[Cidr]) {
        if let Err(error) = url.check(addresses) {
            self.problems.push(Problem {
                place: None,
                part: "url".to_owned(),
                message: error.to_string(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields<T>(read: Result<T, Vec<Problem>>) -> Vec<String> {
        let problems = read.err().unwrap_or_default();
        problems.into_iter().map(|problem| problem.part).collect()
    }

    #[test]
    fn every_mistake_of_a_receiver_is_named_by_its_field() {
        let good = json!({"name": "ci", "url": "http://10.1.2.3:80/hook", "addresses": ["10.1.0.0/16"]});
        let new = read_new(good).expect("good");
        assert_eq!(
            (new.name.as_str(), new.url.as_str()),
            ("ci", "http://10.1.2.3/hook")
        );
        let bad = json!({"name": "c i", "url": "ftp://x/", "addresses": ["10.0.0.0/8", "10.1.2.3/8"], "secret": "x"});
        let mut found = fields(read_new(bad));
        found.sort();
        assert_eq!(found, ["addresses[1]", "name", "secret", "url"]);
        assert_eq!(fields(read_new(json!({"name": "ci"}))), ["url"]);
        let private = json!({"name": "ci", "url": "http://10.1.2.3/"});
        assert_eq!(fields(read_new(private)), ["url"]);
        assert_eq!(fields(read_new(json!([]))), [""]);
        let many = vec!["10.0.0.0/8"; MOST_ADDRESSES + 1];
        assert_eq!(fields(read_change(json!({"addresses": many}))), ["addresses"]);
        assert_eq!(
            fields(read_change(json!({"enabled": "yes", "name": "x"}))).len(),
            2
        );
    }

    #[test]
    fn an_overlap_is_a_span_of_up_to_thirty_days() {
        assert_eq!(read_overlap(json!({})).expect("the usual one"), OVERLAP);
        assert_eq!(
            read_overlap(json!({"overlap": "0s"})).expect("none"),
            Duration::ZERO
        );
        for bad in [json!("31d"), json!(5), json!("soon"), json!(true)] {
            assert_eq!(fields(read_overlap(json!({"overlap": bad}))), ["overlap"]);
        }
    }
}
