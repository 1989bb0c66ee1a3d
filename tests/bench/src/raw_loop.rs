//! The raw ONNX Runtime loop: the same model with the same threads, nothing around it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ort::environment::Environment;
use ort::session::Session;
use ort::value::TensorRef;

use crate::fleet::model_file;
use crate::scenario::Scenario;

/// The library, loaded once.
pub(crate) struct RawLoop {
    environment: Environment,
}

/// The best batch of a raw loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Best {
    pub(crate) rows: f64,
    pub(crate) batch: usize,
}

impl RawLoop {
    pub(crate) fn load(library: &Path) -> Result<Self> {
        let environment = ort::init_from(library)?.with_name("raw").with_telemetry(false).build()?;
        Ok(Self { environment })
    }

    /// Rows a second at the best of the model's batch sizes, one thread.
    pub(crate) fn best(&self, scenario: &Scenario, duration: Duration) -> Result<Best> {
        let mut session = self.session(scenario)?;
        let mut best: Option<Best> = None;
        let batches = scenario.model.batches();
        for &batch in batches {
            let rows = rate(&mut session, scenario, batch, duration / u32::try_from(batches.len())?)?;
            if best.is_none_or(|best| rows > best.rows) {
                best = Some(Best { rows, batch });
            }
        }
        best.context("no batch size to try")
    }

    /// What the model makes of the scenario's row.
    pub(crate) fn answer(&self, scenario: &Scenario) -> Result<Vec<f32>> {
        let mut session = self.session(scenario)?;
        let shape = [vec![1], scenario.model.row()].concat();
        let values = scenario.row();
        let input = TensorRef::from_array_view((shape, values.as_slice()))?;
        let outputs = session.run(ort::inputs![scenario.model.input() => input])?;
        let (_, output) = outputs[0].try_extract_tensor::<f32>()?;
        Ok(output.to_vec())
    }

    fn session(&self, scenario: &Scenario) -> Result<Session> {
        let directory = tempfile::tempdir()?;
        let file = model_file(directory.path(), scenario.model)?;
        let session = Session::builder(&self.environment)
            .and_then(|builder| Ok(builder.with_intra_threads(1)?))
            .and_then(|builder| Ok(builder.with_intra_op_spinning(false)?))
            .and_then(|mut builder| builder.commit_from_file(file))?;
        Ok(session)
    }
}

fn rate(session: &mut Session, scenario: &Scenario, batch: usize, duration: Duration) -> Result<f64> {
    let shape = [vec![i64::try_from(batch)?], scenario.model.row()].concat();
    let values: Vec<f32> =
        (0..batch * scenario.model.elements()).map(|i| ((i * 7 % 17) as f32) / 16.0).collect();
    let mut run = || -> Result<()> {
        let input = TensorRef::from_array_view((shape.clone(), values.as_slice()))?;
        session.run(ort::inputs![scenario.model.input() => input])?;
        Ok(())
    };
    run()?;
    let started = Instant::now();
    let mut runs = 0u32;
    while started.elapsed() < duration || runs < 3 {
        run()?;
        runs += 1;
    }
    Ok(f64::from(runs) * batch as f64 / started.elapsed().as_secs_f64())
}
