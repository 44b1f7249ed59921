//! The whole system where nothing is to be reached: a network namespace with loopback alone, in which every name that
//! is asked for and every connection that leads elsewhere is counted.
//!
//! The test starts itself again inside the namespace. What is counted there is counted by the kernel, not by us, and
//! each counter is shown to count before anything of ours starts.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use duo_system_tests::harness::cluster::{agent, chat, completion};
use duo_system_tests::harness::setup::signing_keys;
use duo_system_tests::harness::{Cluster, PATIENCE, until};
use duo_system_tests::language_server::{LanguageServer, Suggestion};
use duo_system_tests::rails::Rails;
use http::Method;
use nix::unistd::geteuid;

/// Set for the test that runs inside.
const INSIDE: &str = "DUO_TEST_AIR_GAP";
const NAME: &str = "air_gap::nothing_is_resolved_and_nothing_is_connected_to_beyond_what_is_configured";
/// Puts a resolver of ours in place of the machine's, and loopback up; then the program and its arguments.
const ENTER: &str = r#"mount --bind "$0" /etc/resolv.conf && ip link set lo up && exec "$@""#;

#[tokio::test]
async fn nothing_is_resolved_and_nothing_is_connected_to_beyond_what_is_configured() {
    if std::env::var_os(INSIDE).is_some() {
        return inside().await;
    }
    let probe = unshare(&["true"]);
    if !probe.status.success() {
        let told = String::from_utf8_lossy(&probe.stderr).into_owned();
        let text = format!("SKIPPED: this kernel forbids this user a network namespace of its own: {told}");
        let _shown = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let resolver = folder.path().join("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").expect("our folder");
    let program = std::env::current_exe().expect("the test's own path");
    let (resolver, program) = (text(&resolver), text(&program));
    let ran = unshare(&[
        "sh",
        "-c",
        ENTER,
        &resolver,
        &program,
        "--exact",
        NAME,
        "--nocapture",
    ]);
    let told = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && told.contains("1 passed"), "{told}");
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of plain characters").to_owned()
}

/// Runs a program in namespaces of its own, with the rights there to set them up.
fn unshare(program: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    if !geteuid().is_root() {
        command.args(["--user", "--map-current-user", "--keep-caps"]);
    }
    let command = command.args(["--net", "--mount", "--"]).args(program);
    command.env(INSIDE, "1").output().expect("unshare, of util-linux")
}

/// Names that were asked for, of the only resolver there is.
struct Resolver(Arc<AtomicU64>);

impl Resolver {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:53").expect("the port of resolvers");
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                count.fetch_add(1, Ordering::SeqCst);
                if length > 3 {
                    // The same as an answer that there is no such name.
                    (query[2], query[3]) = (0x81, 0x83);
                    drop(socket.send_to(&query[..length], from));
                }
            }
        });
        Self(asked)
    }

    fn asked(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Packets and connections for which there was no way, as the kernel counts them.
fn without_a_way() -> u64 {
    let old = fs::read_to_string("/proc/net/snmp").expect("the kernel's counters");
    let mut lines = old.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let at = names.split_whitespace().position(|name| name == "OutNoRoutes");
    let value = values.split_whitespace().nth(at.expect("the counter"));
    let new = fs::read_to_string("/proc/net/snmp6").unwrap_or_default();
    let sixth = new.lines().find_map(|line| line.strip_prefix("Ip6OutNoRoutes"));
    let number = |text: &str| text.trim().parse::<u64>().expect("a number");
    number(value.expect("a value")) + sixth.map_or(0, number)
}

/// Remote ends of the connections that stand now, as the kernel lists them.
fn remote_ends() -> Vec<(String, u16)> {
    let mut ends = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let end = line.split_whitespace().nth(2).and_then(|end| end.split_once(':'));
            let (address, port) = end.expect("an address and a port");
            let port = u16::from_str_radix(port, 16).expect("a port");
            if port != 0 {
                ends.push((address.to_owned(), port));
            }
        }
    }
    ends
}

fn is_loopback(address: &str) -> bool {
    // 127.0.0.1 as the kernel writes it, by itself or within an address of version 6; and ::1.
    let mapped = "0000000000000000FFFF00000100007F";
    ["0100007F", mapped, "00000000000000000000000001000000"].contains(&address)
}

async fn inside() {
    let devices = fs::read_to_string("/proc/net/dev").expect("the kernel's devices");
    let devices = devices.lines().skip(2).filter_map(|line| line.split_once(':'));
    let devices: Vec<&str> = devices.map(|(name, _)| name.trim()).collect();
    assert_eq!(devices, ["lo"], "loopback alone");
    let resolver = Resolver::start();

    // Both counters count.
    let before = without_a_way();
    assert!(
        std::net::TcpStream::connect("192.0.2.1:9").is_err(),
        "nothing is there"
    );
    assert!(
        without_a_way() > before,
        "a connection that leads elsewhere is counted"
    );
    let lookup = tokio::net::lookup_host("models.example.com:443").await;
    assert!(
        lookup.is_err() && resolver.asked() > 0,
        "a name that is asked for is counted"
    );

    let (names, ways) = (resolver.asked(), without_a_way());
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::builder()
        .broker_env("DUO_SIGNING_KEYS_FILE", &signing_keys(folder.path()))
        .start()
        .await;
    serve(&cluster).await;
    let far: Vec<_> = remote_ends()
        .into_iter()
        .filter(|(address, _)| !is_loopback(address))
        .collect();
    assert!(far.is_empty(), "connections that lead elsewhere: {far:?}");
    assert!(!remote_ends().is_empty(), "those that are configured stand");
    cluster.assert_clean().await;
    assert_eq!(resolver.asked(), names, "a name was asked for");
    assert_eq!(without_a_way(), ways, "something was sent elsewhere");
}

/// Some of everything: GitLab, an editor, an OpenAI client, the tools, and a change of the configuration.
async fn serve(cluster: &Cluster) {
    let rails = Rails::new(cluster, "alice");
    assert_eq!(rails.health_check().await, Ok(()));
    assert_eq!(rails.model_test().await, Ok(()));
    let mut editor = LanguageServer::default();
    assert!(matches!(
        editor.suggest(&rails, "x = ").await,
        Suggestion::Direct(Some(_))
    ));
    let mut body = completion("x = ", true);
    // An address that a request names is nobody's to call.
    body["model_endpoint"] = "http://models.example.com/v1".into();
    cluster
        .rails("/v2/code/completions", "bob", &body)
        .send()
        .await
        .good();
    cluster
        .rails("/v2/chat/agent", "bob", &agent("hello"))
        .send()
        .await
        .good();
    cluster
        .openai("/v1/chat/completions", &chat("hello", 5, true))
        .send()
        .await
        .good();
    cluster
        .call(Method::GET, "/v1/models/definitions")
        .send()
        .await
        .good();
    let events = cluster.call(Method::GET, "/audit/v1/events?limit=5");
    events.token(&cluster.auditor_token).send().await.good();
    let (fine, out, err) = cluster.cli.run(&["doctor"]).await;
    assert!(fine, "{out}{err}");
    cluster.cli.token("another", "client", &[]).await;
    cluster.gitlab.rotate_keys().expect("a key");
    until("a token of the new key passes", PATIENCE, async || {
        let answer = cluster
            .rails("/v2/code/completions", "carol", &completion("y = ", false))
            .send()
            .await;
        if answer.status.is_success() {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
}
