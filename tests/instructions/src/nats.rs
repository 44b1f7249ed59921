//! A stand-in for nats-server with one client: it knows the text protocol and nothing of streams. What is published
//! goes to a [`Role`], which says what comes back.

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Commands of the measured path that may wait.
const COMMANDS: usize = 1024;
/// As new as the programs ask for.
const INFO: &[u8] = b"INFO {\"server_id\":\"S\",\"server_name\":\"s\",\"version\":\"2.15.1\",\"go\":\"\",\"host\":\"127.0.0.1\",\
    \"port\":4222,\"headers\":true,\"max_payload\":8388608,\"proto\":1,\"jetstream\":true}\r\n";

/// One message, either way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    pub(crate) subject: String,
    pub(crate) reply: Option<String>,
    /// Header block with its version line and its blank line.
    pub(crate) headers: Option<Bytes>,
    pub(crate) payload: Bytes,
    /// The subscription that it comes on, where that is not its subject's: a pull's answer.
    pub(crate) inbox: Option<String>,
}

/// What the server and all others behind it do.
pub(crate) trait Role: Send + 'static {
    /// What the measured path tells it besides.
    type Command: Send;

    /// Something was published: pushes what the client gets for it.
    fn published(&mut self, message: Message, out: &mut Vec<Message>);

    /// The measured path wants something.
    fn told(&mut self, command: Self::Command, out: &mut Vec<Message>);
}

/// Starts a server for one client on a free port: its URL, and where to tell its role something.
pub(crate) async fn start<R: Role>(role: R) -> anyhow::Result<(String, mpsc::Sender<R::Command>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("nats://{}", listener.local_addr()?);
    let (sender, commands) = mpsc::channel(COMMANDS);
    tokio::spawn(async move {
        if let Ok((stream, _)) = listener.accept().await {
            serve(stream, role, commands).await.expect("the client stays");
        }
    });
    Ok((url, sender))
}

async fn serve<R: Role>(
    mut stream: TcpStream,
    mut role: R,
    mut commands: mpsc::Receiver<R::Command>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(INFO).await?;
    let mut subscriptions: Vec<(String, String)> = Vec::new();
    let (mut read, mut written) = (BytesMut::new(), Vec::new());
    let mut out = Vec::new();
    loop {
        tokio::select! {
            count = stream.read_buf(&mut read) => if count? == 0 { return Ok(()) },
            command = commands.recv() => match command {
                Some(command) => role.told(command, &mut out),
                None => return Ok(()),
            },
        }
        while let Some((line, message)) = next(&mut read)? {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match (words.as_slice(), message) {
                (_, Some(message)) => role.published(message, &mut out),
                (["SUB", subject, .., id], None) => {
                    subscriptions.push(((*subject).to_owned(), (*id).to_owned()));
                }
                (["PING"], None) => written.extend_from_slice(b"PONG\r\n"),
                _ => {}
            }
        }
        for message in out.drain(..) {
            let to = message.inbox.as_ref().unwrap_or(&message.subject);
            let wanted = subscriptions.iter().find(|(pattern, _)| covers(pattern, to));
            let (_, id) = wanted.ok_or_else(|| anyhow::anyhow!("nobody subscribed {to}"))?;
            write(&message, id, &mut written);
        }
        stream.write_all(&written).await?;
        written.clear();
    }
}

/// The next line, and the message that it announces; nothing while it is not all there.
fn next(read: &mut BytesMut) -> anyhow::Result<Option<(String, Option<Message>)>> {
    let Some(end) = read.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let line = String::from_utf8(read[..end].to_vec())?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (subject, reply, headers, total) = match words.as_slice() {
        ["PUB", subject, total] => (*subject, None, 0, total.parse()?),
        ["PUB", subject, reply, total] => (*subject, Some(*reply), 0, total.parse()?),
        ["HPUB", subject, headers, total] => (*subject, None, headers.parse()?, total.parse()?),
        ["HPUB", subject, reply, headers, total] => {
            (*subject, Some(*reply), headers.parse()?, total.parse()?)
        }
        _ => {
            read.advance(end + 2);
            return Ok(Some((line, None)));
        }
    };
    let total: usize = total;
    if read.len() < end + 2 + total + 2 {
        return Ok(None);
    }
    let mut message = Message {
        subject: subject.to_owned(),
        reply: reply.map(str::to_owned),
        ..Message::default()
    };
    read.advance(end + 2);
    let mut body = read.split_to(total).freeze();
    read.advance(2);
    let headers = body.split_to(headers);
    message.headers = (!headers.is_empty()).then_some(headers);
    message.payload = body;
    Ok(Some((line, Some(message))))
}

fn write(message: &Message, id: &str, out: &mut Vec<u8>) {
    let Message {
        subject,
        reply,
        headers,
        payload,
        ..
    } = message;
    let reply = reply.as_deref().unwrap_or("");
    let headers = headers.as_deref().unwrap_or_default();
    let total = headers.len() + payload.len();
    let line = match headers {
        [] => format!("MSG {subject} {id} {reply} {total}\r\n"),
        _ => format!("HMSG {subject} {id} {reply} {} {total}\r\n", headers.len()),
    };
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(headers);
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

fn covers(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}
