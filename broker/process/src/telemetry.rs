//! Logs: one subscriber for the process, to standard error.
//!
//! It decides how a line looks and which lines pass, never what is logged. Timestamps are RFC 3339 in UTC. In the
//! JSON form, an event's fields stand at the top level of its line, beside `timestamp`, `level` and `target`.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::str::FromStr;

use tracing::Subscriber;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, FmtSubscriber};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line per event, in colour on a terminal.
    #[default]
    Human,
    /// One JSON object per event, for a log collector.
    Json,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in the form `level` or `target=level,...`.
    #[error("the log filter {filter:?} is not valid")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The process already has a subscriber.
    #[error("logging was started twice")]
    AlreadyStarted(#[from] TryInitError),
}

/// A name that is no [`LogFormat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected human or json")]
pub struct UnknownLogFormat;

/// Starts logging to standard error for the whole process.
///
/// `filter` uses the syntax of [`EnvFilter`], for example `info,async_nats=warn`.
///
/// # Errors
/// When `filter` cannot be parsed, or when logging was started before.
pub fn init(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let filter = parse_filter(filter)?;
    let colour = stderr().is_terminal();
    Ok(subscriber(filter, format, colour, stderr).try_init()?)
}

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;

    fn from_str(text: &str) -> Result<LogFormat, UnknownLogFormat> {
        match text {
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            _ => Err(UnknownLogFormat),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        })
    }
}

fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter {
        filter: filter.to_owned(),
        source,
    })
}

fn subscriber<W>(
    filter: EnvFilter,
    format: LogFormat,
    colour: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = FmtSubscriber::builder()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(writer);
    match format {
        LogFormat::Human => Box::new(builder.finish()),
        LogFormat::Json => Box::new(
            builder
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .finish(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Result as IoResult, Write};
    use std::sync::{Arc, Mutex};

    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> IoResult<()> {
            Ok(())
        }
    }

    fn lines(format: LogFormat) -> Vec<String> {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(parse_filter("info").unwrap(), format, false, move || {
            writer.clone()
        });
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(request_id = "r-1", attempt = 2, "request ended");
            tracing::debug!("left out by the filter");
        });
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_json_line_carries_its_fields_at_the_top() {
        let lines = lines(LogFormat::Json);
        assert_eq!(lines.len(), 1);
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();

        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "request ended");
        assert_eq!(line["request_id"], "r-1");
        assert_eq!(line["attempt"], 2);
        let moment = OffsetDateTime::parse(line["timestamp"].as_str().unwrap(), &Rfc3339).unwrap();
        assert!(moment.offset().is_utc());
    }

    #[test]
    fn a_human_line_begins_with_its_moment() {
        let lines = lines(LogFormat::Human);
        assert_eq!(lines.len(), 1);
        let (moment, rest) = lines[0].split_once(' ').unwrap();

        assert!(OffsetDateTime::parse(moment, &Rfc3339).is_ok());
        assert!(
            rest.contains("request ended request_id=\"r-1\" attempt=2"),
            "{rest}"
        );
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_named() {
        let error = init("info,duo_broker=loud", LogFormat::Human).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the log filter \"info,duo_broker=loud\" is not valid"
        );
    }

    #[test]
    fn a_format_prints_as_it_parses() {
        for format in [LogFormat::Human, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!("xml".parse::<LogFormat>(), Err(UnknownLogFormat));
    }
}
