//! What all scenarios share: the broker, the libraries, how long and how often.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use millrace_harness::broker::{Broker, BrokerOptions};
use millrace_harness::setup;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::cli::Options;
use crate::cpu::Steal;
use crate::limits::raw_loop::RawLoop;

pub(crate) struct Context {
    pub(crate) broker: Broker,
    pub(crate) library: PathBuf,
    pub(crate) runtime: Runtime,
    pub(crate) options: Options,
    /// Since the last report.
    pub(crate) steal: Steal,
    raw: OnceCell<RawLoop>,
}

impl Context {
    pub(crate) fn new(runtime: Runtime, options: Options) -> Result<Self> {
        let library = setup::onnxruntime()?;
        let broker = Broker::start(BrokerOptions::default())?;
        Ok(Self { broker, library, runtime, options, steal: Steal::start(), raw: OnceCell::new() })
    }

    /// A folder that is gone with the broker's, even if this process is killed.
    pub(crate) fn scratch(&self) -> Result<TempDir> {
        Ok(tempfile::tempdir_in(self.broker.directory())?)
    }

    /// Length of one measurement.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(self.options.seconds)
    }

    /// ONNX Runtime in this process, loaded when first asked for.
    pub(crate) fn raw(&self) -> Result<&RawLoop> {
        if self.raw.get().is_none() {
            let _ = self.raw.set(RawLoop::load(&self.library, self.scratch()?)?);
        }
        Ok(self.raw.get().expect("set above"))
    }

    /// Those that `--only` lets through.
    pub(crate) fn selected<C>(&self, cases: Vec<C>, name: impl Fn(&C) -> String) -> Vec<C> {
        cases.into_iter().filter(|case| name(case).contains(&self.options.only)).collect()
    }

    /// Every case once, then every case again, so that a noisy minute hits all alike. Returns the results by case.
    pub(crate) fn alternate<C, R>(
        &self,
        scenario: &str,
        cases: &[C],
        name: impl Fn(&C) -> String,
        mut measure: impl FnMut(&C, u64) -> Result<R>,
    ) -> Result<Vec<Vec<R>>> {
        let mut results: Vec<Vec<R>> = cases.iter().map(|_| Vec::new()).collect();
        for run in 0..self.options.runs {
            for (case, results) in cases.iter().zip(&mut results) {
                eprintln!("{scenario}, run {} of {}: {}", run + 1, self.options.runs, name(case));
                results.push(measure(case, run)?);
            }
        }
        Ok(results)
    }
}
