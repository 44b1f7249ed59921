//! Syslog as RFC 5424 has it, over TCP, each message behind its length (RFC 6587).

use std::fmt::Write as _;
use std::io;

use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::json;
use crate::store::audit_events::Event;

/// Facility 13, log audit; severity 6, informational.
const PRIORITY: u8 = 13 * 8 + 6;

/// A syslog server.
#[derive(Debug)]
pub(super) struct Syslog {
    address: String,
    connection: Option<TcpStream>,
}

impl Syslog {
    pub(super) fn new(address: String) -> Self {
        Self {
            address,
            connection: None,
        }
    }

    /// Sends records. Nobody acknowledges them: what the kernel has taken when a server dies is lost.
    pub(super) async fn send(&mut self, events: &[Event]) -> io::Result<()> {
        let mut text = String::new();
        for event in events {
            let message = message(event);
            // Writing to a text does not fail.
            let _ = write!(text, "{} {message}", message.len());
        }
        // A connection that breaks, or is given up in the middle of a message, is not used again.
        let mut connection = match self.connection.take() {
            Some(connection) if is_open(&connection) => connection,
            _ => TcpStream::connect(&self.address).await?,
        };
        connection.write_all(text.as_bytes()).await?;
        connection.flush().await?;
        self.connection = Some(connection);
        Ok(())
    }
}

/// A server that has gone has closed its side, which a write would not notice.
fn is_open(connection: &TcpStream) -> bool {
    let mut byte = [0];
    match connection.try_read(&mut byte) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

fn message(event: &Event) -> String {
    let moment = event.occurred_at.format(&Rfc3339);
    let moment = moment.unwrap_or_else(|_| "-".to_owned());
    let host: String = event
        .broker
        .chars()
        .filter(char::is_ascii_graphic)
        .take(255)
        .collect();
    let host = if host.is_empty() { "-" } else { &host };
    let json = json(event);
    format!(
        "<{PRIORITY}>1 {moment} {host} duo-broker - {} - \u{feff}{json}",
        event.kind
    )
}
