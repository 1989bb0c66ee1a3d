//! What came of each case, held against the skip list.

use std::collections::BTreeMap;
use std::fmt;

use crate::skip_list::{Entry, Kind, SkipList};

/// What came of a case.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Bit-identical and near the stored outputs.
    Passed {
        /// In JSON too, where JSON can carry it.
        in_json: bool,
    },
    /// Refused with the documented error, because the protocol cannot carry this.
    Unsupported(String),
    /// As an entry of this kind says; needs one.
    Excused(Kind, String),
    /// Never excused: wire and direct run disagree, or the wrong error came.
    Broken(String),
}

/// The sum.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    passed_in_json: usize,
    unsupported: BTreeMap<String, usize>,
    skipped: BTreeMap<(Kind, String), usize>,
    /// What must be put right, a line each.
    pub(crate) problems: Vec<String>,
}

impl Tally {
    /// Counts verdicts. Unlisted failures and listed cases that no longer need it are problems.
    pub(crate) fn of(list: &SkipList, names: &[String], verdicts: Vec<(String, Verdict)>) -> Self {
        let mut tally = Self::default();
        for idle in list.idle(names) {
            tally.problems.push(format!("{idle}: listed, but there is no such case"));
        }
        if verdicts.len() != names.len() {
            tally.problems.push(format!("{} of {} cases were judged", verdicts.len(), names.len()));
        }
        for (name, verdict) in verdicts {
            let entry = list.find(&name);
            let problem = match (verdict, entry) {
                (Verdict::Excused(kind, _), Some(entry)) if entry.kind == kind => {
                    *tally.skipped.entry((kind, entry.reason.clone())).or_default() += 1;
                    continue;
                }
                (Verdict::Passed { in_json }, entry) if entry.is_none_or(Entry::may_pass) => {
                    tally.passed += 1;
                    tally.passed_in_json += usize::from(in_json);
                    continue;
                }
                (Verdict::Unsupported(kind), None) => {
                    *tally.unsupported.entry(kind).or_default() += 1;
                    continue;
                }
                (Verdict::Broken(problem), _) => problem,
                (Verdict::Excused(kind, problem), _) => format!("{kind:?}, which is not listed: {problem}"),
                (Verdict::Passed { .. }, _) => "listed, but it passes".to_owned(),
                (Verdict::Unsupported(_), _) => "listed, but refused as it should be".to_owned(),
            };
            tally.problems.push(format!("{name}: {problem}"));
        }
        tally.problems.sort();
        tally
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "passed {} ({} in JSON too), expected-unsupported {}, skipped {}",
            self.passed,
            self.passed_in_json,
            self.unsupported.values().sum::<usize>(),
            self.skipped.values().sum::<usize>()
        )?;
        let kinds: Vec<String> =
            self.unsupported.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        writeln!(f, "  unsupported: {}", kinds.join(", "))?;
        for ((kind, reason), count) in &self.skipped {
            writeln!(f, "  {kind:?} {count}: {reason}")?;
        }
        Ok(())
    }
}
