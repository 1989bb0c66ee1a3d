//! `millrace infer`

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use millrace_common::protocol::codec::decode_request;
use millrace_producer::{Client, Error, Fleet, InferRequest, ModelStatus, Request, Response};

use crate::exit::{Exit, usage};
use crate::global::{Global, reach};
use crate::infer_input::Input;
use crate::models::NOBODY;
use crate::output;
use crate::submit::response_json;
use crate::tally::milliseconds;

/// Run one request and print its result
///
/// The result is a response of the Open Inference Protocol v2, as JSON on standard output.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Name of the model
    model: String,

    /// An input: NAME=JSON, or NAME:DATATYPE=JSON. The nesting gives the shape; a flat list takes the model's own shape.
    /// Without a datatype the fleet is asked for it, which takes a second
    #[arg(
        long = "input",
        value_name = "NAME=JSON",
        conflicts_with = "file",
        required_unless_present = "file"
    )]
    inputs: Vec<Input>,

    /// The whole request, as JSON of the Open Inference Protocol v2; `-` is standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Tier [default: requests.tier of the configuration]
    #[arg(long)]
    tier: Option<String>,

    /// Version of the model [default: the newest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    version: Option<u64>,

    /// Milliseconds to wait for the result [default: requests.deadline_ms of the configuration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    deadline_ms: Option<u64>,

    /// Go before the normal requests of the tier
    #[arg(long)]
    urgent: bool,

    /// Want the model's own answer or none: no other version's, no smaller model's, no default
    #[arg(long)]
    refuse_degraded: bool,

    /// Send tensors as JSON
    #[arg(long, conflicts_with = "binary")]
    json: bool,

    /// Send tensors as raw bytes (the default)
    #[arg(long)]
    binary: bool,

    /// Print the result over several lines
    #[arg(long)]
    pretty: bool,
}

const AFTER_HELP: &str = "\
Examples:
  millrace infer digits --input image=[0,0,5,13,9,1,0,0,...]
  millrace infer classifier --input 'text=[\"what a day\"]' --tier premium --pretty -v
  millrace infer sum --input 'a:INT64=[[1,2],[3,4]]' --input 'b:INT64=[[1,1],[1,1]]'
  millrace infer digits --file request.json --deadline-ms 2000 | jq '.outputs[] | select(.name == \"label\").data'

Exit codes: 0 a result, 1 a failure (said on standard error), 2 wrong usage or configuration, 3 no broker.";

pub(crate) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let mut config = global.load()?;
    // One request has no company.
    config.requests.pack_linger_us = 0;
    let limits = config.limits.into();
    let body = match &arguments.file {
        None => None,
        Some(path) => {
            let text = read(path).await?;
            let body = decode_request(&text, None, &limits)
                .map_err(|error| usage(format!("{} is not an inference request: {error}", path.display())))?;
            Some(body)
        }
    };
    reach(&config).await?;
    let client = Client::builder(config).name("millrace infer").connect().await?;
    let ended = infer(&client, arguments, body).await;
    client.close().await;
    let (outcome, took) = ended?;
    match outcome {
        Ok(response) => {
            if let Some(degraded) = response.degraded() {
                eprintln!("millrace: a degraded answer: {degraded}");
            }
            if global.verbose > 0 {
                tell_timing(&response, took);
            }
            print(&response, arguments.pretty)?;
            Ok(Exit::Success)
        }
        Err(error) => {
            eprintln!("millrace: {error}{}", hint(&error));
            Ok(Exit::Failed)
        }
    }
}

async fn infer(
    client: &Client,
    arguments: &Arguments,
    body: Option<InferRequest>,
) -> Result<(Result<Response, Error>, Duration)> {
    let body = match body {
        Some(body) => body,
        None => {
            let is_known = arguments.inputs.iter().all(|input| input.datatype.is_some());
            let fleet = if is_known { Fleet::default() } else { client.fleet().await };
            let model = find(&fleet, &arguments.model, arguments.version);
            if model.is_none() && !is_known {
                let version =
                    arguments.version.map_or_else(String::new, |version| format!(" version {version}"));
                return Err(usage(format!(
                    "no worker serves `{}`{version} now, so that the datatypes are not known: give them as NAME:FP32=..., \
                     or look at `millrace models`",
                    arguments.model
                )));
            }
            from_inputs(&arguments.inputs, model)?
        }
    };
    let mut request = Request::from_body(&arguments.model, body);
    if let Some(tier) = &arguments.tier {
        request = request.tier(tier);
    }
    if let Some(version) = arguments.version {
        request = request.version(version);
    }
    if let Some(deadline_ms) = arguments.deadline_ms {
        request = request.deadline(Duration::from_millis(deadline_ms));
    }
    if arguments.urgent {
        request = request.urgent();
    }
    if arguments.refuse_degraded {
        request = request.refuse_degraded();
    }
    if arguments.json {
        request = request.json();
    }
    let started = Instant::now();
    Ok((client.infer(request).await, started.elapsed()))
}

async fn read(path: &Path) -> Result<Bytes> {
    let path = path.to_owned();
    let reading = move || {
        let mut text = Vec::new();
        if path == Path::new("-") {
            std::io::stdin().read_to_end(&mut text)?;
        } else {
            text = std::fs::read(&path)
                .map_err(|error| usage(format!("cannot read {}: {error}", path.display())))?;
        }
        Ok::<_, anyhow::Error>(text.into())
    };
    tokio::task::spawn_blocking(reading).await?
}

fn find<'a>(fleet: &'a Fleet, model: &str, version: Option<u64>) -> Option<&'a ModelStatus> {
    let mut models = fleet.workers().flat_map(|worker| &worker.models).filter(|served| served.name == model);
    match version {
        Some(version) => models.find(|served| served.version == version),
        None => models.find(|served| served.is_default),
    }
}

fn from_inputs(inputs: &[Input], model: Option<&ModelStatus>) -> Result<InferRequest> {
    let mut request = InferRequest::default();
    for input in inputs {
        let spec = model.and_then(|model| model.inputs.iter().find(|spec| spec.name == input.name));
        if let (Some(model), None) = (model, spec) {
            let names: Vec<&str> = model.inputs.iter().map(|spec| spec.name.as_str()).collect();
            return Err(usage(format!(
                "`{}` has no input `{}`; it has {}",
                model.name,
                input.name,
                names.join(", ")
            )));
        }
        request.inputs.push(input.tensor(spec).map_err(|error| usage(format!("{error:#}")))?);
    }
    Ok(request)
}

fn tell_timing(response: &Response, took: Duration) {
    let timing = response.timing();
    let micros = |us| milliseconds(Duration::from_micros(us));
    eprintln!(
        "{} in all; worker {}, version {}, attempt {}: {} in its lane, {} forming the batch, {} running it ({} rows)",
        milliseconds(took),
        response.worker(),
        response.meta.model_version.unwrap_or_default(),
        response.meta.attempt,
        micros(timing.queue_us),
        micros(timing.batch_us),
        micros(timing.infer_us),
        timing.batch_size,
    );
}

fn print(response: &Response, is_pretty: bool) -> Result<()> {
    let body = response_json(response).map_err(anyhow::Error::msg)?;
    let mut text = String::from_utf8(body).context("JSON is UTF-8")?;
    if is_pretty {
        let value: serde_json::Value = serde_json::from_str(&text)?;
        text = serde_json::to_string_pretty(&value)?;
    }
    output::print(&text)
}

fn hint(error: &Error) -> String {
    match error {
        Error::Refused { code: millrace_producer::Code::UnknownModel, .. } => {
            "; `millrace models` lists what is served".to_owned()
        }
        Error::DeadlineExceeded { .. } => {
            format!("; is a worker alive? `millrace models` tells. If not: {NOBODY}")
        }
        _ => String::new(),
    }
}
