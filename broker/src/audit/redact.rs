//! Takes secrets out of texts before they are kept.
//!
//! The engine has no backtracking: a text takes time by its length, whatever is in it. A change of the rules is a new [`REVISION`],
//! which stands beside each text that they saw.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

/// Which rules these are.
pub const REVISION: u32 = 1;

/// Name and pattern. What group `keep` matches stays, the rest becomes a mark.
const RULES: [(&str, &str); 12] = [
    (
        "private_key",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\z)",
    ),
    // GitLab's own list of prefixes; whatever else begins with "gl" is somebody's code.
    (
        "gitlab_token",
        r"(?-u:\b)gl(?:pat|oas|dt|rtr?|cbt|ptt|ft|imt|agent|wt|soat|ffct)-[0-9A-Za-z_.=-]{16,}",
    ),
    ("gitlab_token", r"(?-u:\b)GR1348941[0-9A-Za-z_-]{20,}"),
    (
        "jwt",
        r"(?-u:\b)eyJ[0-9A-Za-z_-]{6,}\.[0-9A-Za-z_-]{6,}\.[0-9A-Za-z_-]*",
    ),
    ("aws_key", r"(?-u:\b)(?:AKIA|ASIA)[0-9A-Z]{16}"),
    (
        "aws_secret",
        r#"(?P<keep>(?i-u:aws_?secret_?(?:access_?)?key)["']?[ \t]{0,8}[:=][ \t]{0,8}["']?)[0-9A-Za-z/+=]{40}"#,
    ),
    (
        "api_key",
        r"(?-u:\b)(?:sk-[0-9A-Za-z_-]{20,}|gh[pousr]_[0-9A-Za-z]{30,}|github_pat_[0-9A-Za-z_]{30,}|xox[abeoprs]-[0-9A-Za-z-]{10,}|AIza[0-9A-Za-z_-]{35})",
    ),
    (
        "authorization",
        r#"(?P<keep>(?i-u:authorization)["']?[ \t]{0,8}[:=][ \t]{0,8}["']?(?i-u:bearer|basic|token|digest|negotiate)[ \t]{1,8})[^\s"'\\,;\[][^\s"'\\,;]{3,}"#,
    ),
    (
        "authorization",
        r#"(?P<keep>(?i-u:authorization)["']?[ \t]{0,8}[:=][ \t]{0,8}["']?)[^\s"'\\,;\[][^\s"'\\,;]{15,}"#,
    ),
    (
        "token",
        r#"(?P<keep>(?i-u:private-token|job-token|deploy-token|x-api-key)["']?[ \t]{0,8}[:=][ \t]{0,8}["']?)[^\s"'\\,;\[][^\s"'\\,;]{7,}"#,
    ),
    (
        "password",
        r#"(?P<keep>(?i-u:[a-z][a-z0-9+.-]{1,20})://[^\s/:@"'\\]+:)[^\s/@"'\\\[][^\s/@"'\\]*(?P<rest>@)"#,
    ),
    (
        "email",
        r"(?-u:\b)[0-9A-Za-z._%+-]{1,64}@[0-9A-Za-z-]{1,63}(?:\.[0-9A-Za-z-]{1,63}){0,8}\.[A-Za-z]{2,24}",
    ),
];

static COMPILED: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| {
    let compile = |(name, pattern): &(&'static str, &str)| {
        (*name, Regex::new(pattern).expect("the patterns are constants"))
    };
    RULES.iter().map(compile).collect()
});

/// The rules in force.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Do e-mail addresses go too?
    pub emails: bool,
}

impl Rules {
    /// A text without its secrets, and how many there were.
    #[must_use]
    pub fn text<'a>(&self, text: &'a str) -> (Cow<'a, str>, u32) {
        let mut text = Cow::Borrowed(text);
        let mut count = 0;
        for (name, pattern) in COMPILED.iter() {
            if *name == "email" && !self.emails {
                continue;
            }
            let mark = |found: &Captures<'_>| {
                count += 1;
                let group = |name| found.name(name).map_or("", |found| found.as_str());
                format!("{}[redacted:{name}]{}", group("keep"), group("rest"))
            };
            if let Cow::Owned(replaced) = pattern.replace_all(&text, mark) {
                text = Cow::Owned(replaced);
            }
        }
        (text, count)
    }

    /// A JSON text without the secrets in its strings; byte for byte as it was where there were none. What is no JSON is
    /// taken as it stands.
    #[must_use]
    pub fn json<'a>(&self, bytes: &'a [u8]) -> (Cow<'a, [u8]>, u32) {
        let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else {
            let text = String::from_utf8_lossy(bytes);
            let (clean, count) = self.text(&text);
            return match count {
                0 => (Cow::Borrowed(bytes), 0),
                _ => (Cow::Owned(clean.into_owned().into_bytes()), count),
            };
        };
        match self.strings(&mut value) {
            0 => (Cow::Borrowed(bytes), 0),
            count => (Cow::Owned(value.to_string().into_bytes()), count),
        }
    }

    fn strings(&self, value: &mut Value) -> u32 {
        match value {
            Value::String(text) => {
                let (clean, count) = self.text(text);
                if let Cow::Owned(clean) = clean {
                    *text = clean;
                }
                count
            }
            Value::Array(items) => items.iter_mut().map(|item| self.strings(item)).sum(),
            Value::Object(members) => {
                let keys: Vec<_> = members
                    .keys()
                    .filter(|key| self.text(key).1 > 0)
                    .cloned()
                    .collect();
                let mut count = 0;
                for key in keys {
                    let (clean, found) = self.text(&key);
                    count += found;
                    if let Some(member) = members.remove(&key) {
                        members.insert(clean.into_owned(), member);
                    }
                }
                count + members.values_mut().map(|item| self.strings(item)).sum::<u32>()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    const ALL: Rules = Rules { emails: true };

    /// A secret, and what must be gone.
    fn secret() -> impl Strategy<Value = (String, String)> {
        let alone = |pattern: &'static str| pattern.prop_map(|secret: String| (secret.clone(), secret));
        let led = |lead: &'static str, pattern: &'static str| {
            pattern.prop_map(move |secret: String| (format!("{lead}{secret}"), secret))
        };
        prop_oneof![
            alone("glpat-[0-9A-Za-z_-]{20}"),
            alone("gl(rt|dt|ptt|cbt|ft|soat)-[0-9A-Za-z_-]{20,60}"),
            alone("glpat-[0-9A-Za-z_-]{27}\\.[0-9a-z]{2}\\.[0-9a-z]{9}"),
            alone("eyJ[0-9A-Za-z_-]{20,80}\\.eyJ[0-9A-Za-z_-]{20,200}\\.[0-9A-Za-z_-]{20,80}"),
            alone("(AKIA|ASIA)[0-9A-Z]{16}"),
            led("aws_secret_access_key = \"", "[0-9A-Za-z/+]{40}"),
            led("Authorization: Bearer ", "[0-9A-Za-z._~+/-]{8,60}"),
            led("\"authorization\": \"Basic ", "[0-9A-Za-z+/]{8,60}=="),
            led("PRIVATE-TOKEN: ", "[0-9A-Za-z_-]{8,40}"),
            led("postgres://duo:", "[0-9A-Za-z!$%^&*]{3,30}")
                .prop_map(|(text, secret)| (format!("{text}@db/duo"), format!("duo:{secret}@"))),
            "[0-9A-Za-z+/=\n]{40,400}".prop_map(|body: String| {
                let block = format!("-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----");
                (block, body)
            }),
            alone("[a-z]{3,10}\\.[a-z]{3,10}@[a-z]{3,10}\\.example\\.com"),
        ]
    }

    proptest! {
        #[test]
        fn no_secret_stays_wherever_it_stands((text, gone) in secret(), before in "[^\\x00]{0,40}[ \n(]", after in "[ \n)].{0,40}") {
            let whole = format!("{before}{text}{after}");
            let (clean, count) = ALL.text(&whole);
            prop_assert!(count > 0, "{whole:?}");
            prop_assert!(!clean.contains(&gone), "{clean:?}");
            let body = serde_json::json!({"messages": [{"role": "user", "content": whole}]}).to_string();
            let (clean, count) = ALL.json(body.as_bytes());
            prop_assert!(count > 0);
            let clean: Value = serde_json::from_slice(&clean).expect("still JSON");
            let content = clean["messages"][0]["content"].as_str().expect("text");
            prop_assert!(!content.contains(&gone), "{content:?}");
        }

        #[test]
        fn cleaning_what_is_clean_changes_nothing(pieces in prop::collection::vec(prop_oneof![
            secret().prop_map(|(text, _)| text), ".{0,30}".prop_map(|text: String| text)], 0..6)) {
            let text = pieces.join(" ");
            let (once, _) = ALL.text(&text);
            let (twice, _) = ALL.text(&once);
            prop_assert_eq!(&once, &twice);
        }

        #[test]
        fn what_has_no_secret_stays_byte_for_byte(text in "[a-z ,.\n]{0,200}") {
            let body = format!("{{ \"prompt\" :{}}}", Value::String(text));
            let (clean, count) = ALL.json(body.as_bytes());
            prop_assert_eq!(count, 0);
            prop_assert_eq!(&*clean, body.as_bytes());
        }
    }

    #[test]
    fn addresses_of_people_stay_unless_they_are_to_go() {
        let text = "ask ada@example.com";
        assert_eq!(Rules::default().text(text).0, text);
        assert_eq!(ALL.text(text).0, "ask [redacted:email]");
    }

    #[test]
    fn code_that_speaks_of_secrets_stays() {
        for text in [
            "if not authorization: raise",
            "let token = read(path)?;",
            "glob-pattern-matching",
            "https://gitlab.example.com/a/b:c",
            "def authorization(self): pass",
        ] {
            assert_eq!(Rules::default().text(text), (Cow::Borrowed(text), 0));
        }
    }

    #[test]
    fn hostile_texts_take_no_longer_than_others() {
        let size = 1 << 20;
        let texts = [
            "eyJ".repeat(size / 3),
            "a".repeat(size),
            "authorization: ".repeat(size / 15),
            "-----BEGIN PRIVATE KEY-----".repeat(size / 27),
            "a@".repeat(size / 2),
            "a://b:".repeat(size / 6),
        ];
        for text in texts {
            let began = Instant::now();
            let _ = ALL.text(&text);
            // Without optimisation; a quadratic pattern would take hours.
            assert!(
                began.elapsed().as_secs() < 60,
                "{:?} {:?}",
                &text[..20],
                began.elapsed()
            );
        }
    }
}
