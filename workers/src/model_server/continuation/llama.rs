//! llama-server: by token ids that are found from the text.
//!
//! Its streams carry no ids that could be asked for on OpenAI's endpoints, but
//! each of its chunks is one token, or the few that make a character. So the
//! text is taken apart by `/tokenize`, and the chunks tell which of the ways to
//! do so is the one that it was put together in.

use duo_contract::claim::Have;
use serde_json::{Value, json};

use super::{Continued, Request, Seam};
use crate::model_server::openai::Http;

/// A token and its text, which is bytes where it is no whole character.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    id: u32,
    text: Vec<u8>,
}

pub(super) async fn continued(http: &Http, request: Request, have: &Have) -> Option<Continued> {
    if !request.is_text() {
        return None;
    }
    let found = tokens(http, &request, have).await;
    let Some((prompt, mut answer)) = found else {
        return if request.is_chat() {
            None
        } else {
            request.by_text(have)
        };
    };
    let mut skip = Vec::new();
    let full = request.limit() == u64::try_from(answer.len()).ok();
    if full {
        // All of it is there but for its end, which comes with the last token again.
        skip = answer.pop()?.text;
    }
    let ids: Vec<_> = prompt.into_iter().chain(answer.iter().map(|t| t.id)).collect();
    let seam = Seam {
        chat: request.is_chat(),
        skip: String::from_utf8(skip).ok()?,
        earlier: u64::try_from(answer.len()).ok()?,
        ..Seam::default()
    };
    request.by_ids(&ids, seam)
}

/// The tokens of prompt and answer.
async fn tokens(http: &Http, request: &Request, have: &Have) -> Option<(Vec<u32>, Vec<Token>)> {
    let prompt = match request.is_chat() {
        true => {
            let template = http
                .ask("apply-template", &Value::Object(request.body.clone()))
                .await?;
            template["prompt"].as_str()?.to_owned()
        }
        false => request.text("prompt")?.to_owned(),
    };
    let ids: Vec<_> = tokenized(http, json!(prompt), true)
        .await?
        .iter()
        .map(|token| token.id)
        .collect();
    let together = tokenized(http, json!(format!("{prompt}{}", have.text)), true).await?;
    let behind = together
        .get(ids.len()..)
        .filter(|_| together.iter().zip(&ids).all(|(token, id)| token.id == *id));
    let behind = behind
        .map(<[Token]>::to_vec)
        .filter(|way| spells(way, &have.text));
    if let Some(way) = behind.as_ref().filter(|way| fits(way, &have.pieces)) {
        return Some((ids, way.clone()));
    }
    let alone = tokenized(http, json!(have.text), false).await?;
    let alone = Some(alone).filter(|way| spells(way, &have.text));
    if let Some(way) = alone.as_ref().filter(|way| fits(way, &have.pieces)) {
        return Some((ids, way.clone()));
    }
    let pieces = tokenized(http, json!(split(&have.text, &have.pieces)), false).await?;
    let pieces = Some(pieces).filter(|way| spells(way, &have.text) && fits(way, &have.pieces));
    if pieces.is_none() {
        tracing::debug!("an answer's tokens are not known for sure; it goes on behind its text");
    }
    pieces.or(alone).or(behind).map(|way| (ids, way))
}

async fn tokenized(http: &Http, content: Value, prompt: bool) -> Option<Vec<Token>> {
    let question = json!({
        "content": content, "add_special": prompt, "parse_special": prompt, "with_pieces": true,
    });
    let answer = http.ask("tokenize", &question).await?;
    answer["tokens"].as_array()?.iter().map(token).collect()
}

fn token(token: &Value) -> Option<Token> {
    let text = match &token["piece"] {
        Value::String(text) => text.clone().into_bytes(),
        bytes => serde_json::from_value(bytes.clone()).ok()?,
    };
    Some(Token {
        id: u32::try_from(token["id"].as_u64()?).ok()?,
        text,
    })
}

/// Do these tokens make exactly this text?
fn spells(way: &[Token], text: &str) -> bool {
    let bytes = way.iter().flat_map(|token| &token.text);
    bytes.eq(text.as_bytes())
}

/// Does every chunk end where a token ends?
fn fits(way: &[Token], pieces: &[u32]) -> bool {
    let ends = |lengths: Vec<usize>| {
        lengths.into_iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
    };
    let mut tokens = ends(way.iter().map(|token| token.text.len()).collect());
    let mut chunks = ends(pieces.iter().map(|piece| *piece as usize).collect());
    chunks.all(|chunk| tokens.by_ref().any(|token| token == chunk))
}

fn split<'a>(text: &'a str, pieces: &[u32]) -> Vec<&'a str> {
    let mut rest = text;
    let parts = pieces.iter().map(|piece| {
        let (part, behind) = rest.split_at_checked(*piece as usize).unwrap_or((rest, ""));
        rest = behind;
        part
    });
    parts.filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(texts: &[&str]) -> Vec<Token> {
        let tokens = texts.iter().zip(0..).map(|(text, id)| Token {
            id,
            text: text.as_bytes().to_vec(),
        });
        tokens.collect()
    }

    #[test]
    fn a_way_fits_when_every_chunk_ends_with_a_token() {
        let tokens = way(&[" com", "mit", "\u{e4}"]);
        assert!(spells(&tokens, " commit\u{e4}") && !spells(&tokens, " commit"));
        assert!(fits(&tokens, &[4, 3, 2]));
        assert!(fits(&tokens, &[7, 2]), "a chunk may be several tokens");
        assert!(!fits(&way(&[" commit", "\u{e4}"]), &[4, 3, 2]));
        assert!(!fits(&way(&[" com"]), &[4, 3]));
    }

    #[test]
    fn a_text_is_split_as_it_came() {
        assert_eq!(split(" commit\u{e4}", &[4, 3, 2]), [" com", "mit", "\u{e4}"]);
        assert_eq!(split("\u{e4}", &[1, 1]), ["\u{e4}"]);
    }

    #[test]
    fn a_token_that_is_no_whole_character_is_bytes() {
        let half = token(&json!({"id": 7, "piece": [195]})).expect("a token");
        assert_eq!((half.id, half.text), (7, vec![195]));
    }
}
