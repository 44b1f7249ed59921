use super::*;

fn request(endpoint: Endpoint, body: &str) -> Option<Request> {
    Request::parse(endpoint, body.as_bytes())
}

fn have(text: &str, pieces: &[u32]) -> Have {
    Have {
        text: text.to_owned(),
        pieces: pieces.to_vec(),
        ..Have::default()
    }
}

fn body(continued: &Continued) -> Value {
    serde_json::from_slice(&continued.body).expect("JSON")
}

#[test]
fn a_completion_goes_on_behind_its_text() {
    let asked = r#"{"prompt":"def ","max_tokens":9,"min_tokens":1,"stop":null}"#;
    let asked = request(Endpoint::Completions, asked).expect("plain");
    let on = asked.by_text(&have("f(", &[1, 1])).expect("continued");
    assert_eq!(on.endpoint, Endpoint::Completions);
    assert_eq!(
        body(&on),
        json!({"prompt": "def f(", "max_tokens": 7, "min_tokens": 0})
    );
    assert_eq!(on.seam.map(|seam| seam.earlier), Some(2));
}

#[test]
fn a_chat_goes_on_as_a_completion_of_token_ids() {
    let asked = r#"{"messages":[{"role":"user","content":"hi"}],"max_completion_tokens":9,"temperature":0,
        "logprobs":false,"tools":null,"n":1,"stop":["a"],"response_format":{"type":"text"},"reasoning_effort":"low"}"#;
    let asked = request(Endpoint::ChatCompletions, asked).expect("plain");
    let seam = Seam {
        chat: true,
        earlier: 2,
        ..Seam::default()
    };
    let on = asked.by_ids(&[1, 2, 5, 6], seam).expect("continued");
    assert_eq!(on.endpoint, Endpoint::Completions);
    assert_eq!(
        body(&on),
        json!({"prompt": [1, 2, 5, 6], "max_tokens": 7, "temperature": 0, "n": 1, "stop": ["a"]})
    );
}

#[test]
fn what_cannot_be_continued_is_refused() {
    for member in [
        r#""n":2"#,
        r#""tools":[{}]"#,
        r#""logprobs":true"#,
        r#""response_format":{"type":"json_object"}"#,
    ] {
        let asked = format!(r#"{{"messages":[],{member}}}"#);
        assert!(request(Endpoint::ChatCompletions, &asked).is_none(), "{member}");
    }
    assert!(request(Endpoint::Embeddings, r#"{"input":"x"}"#).is_none());
    let spent = request(Endpoint::Completions, r#"{"prompt":"x","max_tokens":2}"#).expect("plain");
    assert!(spent.by_text(&have("ab", &[1, 1])).is_none());
}

#[test]
fn pictures_are_more_than_text() {
    let of = |content: &str| {
        let asked = format!(r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#);
        request(Endpoint::ChatCompletions, &asked)
            .expect("plain")
            .is_text()
    };
    assert!(of(r#""hi""#) && of(r#"[{"type":"text","text":"hi"}]"#));
    assert!(!of(r#"[{"type":"image_url","image_url":{}}]"#));
}
