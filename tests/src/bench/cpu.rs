//! What processes use: CPU time and memory, as the kernel counts them.
//!
//! A process here is one with all its descendants, since PostgreSQL has one for every connection; what ended
//! children used is in their parent's count, so nothing gets lost between two looks.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

/// The unit of CPU time in `/proc/PID/stat`: a hundredth of a second on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// A process that takes part, `NAME=PID` on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// What it is called in the tables.
    pub name: String,
    /// Its number.
    pub pid: u32,
}

/// What one process has used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    /// The process's name.
    pub name: String,
    /// CPU time, user and system.
    #[serde(rename = "cpu_seconds", serialize_with = "seconds")]
    pub cpu: Duration,
    /// Resident memory at the time of the look; what processes of one family share counts once.
    #[serde(rename = "resident_bytes")]
    pub resident: u64,
}

/// A line of `/proc/PID/stat`, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    ticks: u64,
}

impl FromStr for Process {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pid) = text.split_once('=').ok_or("a process is NAME=PID")?;
        let pid = pid.parse().map_err(|_| format!("{pid:?} is no process number"))?;
        Ok(Self {
            name: name.to_owned(),
            pid,
        })
    }
}

impl Usage {
    /// What each of `processes` has used so far.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn of_all(processes: &[Process]) -> io::Result<Vec<Self>> {
        let stats = stats()?;
        processes
            .iter()
            .map(|process| Self::of(process, &stats))
            .collect()
    }

    fn of(process: &Process, stats: &HashMap<u32, Stat>) -> io::Result<Self> {
        if !stats.contains_key(&process.pid) {
            let problem = format!("the process {} ({}) is not there", process.name, process.pid);
            return Err(io::Error::new(io::ErrorKind::NotFound, problem));
        }
        let family: Vec<_> = stats
            .keys()
            .filter(|pid| descends(**pid, process.pid, stats))
            .collect();
        let ticks: u64 = family.iter().map(|pid| stats[pid].ticks).sum();
        Ok(Self {
            name: process.name.clone(),
            cpu: TICK * u32::try_from(ticks).unwrap_or(u32::MAX),
            resident: Resident::of_family(family.into_iter().map(|pid| Resident::of(*pid))),
        })
    }

    /// What was used between two looks at the same processes; memory is that of the second.
    #[must_use]
    pub fn between(before: Vec<Self>, after: Vec<Self>) -> Vec<Self> {
        let pairs = before.into_iter().zip(after);
        pairs
            .map(|(before, after)| Self {
                cpu: after.cpu.saturating_sub(before.cpu),
                ..after
            })
            .collect()
    }
}

/// CPU time of one process and its descendants so far, to the nanosecond; what threads and children used that have ended
/// is not in it.
///
/// # Errors
/// The process is not there, or the kernel does not count.
pub fn exact(process: &Process) -> io::Result<Duration> {
    let mut all = 0;
    for pid in family(process)? {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // One that ends just now is left out.
            let line = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            let on_cpu = line.split(' ').next().and_then(|field| field.parse::<u64>().ok());
            all += on_cpu.unwrap_or_default();
        }
    }
    Ok(Duration::from_nanos(all))
}

/// The numbers of one process and its descendants.
///
/// # Errors
/// The kernel's list cannot be read.
pub fn family(process: &Process) -> io::Result<Vec<u32>> {
    let stats = stats()?;
    let mut family: Vec<_> = stats.keys().copied().collect();
    family.retain(|pid| descends(*pid, process.pid, &stats));
    Ok(family)
}

/// What one process and its descendants hold at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Resident memory that is no file and not shared, in bytes.
    pub memory: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Holding {
    /// What each of `processes` holds now.
    ///
    /// # Errors
    /// The kernel's list cannot be read.
    pub fn of_all(processes: &[Process]) -> io::Result<Vec<Self>> {
        processes.iter().map(Self::of).collect()
    }

    fn of(process: &Process) -> io::Result<Self> {
        let mut all = Self::default();
        for pid in family(process)? {
            let entries =
                |folder: &str| fs::read_dir(format!("/proc/{pid}/{folder}")).map_or(0, Iterator::count);
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let own = own.and_then(|own| own.trim().trim_end_matches(" kB").parse::<u64>().ok());
            all.memory += own.unwrap_or_default() * 1024;
            all.descriptors += entries("fd");
            all.threads += entries("task");
        }
        Ok(all)
    }
}

fn descends(mut pid: u32, ancestor: u32, stats: &HashMap<u32, Stat>) -> bool {
    // Two lines read at different times could name each other; no real family is this deep.
    for _ in 0..64 {
        if pid == ancestor {
            return true;
        }
        match stats.get(&pid) {
            Some(stat) => pid = stat.parent,
            None => return false,
        }
    }
    false
}

fn stats() -> io::Result<HashMap<u32, Stat>> {
    let mut stats = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that ended just now is no mistake: its time is in its parent's count.
        let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some(stat) = parse(&line) {
            stats.insert(pid, stat);
        }
    }
    Ok(stats)
}

/// The program's name stands in parentheses and may hold anything, parentheses included.
fn parse(line: &str) -> Option<Stat> {
    let fields: Vec<_> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    // From the state on: parent 1, user and system time 11 and 12, those of ended children 13 and 14.
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)? + number(13)? + number(14)?,
    })
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Resident {
    own: u64,
    /// Files and shared memory, which its relatives may have as well.
    shared: u64,
}

impl Resident {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kibibytes.unwrap_or_default() * 1024
        };
        Self {
            own: bytes("RssAnon:"),
            shared: bytes("RssFile:") + bytes("RssShmem:"),
        }
    }

    /// What a family has together: the most that any has of what they may share counts for all.
    fn of_family(members: impl Iterator<Item = Self>) -> u64 {
        let (own, shared) = members.fold((0, 0), |(own, shared), member| {
            (own + member.own, member.shared.max(shared))
        });
        own + shared
    }
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_program_is_called() {
        let line = "17 (a) b (c) S 4 17 17 0 -1 4194560 100 0 0 0 3 4 5 6 20 0 1 0 100 0 0";
        assert_eq!(parse(line), Some(Stat { parent: 4, ticks: 18 }));
        assert_eq!(parse("17 (a"), None);
    }

    #[test]
    fn our_own_time_and_memory_are_seen() {
        let me: Process = format!("me={}", std::process::id()).parse().unwrap();
        let before = Usage::of_all(std::slice::from_ref(&me)).unwrap();
        let until = std::time::Instant::now() + Duration::from_millis(80);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        let used = Usage::between(before, Usage::of_all(&[me]).unwrap());
        let me: Process = format!("me={}", std::process::id()).parse().unwrap();
        assert!(exact(&me).unwrap() >= Duration::from_millis(50));
        assert!(used[0].cpu >= TICK && used[0].resident > 0, "{used:?}");
        assert!("me".parse::<Process>().is_err() && "me=x".parse::<Process>().is_err());
        assert!(Usage::of_all(&["gone=4294967295".parse().unwrap()]).is_err());
    }

    #[test]
    fn what_a_family_shares_counts_once() {
        let member = |own, shared| Resident { own, shared };
        assert_eq!(
            Resident::of_family([member(1, 10), member(2, 30), member(4, 20)].into_iter()),
            37
        );
    }

    #[test]
    fn a_family_is_a_process_and_all_below_it() {
        let stat = |parent| Stat { parent, ticks: 1 };
        let stats = HashMap::from([
            (1, stat(0)),
            (2, stat(1)),
            (3, stat(2)),
            (4, stat(1)),
            (8, stat(9)),
            (9, stat(8)),
        ]);
        let usage = |pid| {
            Usage::of(
                &Process {
                    name: String::new(),
                    pid,
                },
                &stats,
            )
            .unwrap()
            .cpu
        };
        assert_eq!([usage(1), usage(2), usage(4)], [TICK * 4, TICK * 2, TICK]);
    }
}
