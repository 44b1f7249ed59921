//! Spans of time and sizes as an operator writes them: a whole number and a unit.

use std::time::Duration;

/// Units of time in milliseconds, longest first.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 24 * 60 * 60 * 1_000),
    ("h", 60 * 60 * 1_000),
    ("m", 60 * 1_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Units of size in bytes, largest first.
const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

/// Parses a span of time such as `250ms`, `5s`, `2m`, `1h` or `30d`.
///
/// ```
/// use std::time::Duration;
/// use duo_process::config::parse_duration;
///
/// assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
/// assert_eq!(parse_duration("30d"), Ok(Duration::from_secs(30 * 24 * 60 * 60)));
/// assert!(parse_duration("5").is_err());
/// ```
///
/// # Errors
/// With what is expected, when the text is no whole number with one of the units, or too long a span.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse(text, &TIME_UNITS)
        .map(Duration::from_millis)
        .ok_or_else(|| {
            "expected a whole number and a unit of ms, s, m, h or d, as in 250ms or 30d".to_owned()
        })
}

/// Parses a number of bytes such as `512KiB`, `4MiB`, `1GiB` or a plain number.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    parse(text, &SIZE_UNITS)
        .ok_or_else(|| "expected a whole number of bytes, or of KiB, MiB or GiB, as in 4MiB".to_owned())
}

/// Prints a span in the longest unit that leaves a whole number; what is below a millisecond is lost.
pub(super) fn duration_text(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if milliseconds == 0 {
        "0s".to_owned()
    } else {
        print(milliseconds, &TIME_UNITS)
    }
}

/// Prints a size in the largest unit that leaves a whole number.
pub(super) fn bytes_text(bytes: u64) -> String {
    if bytes == 0 {
        "0".to_owned()
    } else {
        print(bytes, &SIZE_UNITS)
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn print(value: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().find(|(_, factor)| value.is_multiple_of(*factor));
    let (name, factor) = whole.expect("the last unit is one");
    format!("{}{name}", value / factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_printed_span_parses_to_itself(milliseconds in any::<u64>()) {
            let duration = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse_duration(&duration_text(duration)), Ok(duration));
        }

        #[test]
        fn a_printed_size_parses_to_itself(bytes in any::<u64>()) {
            prop_assert_eq!(parse_bytes(&bytes_text(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn every_unit_is_read() {
        let spans = [
            ("250ms", 250),
            ("5s", 5_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("30d", 2_592_000_000),
        ];
        for (text, milliseconds) in spans {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)));
            assert_eq!(duration_text(Duration::from_millis(milliseconds)), text);
        }
        let sizes = [
            ("7", 7),
            ("512KiB", 524_288),
            ("4MiB", 4_194_304),
            ("1GiB", 1_073_741_824),
        ];
        for (text, bytes) in sizes {
            assert_eq!(parse_bytes(text), Ok(bytes));
            assert_eq!(bytes_text(bytes), text);
        }
    }

    #[test]
    fn what_is_no_number_with_a_unit_is_refused() {
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "5 s",
            "5S",
            "1h30m",
            "99999999999999999999s",
            "999999999999d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for text in ["", "MiB", "4MB", "4M", "-1", "1.5GiB", "99999999999GiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
