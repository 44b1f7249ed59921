//! Starts the processes, and counts what they use.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::{Options, Over, say};
use crate::table;

/// How long everything runs before it is counted.
const WARM_UP: Duration = Duration::from_secs(3);
/// nats-server listens by then.
const START: Duration = Duration::from_secs(10);
const HEADINGS: [&str; 12] = [
    "WHAT",
    "OVER",
    "A SECOND",
    "CPU US EACH",
    "WORKER",
    "BROKER",
    "NATS",
    "P50 US",
    "P99 US",
    "MAX US",
    "WORKER KIB",
    "BROKER KIB",
];

/// Measures all ways, `rounds` times, and prints a table.
pub(super) fn all(options: &Options) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for _ in 0..options.rounds {
        for &streams in &options.streams {
            for over in [Over::Nothing, Over::Nats, Over::Bundles, Over::Direct] {
                rows.push(once(options, over, streams, 0)?);
            }
        }
        if options.burst > 0 {
            for over in [Over::Nats, Over::Bundles, Over::Direct] {
                rows.push(once(options, over, 0, options.burst)?);
            }
        }
    }
    for line in table::lines(0, &HEADINGS, &rows) {
        say(&line);
    }
    Ok(())
}

/// A process that ends with its value.
struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<BufReader<ChildStdout>>,
}

/// What a process has used.
#[derive(Clone, Copy, Default)]
struct Used {
    cpu_us: u64,
    resident: u64,
}

impl Process {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().map(BufReader::new);
        Ok(Self { child, input, output })
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let output = self.output.as_mut().context("no output")?;
        if output.read_line(&mut line)? == 0 {
            bail!("the process ended early");
        }
        Ok(line.trim().to_owned())
    }

    fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("no input")?;
        writeln!(input, "{line}")?;
        Ok(input.flush()?)
    }

    fn used(&self) -> anyhow::Result<Used> {
        let pid = self.child.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .context("a stat line")?
            .1
            .split_ascii_whitespace()
            .collect();
        // A tick is a hundredth of a second on every Linux.
        let ticks = |field: usize| anyhow::Ok(fields.get(field).context("its times")?.parse::<u64>()?);
        let ticks = ticks(11)? + ticks(12)?;
        let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
        let pages: u64 = statm.split(' ').nth(1).context("a size")?.parse()?;
        Ok(Used {
            cpu_us: ticks * 10_000,
            resident: pages * 4096,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One measurement: a row of the table.
fn once(options: &Options, over: Over, streams: usize, burst: usize) -> anyhow::Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = format!("127.0.0.1:{port}");
    // Not even started where it has no part.
    let nats = match over {
        Over::Nats | Over::Bundles => Some(nats_server(&options.nats_server, &address, folder.path())?),
        Over::Nothing | Over::Direct => None,
    };
    let way = format!("{over:?}").to_lowercase();
    let part = |name: &str| {
        let mut command = Command::new(std::env::current_exe()?);
        let share = |all: usize| all.div_ceil(options.workers).to_string();
        command.args(["--part", name, "--over", &way, "--at", &address]);
        command.args(["--streams", &share(streams), "--burst", &share(burst)]);
        let mut process = Process::start(&mut command)?;
        process.line()?;
        anyhow::Ok(process)
    };
    let mut broker = part("broker")?;
    let mut workers = (0..options.workers)
        .map(|_| part("worker"))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let idle = used(&workers, &broker, nats.as_ref())?;
    tell_all(&mut workers, "go")?;
    std::thread::sleep(WARM_UP);
    tell_all(&mut workers, "begin")?;
    broker.tell("begin")?;
    let before = used(&workers, &broker, nats.as_ref())?;
    std::thread::sleep(Duration::from_secs(options.seconds));
    let after = used(&workers, &broker, nats.as_ref())?;
    tell_all(&mut workers, "end")?;
    broker.tell("end")?;
    let mut sent = Vec::new();
    for worker in &mut workers {
        sent.push(Seen::parse(&worker.line()?)?);
    }
    let received = Seen::parse(&broker.line()?)?;
    // The broker sees the delays of tokens, the workers those of whole answers.
    let seen = if burst > 0 || over == Over::Nothing {
        Seen::of_all(&sent)
    } else {
        received
    };
    let Seen {
        count,
        p50,
        p99,
        most,
    } = seen;
    ensure!(count > 0, "nothing arrived");
    let each: Vec<_> = before
        .iter()
        .zip(&after)
        .map(|(before, after)| (after.cpu_us - before.cpu_us) as f64 / count as f64)
        .collect();
    let open = streams.max(burst).max(1) as f64;
    let memory =
        |part: usize| after[part].resident.saturating_sub(idle[part].resident) as f64 / 1024.0 / open;
    let mut row = vec![
        match burst {
            0 => format!("{streams} streams"),
            _ => format!("{burst} answers"),
        },
        way,
        (count / options.seconds).to_string(),
        format!("{:.1}", each.iter().sum::<f64>()),
    ];
    row.extend(each.iter().map(|each| format!("{each:.1}")));
    row.extend([p50, p99, most].map(|delay| delay.to_string()));
    row.extend([0, 1].map(|part| format!("{:.1}", memory(part))));
    Ok(row)
}

/// What a process has counted within the window.
#[derive(Clone, Copy)]
struct Seen {
    count: u64,
    p50: u64,
    p99: u64,
    most: u64,
}

impl Seen {
    fn parse(line: &str) -> anyhow::Result<Self> {
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [count, p50, p99, most] = numbers[..] else {
            bail!("a process said {line:?}");
        };
        Ok(Self {
            count,
            p50,
            p99,
            most,
        })
    }

    /// All together, with the delays of whichever has the longest.
    fn of_all(parts: &[Self]) -> Self {
        let longest = |delay: fn(&Self) -> u64| parts.iter().map(delay).max().unwrap_or(0);
        Self {
            count: parts.iter().map(|part| part.count).sum(),
            p50: longest(|part| part.p50),
            p99: longest(|part| part.p99),
            most: longest(|part| part.most),
        }
    }
}

fn tell_all(workers: &mut [Process], line: &str) -> anyhow::Result<()> {
    workers.iter_mut().try_for_each(|worker| worker.tell(line))
}

/// What the workers together, the broker and nats-server have used.
fn used(workers: &[Process], broker: &Process, nats: Option<&Process>) -> anyhow::Result<[Used; 3]> {
    let mut all = Used::default();
    for worker in workers {
        let used = worker.used()?;
        all.cpu_us += used.cpu_us;
        all.resident += used.resident;
    }
    let nats = nats.map(Process::used).transpose()?;
    Ok([all, broker.used()?, nats.unwrap_or_default()])
}

fn nats_server(program: &str, address: &str, folder: &std::path::Path) -> anyhow::Result<Process> {
    let (host, port) = address.split_once(':').context("an address")?;
    let mut command = Command::new(program);
    command
        .args(["-a", host, "-p", port, "-js", "-sd"])
        .arg(folder)
        .stderr(Stdio::null());
    let server = Process::start(&mut command).with_context(|| format!("{program} does not run"))?;
    let by = Instant::now() + START;
    while TcpStream::connect(address).is_err() {
        ensure!(Instant::now() < by, "nats-server does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(server)
}
