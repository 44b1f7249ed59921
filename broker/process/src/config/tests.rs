//! Reading settings, from variables given by the test.

use std::path::PathBuf;

use secrecy::ExposeSecret;

use super::*;

/// A file that is removed when the test ends.
struct SecretFile(PathBuf);

impl SecretFile {
    fn new(content: &str) -> SecretFile {
        let path = std::env::temp_dir().join(format!("duo-process-{}", uuid::Uuid::new_v4()));
        fs::write(&path, content).unwrap();
        SecretFile(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn no_variables() -> [(&'static str, &'static str); 0] {
    []
}

#[test]
fn settings_are_read_and_defaults_marked() {
    let mut env = Env::from_pairs([
        ("DUO_NATS_URL", "nats://broker:hunter2@one:4222,nats://two:4222"),
        ("DUO_MAX_WAIT", "1500ms"),
        ("DUO_KEY", "hunter2"),
        ("DUO_NAME", ""),
        ("PATH", "/bin"),
    ]);

    assert_eq!(
        env.text("DUO_NATS_URL", ""),
        "nats://broker:hunter2@one:4222,nats://two:4222"
    );
    assert_eq!(
        env.duration("DUO_MAX_WAIT", Duration::ZERO),
        Duration::from_millis(1_500)
    );
    assert_eq!(
        env.duration("DUO_GRACE", Duration::from_secs(90)),
        Duration::from_secs(90)
    );
    assert_eq!(env.bytes("DUO_MAX_BODY", 4 << 20), 4 << 20);
    assert_eq!(env.parse("DUO_SLOTS", 8_u32), 8);
    assert_eq!(env.parse("DUO_LOG_FORMAT", LogFormat::Json), LogFormat::Json);
    assert_eq!(env.parse("DUO_GREETING", 'x'), 'x');
    assert_eq!(env.text("DUO_NAME", "broker"), "broker");
    assert_eq!(env.optional("DUO_SITE"), None);
    assert_eq!(env.secret("DUO_KEY").unwrap().expose_secret(), "hunter2");
    assert!(env.secret("DUO_SEAL").is_none());

    let expected = "\
        DUO_NATS_URL=nats://[redacted]@one:4222,nats://two:4222\n\
        DUO_MAX_WAIT=1500ms\n\
        DUO_GRACE=90s # default\n\
        DUO_MAX_BODY=4MiB # default\n\
        DUO_SLOTS=8 # default\n\
        DUO_LOG_FORMAT=json # default\n\
        DUO_GREETING=(built in) # default\n\
        DUO_NAME=broker # default\n\
        DUO_SITE= # not set\n\
        DUO_KEY=[redacted]\n\
        DUO_SEAL= # not set\n";
    assert_eq!(env.finish().unwrap().to_string(), expected);
}

#[test]
fn all_problems_are_reported_together() {
    let mut env = Env::from_pairs([
        ("DUO_SLOTS", "many"),
        ("DUO_MAX_WAIT", "5"),
        ("DUO_MAX_BODY", "4MB"),
        ("DUO_LISTNE", "hunter2"),
    ]);

    assert_eq!(env.parse("DUO_SLOTS", 8_u32), 8);
    assert_eq!(
        env.duration("DUO_MAX_WAIT", Duration::from_secs(5)),
        Duration::from_secs(5)
    );
    assert_eq!(env.bytes("DUO_MAX_BODY", 7), 7);
    assert_eq!(
        env.required("DUO_NATS_URL", "the servers, separated by commas"),
        ""
    );
    assert_eq!(env.text("DUO_LISTEN", "[::]:8080"), "[::]:8080");
    env.problem("DUO_SLOTS and DUO_LISTEN contradict each other".to_owned());

    let error = env.finish().unwrap_err();
    assert_eq!(error.problems.len(), 6);
    assert_eq!(
        error.problems[0],
        "DUO_SLOTS=many is not valid: invalid digit found in string"
    );
    assert!(error.problems[1].starts_with("DUO_MAX_WAIT=5 is not valid: expected a whole number and a unit"));
    assert!(error.problems[2].starts_with("DUO_MAX_BODY=4MB is not valid: expected a whole number of bytes"));
    assert_eq!(
        error.problems[3],
        "DUO_NATS_URL is not set: the servers, separated by commas"
    );
    assert_eq!(
        error.problems[4],
        "DUO_SLOTS and DUO_LISTEN contradict each other"
    );
    assert_eq!(
        error.problems[5],
        "DUO_LISTNE is unknown: did you mean DUO_LISTEN?"
    );
    assert_eq!(error.to_string().lines().count(), 6);
}

#[test]
fn a_secret_comes_from_a_file_without_its_line_end() {
    let file = SecretFile::new("hunter2\n");
    let mut env = Env::from_pairs([("DUO_KEY_FILE", file.path())]);

    assert_eq!(env.secret("DUO_KEY").unwrap().expose_secret(), "hunter2");
    assert_eq!(
        env.finish().unwrap().to_string(),
        format!("DUO_KEY_FILE={}\n", file.path())
    );
}

#[test]
fn a_secret_set_twice_or_out_of_reach_is_a_problem() {
    let empty = SecretFile::new("\n");
    let mut env = Env::from_pairs([
        ("DUO_KEY", "hunter2"),
        ("DUO_KEY_FILE", "/etc/hostname"),
        ("DUO_SEAL_FILE", "/nowhere/seal"),
        ("DUO_SALT_FILE", empty.path()),
    ]);

    for name in ["DUO_KEY", "DUO_SEAL", "DUO_SALT"] {
        assert!(env.secret(name).is_none());
    }
    let problems = env.finish().unwrap_err().problems;
    assert_eq!(problems[0], "DUO_KEY and DUO_KEY_FILE are both set: keep one");
    assert!(problems[1].starts_with("DUO_SEAL_FILE: cannot read /nowhere/seal: "));
    assert_eq!(
        problems[2],
        format!("DUO_SALT_FILE: the file {} is empty", empty.path())
    );
    assert_eq!(problems.len(), 3);
}

#[test]
fn credentials_in_a_url_are_never_shown() {
    let mut env = Env::from_pairs([("DUO_PORT", "nats://user:p@ss,word@one:4222")]);
    env.parse("DUO_PORT", 1_u16);

    let error = env.finish().unwrap_err();
    assert!(error.problems[0].starts_with("DUO_PORT=nats://[redacted]@one:4222 is not valid: "));
}

#[test]
fn a_setting_read_twice_is_shown_once() {
    let mut env = Env::from_pairs(no_variables());
    env.text("DUO_LISTEN", "[::]:8080");
    env.text("DUO_LISTEN", "[::]:8080");
    assert_eq!(
        env.finish().unwrap().to_string(),
        "DUO_LISTEN=[::]:8080 # default\n"
    );
}

#[test]
fn the_process_is_read_without_foreign_variables() {
    let env = Env::from_process();
    assert!(env.variables.keys().all(|name| name.starts_with(PREFIX)));
}
