//! W3C trace context, carried from HTTP through the envelope to the model server.

/// The 32 hexadecimal digits of a valid `traceparent` header's trace id.
#[must_use]
pub fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let valid = hex(version, 2)
        && version != "ff"
        && (version != "00" || parts.next().is_none())
        && hex(trace, 32)
        && trace.bytes().any(|b| b != b'0')
        && hex(span, 16)
        && span.bytes().any(|b| b != b'0')
        && hex(flags, 2);
    valid.then_some(trace)
}

/// A `traceparent` for a new trace or for a new span of `parent`'s trace.
#[must_use]
pub fn child(parent: Option<&str>) -> String {
    let span = loop {
        let span = rand::random::<u64>();
        if span != 0 {
            break span;
        }
    };
    match parent.and_then(|parent| Some((trace_id(parent)?, parent.get(53..55)?))) {
        Some((trace, flags)) => format!("00-{trace}-{span:016x}-{flags}"),
        None => format!("00-{:032x}-{span:016x}-00", rand::random::<u128>().max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_child_keeps_the_trace_and_its_flags() {
        let child = child(Some(PARENT));
        assert_eq!(trace_id(&child), trace_id(PARENT));
        assert_ne!(child, PARENT);
        assert!(child.ends_with("-01"));
    }

    #[test]
    fn a_malformed_parent_starts_a_new_trace() {
        for bad in [
            "",
            "00-xyz",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            assert_eq!(trace_id(bad), None);
            assert!(trace_id(&child(Some(bad))).is_some());
        }
    }
}
