//! `millrace demo`

mod digits;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use futures_util::{StreamExt, stream};
use millrace_producer::{Client, Datatype, Error, Request, Response, Tensor};

use self::digits::{Digit, PIXELS, digits, training};
use self::report::report;
use crate::exit::{Exit, usage};
use crate::global::{Global, reach};
use crate::models::NOBODY;
use crate::progress::{Progress, Standing};
use crate::tally::{Latencies, Workers};

const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Classify handwritten digits with the whole fleet, and check the result
///
/// Sends every image of the data, spread over the tiers, and compares the accuracy with the one that the training script
/// recorded.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Images: CSV with p0,...,p63,label,split
    #[arg(long, value_name = "FILE", default_value = "compose/data/digits.csv")]
    data: PathBuf,

    /// The training script's record
    #[arg(long, value_name = "FILE", default_value = "compose/models/digits/training.json")]
    training: PathBuf,

    /// Name of the model; input `image` FP32 `[n, 64]`, output `label` INT64 `[n]`
    #[arg(long, default_value = "digits")]
    model: String,

    /// How many images: a number, or `all`
    #[arg(long, value_name = "N", default_value = "all", value_parser = count)]
    requests: Count,

    /// Requests in flight, at most
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
}

const AFTER_HELP: &str = "\
Examples:
  cargo xtask demo          # starts broker and workers first, and stops them afterwards
  millrace demo --data compose/data/digits.csv --training compose/models/digits/training.json

Exit codes: 0 every request has its result and the accuracy is the recorded one, 1 not so, 2 wrong usage or configuration, \
3 no broker.";

#[derive(Clone, Copy, Debug)]
enum Count {
    All,
    Some(usize),
}

fn count(text: &str) -> Result<Count, String> {
    match text.parse() {
        _ if text == "all" => Ok(Count::All),
        Ok(number @ 1..) => Ok(Count::Some(number)),
        _ => Err("write a number from 1 up, or `all`".to_owned()),
    }
}

pub(crate) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let mut digits = digits(&arguments.data)?;
    let training = training(&arguments.training)?;
    if digits.len() != training.rows {
        return Err(usage(format!(
            "{} has {} rows, the training record is about {}: they do not belong together",
            arguments.data.display(),
            digits.len(),
            training.rows
        )));
    }
    if let Count::Some(count) = arguments.requests {
        digits.truncate(count);
    }
    let config = global.load()?;
    reach(&config).await?;
    let client = Client::builder(config).name("millrace demo").connect().await?;
    let ran = match wait_for_worker(&client, &arguments.model).await {
        Ok(()) => Some(classify(&client, arguments, &digits).await),
        Err(()) => None,
    };
    client.close().await;
    let Some(result) = ran else { return Ok(Exit::Failed) };
    let is_all = matches!(arguments.requests, Count::All);
    report(&result, &training, is_all)
}

async fn wait_for_worker(client: &Client, model: &str) -> Result<(), ()> {
    let started = Instant::now();
    let mut has_said = false;
    loop {
        let fleet = client.fleet().await;
        let is_served = |name: &str| {
            fleet
                .workers()
                .any(|worker| worker.is_ready && worker.models.iter().any(|served| served.name == name))
        };
        if is_served(model) {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            eprintln!("millrace: no worker serves `{model}` after {} s: {NOBODY}", PATIENCE.as_secs());
            return Err(());
        }
        if !has_said {
            has_said = true;
            eprintln!("no worker serves `{model}` yet, waiting up to {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// One request's end.
struct Answered {
    row: usize,
    tier: usize,
    latency: Duration,
    outcome: Result<Response, Error>,
}

/// What came of it all.
struct Outcome {
    tiers: Vec<(String, Latencies)>,
    workers: Workers,
    requests: usize,
    answers: Vec<u32>,
    failed: u64,
    first_failure: Option<String>,
    held_out: usize,
    correct: usize,
    took: Duration,
}

async fn classify(client: &Client, arguments: &Arguments, digits: &[Digit]) -> Outcome {
    let tiers: Vec<String> =
        client.config().topology.tiers.iter().map(|tier| tier.name.to_string()).collect();
    let mut result = Outcome {
        tiers: tiers.iter().map(|tier| (tier.clone(), Latencies::default())).collect(),
        workers: Workers::default(),
        requests: digits.len(),
        answers: vec![0; digits.len()],
        failed: 0,
        first_failure: None,
        held_out: 0,
        correct: 0,
        took: Duration::ZERO,
    };
    let mut progress = Progress::new(Some(digits.len() as u64), 0);
    let in_flight = usize::from(arguments.in_flight);
    let started = Instant::now();
    let mut answers = stream::iter(digits.iter().enumerate())
        .map(|(row, digit)| {
            let tier = row % tiers.len();
            let request = request(&arguments.model, &tiers[tier], digit);
            async move {
                let sent = Instant::now();
                let outcome = client.infer(request).await;
                Answered { row, tier, latency: sent.elapsed(), outcome }
            }
        })
        .buffer_unordered(in_flight);
    let mut done = 0;
    while let Some(answered) = answers.next().await {
        let digit = &digits[answered.row];
        result.take(answered, digit);
        done += 1;
        let in_flight = in_flight.min(digits.len() - done);
        progress.show(Standing { done: done as u64, failed: result.failed, in_flight });
    }
    progress.finish();
    result.took = started.elapsed();
    result
}

fn request(model: &str, tier: &str, digit: &Digit) -> Request {
    let data: Vec<u8> = digit.pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
    let image = Tensor::new("image", Datatype::Fp32, vec![1, PIXELS as i64], data.into())
        .expect("64 numbers are an image");
    Request::new(model).tier(tier).input(image)
}

impl Outcome {
    fn take(&mut self, answered: Answered, digit: &Digit) {
        self.answers[answered.row] += 1;
        let label = answered.outcome.as_ref().map_err(ToString::to_string).and_then(|response| {
            let labels = response.array::<i64>("label").map_err(|error| error.to_string())?;
            labels.first().copied().ok_or_else(|| "the output `label` is empty".to_owned())
        });
        match label {
            Ok(label) => {
                self.tiers[answered.tier].1.record(answered.latency);
                if digit.is_held_out {
                    self.held_out += 1;
                    self.correct += usize::from(label == digit.label);
                }
            }
            Err(reason) => {
                self.failed += 1;
                self.first_failure.get_or_insert(reason);
            }
        }
        if let Ok(response) = &answered.outcome {
            self.workers.count(response.worker());
        }
    }
}
