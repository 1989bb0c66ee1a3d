//! Degraded answers: what a request gets whose model fails or is left alone by its breaker. Plain code.
//!
//! Each tier of a model has a ladder: another version or a smaller model, a default, or a refusal. Whoever says
//! `x-accept-degraded: no` is refused at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_common::config::load::{Invalid, Validate};
use millrace_common::config::sections::TierSettings;
use millrace_common::protocol::codec::{
    Encoding, Limits, ResponseHead, TensorView, decode_response, encode_response,
};
use millrace_common::protocol::request::{InferRequest, RequestedOutput};
use millrace_common::protocol::status::Code;
use millrace_common::protocol::tensor::Tensor;
use millrace_common::tier::{Tier, check_name};
use serde::Deserialize;

use crate::catalogue::{Catalogue, ServedVersion};
use crate::inbound::admission::{Rules, admit};
use crate::job::{Answer, BatchKey, Job, Settlement, Verdict};
use crate::model::signature::{Dimension, Signature};
use crate::schedule::tier_set::TierSet;

/// A model's name for a degraded answer without one: it needs no run.
const DEFAULT: &str = "default";

/// `[[degradation]]` of a model: one rung of the ladders of some tiers. Rungs are tried in the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RungConfig {
    /// Whose ladders it belongs to; empty means all tiers'.
    pub tiers: Vec<Tier>,
    /// Another model of this worker, of equal inputs and outputs.
    pub model: Option<String>,
    /// Its version; the newest where left out. Without `model`, another version of the same one.
    pub version: Option<u64>,
    /// A file beside `config.toml` with the response that everybody gets: the protocol's JSON, `outputs` of one row.
    pub default: Option<String>,
}

impl Validate for RungConfig {
    fn validate(&self) -> Result<(), Invalid> {
        let is_model = self.model.is_some() || self.version.is_some();
        if is_model == self.default.is_some() {
            return Err(Invalid::new(
                "degradation",
                format!("{self:?}"),
                "give each rung `model` and `version`, one of them, or `default`",
            ));
        }
        // Never a path: it is joined to the model's folder.
        for name in [&self.model, &self.default].into_iter().flatten() {
            let plain = name.strip_suffix(".json").unwrap_or(name);
            check_name(plain).map_err(|error| {
                Invalid::new(
                    "degradation",
                    name,
                    format!("name a model, or a .json file beside config.toml: {error}"),
                )
            })?;
        }
        Ok(())
    }
}

/// What a rung gives.
#[derive(Clone, Debug)]
enum Rung {
    /// A run of another model or version.
    Version { model: String, version: Option<u64> },
    /// Always the same outputs, of one row.
    Default(Vec<Tensor>),
}

/// The ladders of one model version.
#[derive(Clone, Debug, Default)]
pub struct Ladder {
    rungs: Vec<(TierSet, Rung)>,
}

/// A ladder that cannot be climbed down.
#[derive(Debug, thiserror::Error)]
pub enum LadderError {
    /// The default answer cannot be read.
    #[error("cannot read {path}, the default answer: {reason}")]
    Default {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The default answer is not one of the model's.
    #[error("{path}, the default answer: {reason}")]
    Misfit {
        /// The file.
        path: PathBuf,
        /// What the model gives instead.
        reason: String,
    },
}

/// How far down its ladder a request is.
#[derive(Clone, Debug)]
pub struct Descent {
    /// Whose ladder.
    from: Arc<ServedVersion>,
    /// The rung after the one it is on.
    next: usize,
    /// `x-degraded` of its answer.
    pub label: Arc<str>,
}

/// Why a request goes down its ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The breaker is open.
    CircuitOpen,
    /// The model failed.
    Failed,
    /// An operator wants it so for now.
    Switched,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::CircuitOpen => "circuit_open",
            Self::Failed => "failed",
            Self::Switched => "switched",
        }
    }
}

/// Where a request goes instead.
pub enum Instead {
    /// Into another version's lane.
    Run(Arc<ServedVersion>, Job),
    /// Answered.
    Settled(Settlement),
}

impl Ladder {
    /// Reads the rungs of a model whose configuration is in `folder`.
    ///
    /// # Errors
    /// [`LadderError`].
    pub fn load(
        configs: &[RungConfig],
        model: &str,
        folder: &Path,
        signature: &Signature,
        tiers: &[TierSettings],
    ) -> Result<Self, LadderError> {
        let rungs = configs.iter().map(|config| {
            let set = match config.tiers.as_slice() {
                [] => TierSet::ALL,
                named => TierSet::of((0..tiers.len()).filter(|&number| named.contains(&tiers[number].name))),
            };
            let rung = match &config.default {
                Some(file) => Rung::Default(default_outputs(&folder.join(file), signature)?),
                None => Rung::Version {
                    model: config.model.clone().unwrap_or_else(|| model.to_owned()),
                    version: config.version,
                },
            };
            Ok((set, rung))
        });
        Ok(Self { rungs: rungs.collect::<Result<_, _>>()? })
    }

    /// Whether a tier has any rung.
    pub fn has(&self, tier: usize) -> bool {
        self.rungs.iter().any(|(tiers, _)| tiers.contains(tier))
    }

    /// Models that its rungs name, with versions where they do.
    pub fn models(&self) -> impl Iterator<Item = (&str, Option<u64>)> {
        self.rungs.iter().filter_map(|(_, rung)| match rung {
            Rung::Version { model, version } => Some((model.as_str(), *version)),
            Rung::Default(_) => None,
        })
    }
}

fn default_outputs(path: &Path, signature: &Signature) -> Result<Vec<Tensor>, LadderError> {
    let fail = |reason: String| LadderError::Default { path: path.to_owned(), reason };
    let text = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    let body = decode_response(&Bytes::from(text), None, &Limits::default())
        .map_err(|error| fail(error.to_string()))?;
    let misfit = |reason: String| LadderError::Misfit { path: path.to_owned(), reason };
    for slot in &signature.outputs {
        let output = body.outputs.iter().find(|output| output.name == slot.name);
        let output = output.ok_or_else(|| misfit(format!("output `{}` is missing", slot.name)))?;
        let is_one_row = slot.shape.as_ref().is_none_or(|dimensions| {
            dimensions.len() == output.shape.len()
                && dimensions.iter().zip(&output.shape).enumerate().all(|(axis, (dimension, &size))| {
                    match dimension {
                        Dimension::Fixed(wanted) => *wanted == size,
                        Dimension::Symbolic(_) => axis > 0 || size == 1,
                    }
                })
        });
        if Ok(output.datatype) != slot.datatype || !is_one_row {
            return Err(misfit(format!(
                "output `{}` is {} {:?}: it must be what the model gives for one row",
                slot.name, output.datatype, output.shape
            )));
        }
    }
    Ok(body.outputs)
}

/// Finds where a request goes whose version does not serve it now: down the ladder of the version that was asked for. `refusal` is what
/// it is answered at the end of it, or where it accepts no degraded answer.
pub fn descend(
    mut job: Job,
    served: &Arc<ServedVersion>,
    catalogue: &Catalogue,
    reason: Reason,
    refusal: Answer,
    now: Instant,
) -> Instead {
    let (from, first) = match job.duty.descent.take() {
        Some(descent) => (descent.from, descent.next),
        None => (Arc::clone(served), 0),
    };
    let refused = |job: Job| Instead::Settled((job.duty, Verdict::Reply(refusal)));
    if !job.duty.accepts_degraded {
        return refused(job);
    }
    for (number, (_, rung)) in
        from.ladder.rungs.iter().enumerate().skip(first).filter(|(_, (tiers, _))| tiers.contains(job.tier))
    {
        let label = |level: &str| -> Arc<str> { format!("{level};{}", reason.as_str()).into() };
        match rung {
            Rung::Version { model, version } => {
                let Some(other) = catalogue.find(model, *version) else { continue };
                let is_itself = other.model == from.model && other.version == from.version;
                if is_itself || other.breaker().refuses(now) {
                    continue;
                }
                // Its outputs are numbered as of the version that has it now, which may be a rung further up.
                let own = &served.rules.signature;
                let fitting = fitted(&job, own, &other.rules, catalogue.sequence());
                let Some((inputs, outputs, key, most_rows)) = fitting else { continue };
                let level = format!("model:{}:{}", other.model, other.version);
                let descent = Descent { from: Arc::clone(&from), next: number + 1, label: label(&level) };
                (job.inputs, job.outputs, job.most_rows) = (inputs, outputs, most_rows);
                job.key = if matches!(job.key, BatchKey::Suspect(_)) { key.suspected() } else { key };
                job.duty.descent = Some(descent);
                return Instead::Run(other, job);
            }
            Rung::Default(outputs) => {
                let answer = default_answer(&job, served, &from, outputs);
                job.duty.descent =
                    Some(Descent { from: Arc::clone(&from), next: number + 1, label: label(DEFAULT) });
                return Instead::Settled((job.duty, Verdict::Reply(answer)));
            }
        }
    }
    refused(job)
}

/// What a refused request hears.
pub fn refusal(model: &str, (reason, retry_after): (Reason, Duration)) -> Answer {
    let why = match reason {
        Reason::Switched => {
            "is switched to degraded answers for this tier, and there is none that this request accepts"
        }
        Reason::CircuitOpen | Reason::Failed => {
            "fails and is left alone for a while; its circuit breaker is open"
        }
    };
    let message = format!("model `{model}` {why}");
    Answer { retry_after: Some(retry_after), ..Answer::failure(Code::Unavailable, message) }
}

type Fitted = (Vec<Tensor>, Vec<(usize, Encoding)>, BatchKey, u32);

/// The request as another model takes it, if it does.
fn fitted(job: &Job, own: &Signature, other: &Rules, sequence: u64) -> Option<Fitted> {
    let outputs = job.outputs.iter().map(|&(index, encoding)| RequestedOutput {
        name: own.outputs[index].name.clone(),
        binary: Some(encoding == Encoding::Binary),
    });
    let request =
        InferRequest { inputs: job.inputs.clone(), outputs: outputs.collect(), ..InferRequest::default() };
    let admitted = admit(other, request, sequence).ok()?;
    (admitted.rows == job.rows).then_some((
        admitted.inputs,
        admitted.outputs,
        admitted.key,
        admitted.most_rows,
    ))
}

/// The outputs that a request of `served` asks for, by the names that `from` has for them, too.
fn default_answer(job: &Job, served: &ServedVersion, from: &ServedVersion, defaults: &[Tensor]) -> Answer {
    let slots = &served.rules.signature.outputs;
    let rows = if from.rules.is_batched { job.rows } else { 1 };
    let outputs: Vec<(Tensor, Encoding)> = job
        .outputs
        .iter()
        .filter_map(|&(index, encoding)| {
            let mut output = defaults.iter().find(|output| output.name == slots[index].name)?.clone();
            if rows > 1 {
                output.shape[0] = i64::from(rows);
                output.data = output.data.repeat(rows as usize).into();
            }
            Some((output, encoding))
        })
        .collect();
    let views: Vec<TensorView<'_>> = outputs
        .iter()
        .map(|(output, encoding)| TensorView {
            name: &output.name,
            datatype: output.datatype,
            shape: &output.shape,
            data: &output.data,
            encoding: *encoding,
        })
        .collect();
    let version = from.version.to_string();
    let head =
        ResponseHead { model_name: &from.model, model_version: Some(&version), id: job.body_id.as_deref() };
    match encode_response(head, &views) {
        Ok(body) => Answer::result(body),
        Err(error) => Answer::failure(Code::BackendError, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use millrace_common::protocol::tensor::Datatype;

    use super::*;
    use crate::model::signature::Slot;

    fn signature() -> Signature {
        let shape = Some(vec![Dimension::Symbolic("batch".to_owned()), Dimension::Fixed(2)]);
        let slot =
            |name: &str| Slot { name: name.to_owned(), datatype: Ok(Datatype::Fp32), shape: shape.clone() };
        Signature { inputs: vec![slot("x")], outputs: vec![slot("y")] }
    }

    fn load(rungs: &str, default: &str) -> Result<Ladder, String> {
        #[derive(Deserialize)]
        struct Config {
            degradation: Vec<RungConfig>,
        }
        let config: Config = toml::from_str(rungs).map_err(|error| error.to_string())?;
        config.degradation.iter().try_for_each(RungConfig::validate).map_err(|error| error.to_string())?;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("default.json"), default).unwrap();
        let ladder = Ladder::load(&config.degradation, "m", folder.path(), &signature(), &[]);
        ladder.map_err(|error| error.to_string())
    }

    const DEFAULT: &str = "[[degradation]]\ndefault = \"default.json\"";

    fn body(name: &str, shape: &str) -> String {
        let output = format!(r#"{{"name":"{name}","datatype":"FP32","shape":{shape},"data":[1,2]}}"#);
        format!(r#"{{"model_name":"m","outputs":[{output}]}}"#)
    }

    #[test]
    fn a_ladder_is_what_its_file_says() {
        let rungs = "[[degradation]]\nversion = 1\n[[degradation]]\nmodel = \"small\"\n".to_owned() + DEFAULT;
        let ladder = load(&rungs, &body("y", "[1,2]")).unwrap();
        assert_eq!(ladder.models().collect::<Vec<_>>(), [("m", Some(1)), ("small", None)]);
        assert_eq!(ladder.rungs.len(), 3);
    }

    #[test]
    fn rungs_that_lead_nowhere_are_told_apart() {
        for (rungs, default, telling) in [
            ("[[degradation]]", body("y", "[1,2]"), "give each rung"),
            ("[[degradation]]\nmodel = \"a\"\ndefault = \"b.json\"", body("y", "[1,2]"), "give each rung"),
            ("[[degradation]]\nmodel = \"../a\"", body("y", "[1,2]"), "name a model"),
            ("[[degradation]]\ndefault = \"../default.json\"", body("y", "[1,2]"), "name a model"),
            ("[[degradation]]\nmodle = \"a\"", body("y", "[1,2]"), "unknown field"),
            (DEFAULT, "{}".to_owned(), "cannot read"),
            (DEFAULT, body("z", "[1,2]"), "output `y` is missing"),
            (DEFAULT, body("y", "[2,1]"), "what the model gives for one row"),
            (DEFAULT, body("y", "[2]"), "what the model gives for one row"),
        ] {
            let error = load(rungs, &default).unwrap_err();
            assert!(error.contains(telling), "{rungs}: {error}");
        }
    }
}
