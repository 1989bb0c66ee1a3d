//! The raw ONNX Runtime loop: the same model with the same threads, nothing around it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ort::environment::Environment;
use ort::session::Session;
use ort::value::TensorRef;
use tempfile::TempDir;

use crate::cpu;
use crate::workload::{Model, Values};

/// The library, loaded once.
pub(crate) struct RawLoop {
    environment: Environment,
    /// For its models.
    repository: TempDir,
}

/// What a raw loop does at one batch size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Rows a second.
    pub(crate) rows: f64,
    pub(crate) batch: usize,
    /// CPU microseconds a row.
    pub(crate) cpu_us: f64,
}

impl RawLoop {
    pub(crate) fn load(library: &Path, repository: TempDir) -> Result<Self> {
        let environment = ort::init_from(library)?.with_name("raw").with_telemetry(false).build()?;
        Ok(Self { environment, repository })
    }

    /// The best of the model's batch sizes, one thread, `duration` in all.
    pub(crate) fn best(&self, model: Model, duration: Duration) -> Result<Pace> {
        let mut session = self.session(model)?;
        let batches = model.batches();
        let each = duration / u32::try_from(batches.len())?;
        let paces = batches.iter().map(|&batch| pace(&mut session, model, batch, |elapsed| elapsed < each));
        let paces = paces.collect::<Result<Vec<_>>>()?;
        let best = paces.into_iter().max_by(|a, b| a.rows.total_cmp(&b.rows));
        best.context("no batch size to try")
    }

    /// At this batch size.
    pub(crate) fn at(&self, model: Model, batch: usize, duration: Duration) -> Result<Pace> {
        pace(&mut self.session(model)?, model, batch.max(1), |elapsed| elapsed < duration)
    }

    /// Does `work` while the model runs in batches of this size, all the time, on one thread.
    pub(crate) fn beside<T>(
        &self,
        model: Model,
        batch: usize,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let mut session = self.session(model)?;
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let goes_on = |_| !is_over.load(Ordering::Relaxed);
            let running = scope.spawn(move || pace(&mut session, model, batch, goes_on));
            let done = work();
            is_over.store(true, Ordering::Relaxed);
            running.join().map_err(|_| anyhow!("the raw loop panicked"))??;
            done
        })
    }

    /// What a model with FP32 inputs makes of its row.
    pub(crate) fn answer(&self, model: Model) -> Result<Vec<f32>> {
        let Values::F32(values) = model.values(1) else {
            bail!("{} takes no FP32", model.name());
        };
        let shape = [vec![1], model.row()].concat();
        let input = TensorRef::from_array_view((shape, values.as_slice()))?;
        let mut session = self.session(model)?;
        let outputs = session.run(ort::inputs![model.input() => input])?;
        let (_, output) = outputs[0].try_extract_tensor::<f32>()?;
        Ok(output.to_vec())
    }

    fn session(&self, model: Model) -> Result<Session> {
        let file = model.write(self.repository.path())?;
        Ok(Session::builder(&self.environment)
            .and_then(|builder| Ok(builder.with_intra_threads(1)?))
            .and_then(|builder| Ok(builder.with_intra_op_spinning(false)?))
            .and_then(|mut builder| builder.commit_from_file(file))?)
    }
}

/// Runs batches as long as that holds of the time since the first, three at least.
fn pace(
    session: &mut Session,
    model: Model,
    batch: usize,
    goes_on: impl Fn(Duration) -> bool,
) -> Result<Pace> {
    let shape = [vec![i64::try_from(batch)?], model.row()].concat();
    let values = model.values(batch);
    let mut run = || -> Result<()> {
        match &values {
            Values::F32(values) => {
                let input = TensorRef::from_array_view((shape.clone(), values.as_slice()))?;
                session.run(ort::inputs![model.input() => input])?;
            }
            Values::I64(values) => {
                let input = TensorRef::from_array_view((shape.clone(), values.as_slice()))?;
                session.run(ort::inputs![model.input() => input])?;
            }
        }
        Ok(())
    };
    run()?;
    let (started, cpu_before) = (Instant::now(), cpu::of(std::process::id()));
    let mut runs = 0u32;
    while goes_on(started.elapsed()) || runs < 3 {
        run()?;
        runs += 1;
    }
    let rows = f64::from(runs) * batch as f64;
    let cpu = cpu::of(std::process::id()).saturating_sub(cpu_before);
    Ok(Pace { rows: rows / started.elapsed().as_secs_f64(), batch, cpu_us: cpu.as_secs_f64() * 1e6 / rows })
}
