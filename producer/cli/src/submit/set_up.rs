//! From the command line to a session that can run: input, output, state, client.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use millrace_common::amqp::inspect::{InspectError, queue_depth};
use millrace_common::tier::Tier;
use millrace_producer::{Client, Config};
use tokio_util::sync::CancellationToken;

use super::Arguments;
use super::input::{Input, Line, Source, Text};
use super::request::Defaults;
use super::results::{MAX_LINES, Results};
use super::session::{Seen, Session};
use super::state::{self, Options, Run, StateFile};
use super::summary::Summary;
use super::survey::{Duplicates, Fingerprint, Survey, survey};
use crate::exit::usage;
use crate::global::{Global, connector, reach};
use crate::tally::thousands;

/// The reply queue of an interrupted run waits this long for its continuation.
const REPLIES_WAIT: Duration = Duration::from_hours(24);
/// Replies taken and not yet written, at most.
const PREFETCH: u16 = 200;
/// What an input line may have beyond its body.
const LINE_EXTRA: usize = 4096;

/// What there is to do.
pub(super) enum SetUp {
    /// Lines to send.
    Ready(Box<Ready>),
    /// Nothing: an earlier run has answered all of them.
    Complete(Summary),
}

/// A run about to start.
pub(super) struct Ready {
    pub(super) session: Session,
    pub(super) input: Input,
    /// Requests in the input, where known.
    pub(super) total: Option<u64>,
    /// What an interrupted run left; `None` for a new run.
    pub(super) earlier: Option<Earlier>,
}

/// What an interrupted run left.
#[derive(Clone, Copy)]
pub(super) struct Earlier {
    /// Lines that it sent and that have no answer.
    pub(super) missing: u64,
    /// Requests that it had in flight, at most.
    pub(super) bound: usize,
}

/// Prepares a run; sends nothing yet, and leaves no empty output behind when it fails.
pub(super) async fn set_up(global: &Global, arguments: &Arguments, stop: CancellationToken) -> Result<SetUp> {
    let was_there = arguments.output.exists();
    let set_up = prepare(global, arguments, stop).await;
    let is_empty = || std::fs::metadata(&arguments.output).is_ok_and(|output| output.len() == 0);
    if set_up.is_err() && !was_there && is_empty() {
        // The failure is what counts; an empty file that stays is a blemish.
        let _ = std::fs::remove_file(&arguments.output);
    }
    set_up
}

async fn prepare(global: &Global, arguments: &Arguments, stop: CancellationToken) -> Result<SetUp> {
    let mut config = global.load()?;
    config.requests.reply_expires_seconds = REPLIES_WAIT.as_secs();
    config.requests.reply_prefetch = config.requests.reply_prefetch.min(PREFETCH);
    if arguments.no_pack {
        config.requests.pack_linger_us = 0;
    }
    let source = source(&arguments.input, &arguments.output)?;
    let state_path = StateFile::path(&arguments.output);
    let mut results = Results::open(&arguments.output).await?;
    let earlier = if arguments.restart { None } else { StateFile::read(&state_path)? };
    if earlier.is_none() && !arguments.restart && !results.is_empty()? {
        return Err(usage(format!(
            "{} exists and is not the output of an interrupted run: name another, or --restart to overwrite it",
            arguments.output.display()
        )));
    }
    let line_limit = config.limits.max_body_bytes + LINE_EXTRA;
    let (input, fingerprint, seen) = open(source, line_limit).await?;
    if let Some(seen) = &seen {
        warn_of_duplicates(&seen.duplicates);
    }
    let lines = seen.as_ref().map_or(MAX_LINES, |seen| seen.lines);
    let total = seen.as_ref().map(Survey::requests);
    let options =
        Options { model: arguments.model.clone(), tier: arguments.tier.clone(), version: arguments.version };
    let prefix = config.topology.prefix.clone();
    let mut run = Run::new(String::new(), prefix, fingerprint, options, arguments.in_flight);
    let mut mark = 0;
    let mut left = None;
    match earlier {
        None => has_queue(arguments, &config).await?,
        Some((earlier, sent)) => {
            earlier.check(&run, config.broker.addresses[0].user())?;
            results.resume(lines).await?;
            if total == Some(results.done.count()) {
                state::remove(&state_path)?;
                return Ok(SetUp::Complete(Summary::new(&results, &Seen::default(), Duration::ZERO)));
            }
            let missing = missing(&results, seen.as_ref(), sent.min(lines));
            left = Some(Earlier { missing, bound: earlier.in_flight });
            mark = sent;
            run.go_on(earlier, missing > 0);
        }
    }
    reach(&config).await?;
    if arguments.restart {
        // Only now that nothing else can fail: until here the old output might be all there is.
        state::remove(&state_path)?;
        results.clear().await?;
    }
    let defaults = defaults(arguments, &config);
    let builder = Client::builder(config).name(format!("millrace submit {}", run.id));
    let builder = if run.reply_key.is_empty() { builder } else { builder.reply_key(&run.reply_key) };
    let (client, orphans) = builder.connect_with_orphans().await?;
    client.reply_key().clone_into(&mut run.reply_key);
    let session = Session {
        state: StateFile::create(&state_path, &run, mark)?,
        client,
        orphans,
        results,
        defaults,
        bound: arguments.in_flight,
        retries: arguments.retries,
        line_limit,
        lines,
        stop,
        seen: Seen::default(),
    };
    Ok(SetUp::Ready(Box::new(Ready { session, input, total, earlier: left })))
}

/// Lines sent, that is below the mark, without an answer.
fn missing(results: &Results, seen: Option<&Survey>, mark: u64) -> u64 {
    let is_blank = |line| seen.is_some_and(|seen| seen.blank.contains(line));
    (0..mark).filter(|&line| !results.done.contains(line) && !is_blank(line)).count() as u64
}

fn source(input: &Path, output: &Path) -> Result<Source> {
    let source =
        Source::new(input).map_err(|error| usage(format!("cannot read {}: {error}", input.display())))?;
    let is_same = |one: &Path, other: &Path| match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    };
    if source != Source::Stdin && is_same(input, output) {
        return Err(usage("input and output are the same file: name another with -o"));
    }
    Ok(source)
}

/// Opens the input and identifies it. A file is read once through for that, off the runtime.
async fn open(source: Source, line_limit: usize) -> Result<(Input, Fingerprint, Option<Survey>)> {
    let opening = move || {
        let mut input = Input::open(&source, line_limit)?;
        if let Source::File(_) = source {
            let seen = survey(&source, line_limit)?;
            return Ok((input, seen.fingerprint.clone(), Some(seen)));
        }
        let fingerprint = match input.first()? {
            Some(Line { text: Text::Some(text) | Text::TooLong(text), .. }) => {
                Fingerprint::of_first_line(text)
            }
            _ => Fingerprint::of_first_line(&[]),
        };
        Ok::<_, std::io::Error>((input, fingerprint, None))
    };
    tokio::task::spawn_blocking(opening).await?.context("cannot read the input")
}

/// Looks for the model's queue before a whole file fails for want of it.
async fn has_queue(arguments: &Arguments, config: &Config) -> Result<()> {
    let Some(model) = &arguments.model else { return Ok(()) };
    let tier = match &arguments.tier {
        Some(tier) => Tier::new(tier).map_err(|error| usage(format!("--tier: {error}")))?,
        None => config.requests.tier.clone(),
    };
    if config.topology.tier(&tier).is_none() {
        let known: Vec<&str> = config.topology.tiers.iter().map(|tier| tier.name.as_str()).collect();
        return Err(usage(format!("--tier {tier}: the configuration has {}", known.join(", "))));
    }
    let queue = config.topology.names().request_queue(model, &tier);
    match queue_depth(&connector(config)?, &queue).await {
        Ok(Some(_)) | Err(InspectError::Refused { .. }) => Ok(()),
        Ok(None) => anyhow::bail!(
            "no worker has served `{model}` yet (there is no queue {queue}): `millrace models` lists what is served; start a \
             worker that has it, or let requests wait for one with `millrace topology apply --models {model}`"
        ),
        Err(error) => Err(error.into()),
    }
}

fn warn_of_duplicates(duplicates: &Duplicates) {
    if duplicates.is_partial {
        eprintln!("note: only the first 4,000,000 ids were compared with each other");
    }
    if duplicates.lines == 0 {
        return;
    }
    eprintln!(
        "warning: {} lines repeat the `custom_id` of an earlier line; all are run, and `line` tells their answers apart:",
        thousands(duplicates.lines)
    );
    for (id, earlier, line) in &duplicates.examples {
        eprintln!("  {id:?} on lines {earlier} and {line} (counted from 0)");
    }
}

fn defaults(arguments: &Arguments, config: &Config) -> Defaults {
    Defaults {
        model: arguments.model.clone(),
        tier: arguments.tier.clone(),
        version: arguments.version,
        deadline: Duration::from_millis(arguments.deadline_ms),
        is_json: arguments.json,
        refuses_degraded: arguments.refuse_degraded,
        limits: config.limits.into(),
    }
}
