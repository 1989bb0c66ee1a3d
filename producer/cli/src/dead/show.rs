//! `millrace dead show`

use anyhow::Result;
use base64::Engine as _;
use clap::Args;
use serde_json::{Value, json};

use super::letters::{Letter, Letters};
use super::{Chosen, Filter};
use crate::exit::Exit;
use crate::global::Global;
use crate::output;

/// Print requests that could not be answered, bodies included, a line of JSON each
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    filter: Filter,
}

const AFTER_HELP: &str = "\
A body that is JSON is in `body`, any other in `body_base64`.

Examples:
  millrace dead show 0199d0f2-7b5e-7cc0-8000-5a1c7e0d2b11 | jq .body.inputs
  millrace dead show --all --reason poison > poison.jsonl

Exit codes: 0, 1 none of them is there, 2 wrong usage or configuration, 3 no broker.";

pub(super) async fn run(global: &Global, arguments: &Arguments) -> Result<Exit> {
    let mut letters = Letters::take(&global.load()?, &arguments.filter).await?;
    letters.choose(&arguments.chosen);
    let printed = letters.meant.iter().try_for_each(|letter| output::print(&shown(letter).to_string()));
    let is_any = !letters.meant.is_empty();
    letters.close().await;
    printed?;
    Ok(if is_any { Exit::Success } else { Exit::Failed })
}

fn shown(letter: &Letter) -> Value {
    let mut shown = json!(letter.facts);
    let body = &letter.delivery.body;
    match serde_json::from_slice::<Value>(body) {
        Ok(body) => shown["body"] = body,
        Err(_) => shown["body_base64"] = base64::engine::general_purpose::STANDARD.encode(body).into(),
    }
    shown
}
