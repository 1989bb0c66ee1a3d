//! CPU time of processes, from the kernel.

use std::cell::Cell;
use std::time::Duration;

/// User and system time of a process so far, its ended threads included.
pub(crate) fn of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field, in parentheses, may contain spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // Clock ticks are hundredths of a second on every Linux of this century.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// CPU time of a process's threads whose names begin so.
pub(crate) fn of_threads(pid: u32, name: &str) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let named = tasks
        .map(|task| task.path())
        .filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.starts_with(name)));
    // Nanoseconds on a core come first.
    let nanos = |task: std::path::PathBuf| {
        std::fs::read_to_string(task.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    named.filter_map(nanos).map(Duration::from_nanos).sum()
}

/// A process and all that descend from it, as they are now.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut tree = vec![root];
    let mut seen = 0;
    while let Some(&above) = tree.get(seen) {
        tree.extend(parents.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| pid));
        seen += 1;
    }
    tree
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// A span of CPU time of several processes.
pub(crate) struct Meter {
    start: Vec<(u32, Duration)>,
}

impl Meter {
    pub(crate) fn start(pids: &[u32]) -> Self {
        Self { start: pids.iter().map(|&pid| (pid, of(pid))).collect() }
    }

    /// CPU time since the start, process by process.
    pub(crate) fn stop(&self) -> Vec<Duration> {
        self.start.iter().map(|&(pid, before)| of(pid).saturating_sub(before)).collect()
    }
}

/// CPU time that the host gave to others while this machine wanted it.
pub(crate) struct Steal(Cell<[u64; 2]>);

impl Steal {
    /// Counts from now.
    pub(crate) fn start() -> Self {
        Self(Cell::new(Self::read()))
    }

    /// The part of all CPU time since the last call; it counts from now again.
    pub(crate) fn part(&self) -> f64 {
        let now = Self::read();
        let [stolen, all] = self.0.replace(now);
        (now[0] - stolen) as f64 / (now[1] - all).max(1) as f64
    }

    /// Stolen and all, in ticks since the machine started; zeros where the system does not say.
    fn read() -> [u64; 2] {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user already.
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
        [ticks.get(7).copied().unwrap_or(0), ticks.iter().sum()]
    }
}
