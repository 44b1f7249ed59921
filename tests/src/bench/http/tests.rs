//! The client against hand-written answers, cut at every byte.

use tokio::net::TcpListener;

use super::*;

const LENGTH: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKS: &str =
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\ntrailer: x\r\n\r\n";

/// The status and body that come of `pieces`, sent one after the other before the connection is closed.
async fn answer(pieces: &[&str]) -> io::Result<(u16, String)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut client = Connection::open(listener.local_addr()?).await?;
    let (mut server, _) = listener.accept().await?;
    server.set_nodelay(true)?;
    let pieces: Vec<_> = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
    let serving = tokio::spawn(async move {
        let mut request = [0; 4];
        server.read_exact(&mut request).await?;
        for piece in pieces {
            server.write_all(&piece).await?;
            tokio::task::yield_now().await;
        }
        io::Result::Ok(())
    });
    let status = client.send(b"ping").await?;
    let mut body = Vec::new();
    while let Some(part) = client.part().await? {
        body.extend_from_slice(part);
    }
    serving.await.expect("the server does not panic")?;
    Ok((status, String::from_utf8(body).expect("the bodies here are text")))
}

#[tokio::test]
async fn an_answer_is_the_same_wherever_it_is_cut() {
    for whole in [LENGTH, CHUNKS] {
        for cut in 1..whole.len() {
            let (front, back) = whole.split_at(cut);
            assert_eq!(answer(&[front, back]).await.unwrap(), (200, "hello".to_owned()));
        }
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_an_error() {
    for whole in [LENGTH, CHUNKS] {
        for cut in 1..whole.len() {
            let error = answer(&[&whole[..cut]]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn what_is_not_http_is_an_error() {
    for wrong in [
        "SSH-2.0\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfour\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n",
    ] {
        let error = answer(&[wrong]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{wrong}");
    }
}
