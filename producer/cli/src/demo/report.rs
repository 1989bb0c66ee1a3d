//! What the demo prints at its end.

use anyhow::Result;
use comfy_table::{Table, presets};

use super::Outcome;
use super::digits::Training;
use crate::exit::Exit;
use crate::output;
use crate::tally::{milliseconds, per_second, thousands};

/// Prints the tables; tells what the process should end with.
pub(super) fn report(result: &Outcome, training: &Training, is_all: bool) -> Result<Exit> {
    let is_equal = (result.held_out, result.correct) == (training.held_out, training.correct);
    let answered = result.answers.iter().filter(|&&answers| answers > 0).count();
    let duplicates: u32 = result.answers.iter().map(|answers| answers.saturating_sub(1)).sum();
    output::print(&format!(
        "{}\n\n{}\n\n{}",
        facts(result, training, is_all, answered, duplicates),
        tier_table(result),
        worker_table(result)
    ))?;
    if let Some(reason) = &result.first_failure {
        eprintln!("millrace: {} requests failed; the first: {reason}", thousands(result.failed));
    }
    if is_all && !is_equal {
        eprintln!(
            "millrace: the fleet classified {} of {} held-out images correctly, the training script {} of {}: is another \
             model served under this name?",
            result.correct, result.held_out, training.correct, training.held_out
        );
    }
    let is_complete = result.failed == 0 && answered == result.requests && duplicates == 0;
    Ok(if is_complete && (is_equal || !is_all) { Exit::Success } else { Exit::Failed })
}

fn facts(result: &Outcome, training: &Training, is_all: bool, answered: usize, duplicates: u32) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "this run", "training"]);
    #[expect(clippy::cast_precision_loss, reason = "counts of images")]
    let accuracy =
        |correct: usize, of: usize| format!("{:.4} ({correct} of {of})", correct as f64 / of.max(1) as f64);
    let recorded = if is_all {
        format!("{:.4} ({} of {})", training.accuracy, training.correct, training.held_out)
    } else {
        "not compared: not all images were sent".to_owned()
    };
    table.add_row([
        "accuracy, held-out images".to_owned(),
        accuracy(result.correct, result.held_out),
        recorded,
    ]);
    let requests = thousands(result.requests as u64);
    table.add_row([
        "requests answered".to_owned(),
        format!("{} of {requests}, duplicates {duplicates}", thousands(answered as u64)),
        String::new(),
    ]);
    table.add_row([
        "requests per second".to_owned(),
        format!(
            "{} ({requests} in {:.2} s)",
            thousands(per_second(result.requests as u64, result.took)),
            result.took.as_secs_f64()
        ),
        String::new(),
    ]);
    table
}

fn tier_table(result: &Outcome) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["tier", "results", "p50", "p99"]);
    for (tier, latencies) in &result.tiers {
        table.add_row([
            tier.clone(),
            thousands(latencies.count()),
            milliseconds(latencies.quantile(0.5)),
            milliseconds(latencies.quantile(0.99)),
        ]);
    }
    table
}

fn worker_table(result: &Outcome) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["worker", "results"]);
    for (worker, count) in result.workers.iter() {
        table.add_row([worker.to_owned(), thousands(count)]);
    }
    table
}
