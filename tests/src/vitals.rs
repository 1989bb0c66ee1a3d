//! What a process holds, sampled while it serves, and the check that it does not hold ever more.

use std::fmt;
use std::fs;
use std::io;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
/// What the memory of a process may grow by.
const MIB_PER_HOUR: f64 = 1.0;
/// Growth that a run of less than an hour cannot tell from warming up, whatever its length.
const UNTOLD_MIB: f64 = 8.0;
/// Descriptors and threads come and go: a worker beside it stops, a pool's thread ends.
const UNTOLD_COUNT: u64 = 2;

/// What a process holds at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Since the first.
    pub at: Duration,
    /// Memory that is in RAM.
    pub memory_mib: f64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Sample {
    /// Of a process that runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn of(pid: u32, at: Duration) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.split_whitespace().next()?.parse::<u64>().ok()
        };
        let missing = || io::Error::other(format!("process {pid} has ended"));
        let memory_kib = field("VmRSS:").ok_or_else(missing)?;
        Ok(Self {
            at,
            memory_mib: memory_kib as f64 / 1024.0,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
            threads: field("Threads:").ok_or_else(missing)?,
        })
    }
}

/// What a run of samples comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Vitals {
    /// At the end of the warm-up, the first third, and at the end of all.
    pub memory_mib: [f64; 2],
    /// After the warm-up.
    pub mib_per_hour: f64,
    /// What that may be in a run of this length.
    pub most_mib_per_hour: f64,
    /// In the middle third and in the last, as medians.
    pub descriptors: [u64; 2],
    /// Likewise.
    pub threads: [u64; 2],
}

impl Vitals {
    /// Judges samples in the order of time.
    ///
    /// # Panics
    /// With fewer than nine: they would say nothing.
    pub fn of(samples: &[Sample]) -> Self {
        assert!(samples.len() >= 9, "{} samples say nothing", samples.len());
        let third = samples.len() / 3;
        let (warm, last) = (&samples[third..], &samples[2 * third..]);
        let middle = &samples[third..2 * third];
        let length = warm[warm.len() - 1].at.saturating_sub(warm[0].at);
        let hours = length.as_secs_f64() / HOUR.as_secs_f64();
        let is_whole = samples[samples.len() - 1].at.saturating_sub(samples[0].at) >= HOUR * 99 / 100;
        let counts = |count: fn(&Sample) -> u64| [median(middle, count), median(last, count)];
        Self {
            memory_mib: [warm[0].memory_mib, warm[warm.len() - 1].memory_mib],
            mib_per_hour: slope(warm),
            most_mib_per_hour: if is_whole { MIB_PER_HOUR } else { MIB_PER_HOUR.max(UNTOLD_MIB / hours) },
            descriptors: counts(|sample| sample.descriptors),
            threads: counts(|sample| sample.threads),
        }
    }

    /// What grows, if something does.
    pub fn growing(&self) -> Vec<&'static str> {
        let grows = |[before, after]: [u64; 2]| after > before + UNTOLD_COUNT;
        let found = [
            ("memory", self.mib_per_hour > self.most_mib_per_hour),
            ("descriptors", grows(self.descriptors)),
            ("threads", grows(self.threads)),
        ];
        found.into_iter().filter_map(|(what, is_so)| is_so.then_some(what)).collect()
    }
}

impl fmt::Display for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_mib, mib_per_hour, most_mib_per_hour, descriptors, threads } = self;
        let [from, to] = memory_mib;
        write!(
            f,
            "memory {from:.1} MiB after the warm-up, {to:.1} at the end, {mib_per_hour:+.2} MiB/h (at most {most_mib_per_hour:.2}); \
             descriptors {} then {}, threads {} then {}",
            descriptors[0], descriptors[1], threads[0], threads[1]
        )
    }
}

fn median(samples: &[Sample], count: fn(&Sample) -> u64) -> u64 {
    let mut counts: Vec<u64> = samples.iter().map(count).collect();
    counts.sort_unstable();
    counts[counts.len() / 2]
}

/// The median of all slopes between two samples (Theil 1950, Sen 1968): a moment's peak does not move it, as it would the least squares.
fn slope(samples: &[Sample]) -> f64 {
    let mut slopes = Vec::new();
    for (number, first) in samples.iter().enumerate() {
        for later in &samples[number + 1..] {
            let hours = (later.at.saturating_sub(first.at)).as_secs_f64() / HOUR.as_secs_f64();
            if hours > 0.0 {
                slopes.push((later.memory_mib - first.memory_mib) / hours);
            }
        }
    }
    slopes.sort_unstable_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An hour in steps of ten seconds.
    fn hour(sample: impl Fn(f64) -> (f64, u64, u64)) -> Vitals {
        let samples = (0..=360u64).map(|step| {
            let (memory_mib, descriptors, threads) = sample(step as f64 / 360.0);
            Sample { at: Duration::from_secs(step * 10), memory_mib, descriptors, threads }
        });
        Vitals::of(&samples.collect::<Vec<_>>())
    }

    #[test]
    fn what_only_warms_up_or_peaks_is_fine() {
        let noise = |part: f64| (part * 1_000.0).sin();
        let steady = hour(|part| (100.0 + noise(part), 20, 9));
        let warming = hour(|part| (if part < 0.3 { 50.0 + 100.0 * part } else { 80.0 }, 20, 9));
        let peaks = hour(|part| (if (0.8..0.85).contains(&part) { 400.0 } else { 80.0 }, 20, 9));
        let slowly = hour(|part| (80.0 + 0.8 * part, 20, 9));
        let restarts = hour(|part| (80.0, if part > 0.9 { 40 } else { 20 }, 9 + u64::from(part > 0.5)));
        for vitals in [steady, warming, peaks, slowly, restarts] {
            assert_eq!(vitals.growing(), [""; 0], "{vitals}");
        }
    }

    #[test]
    fn what_grows_is_named() {
        for (what, vitals) in [
            ("memory", hour(|part| (80.0 + 1.3 * part, 20, 9))),
            ("memory", hour(|part| (80.0 + 1.3 * part + (part * 1_000.0).sin(), 20, 9))),
            ("descriptors", hour(|part| (80.0, 20 + (part * 30.0) as u64, 9))),
            ("threads", hour(|part| (80.0, 20, 9 + (part * 30.0) as u64))),
        ] {
            assert_eq!(vitals.growing(), [what], "{vitals}");
        }
    }

    #[test]
    fn a_process_has_vitals_while_it_runs() {
        let sample = Sample::of(std::process::id(), Duration::ZERO).unwrap();
        assert!(sample.memory_mib > 1.0 && sample.descriptors > 2 && sample.threads > 0, "{sample:?}");
        assert!(Sample::of(u32::MAX, Duration::ZERO).is_err());
    }
}
