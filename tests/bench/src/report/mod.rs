//! What a scenario found: tables and plots, on the terminal and in docs/benchmarks.

mod spread;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;

pub(crate) use spread::Spread;

use crate::cli::Scenario;
use crate::context::Context;

/// A plot: its file's name without extension, what it shows, and the drawing.
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) caption: String,
    pub(crate) svg: String,
}

/// One scenario's part of docs/benchmarks.md.
pub(crate) struct Section {
    scenario: Scenario,
    head: String,
    body: String,
    figures: Vec<Figure>,
}

impl Section {
    /// An empty part for what has been measured, headed by where and how its figures came about.
    pub(crate) fn new(scenario: Scenario, context: &Context) -> Self {
        let options = &context.options;
        let only =
            if options.only.is_empty() { String::new() } else { format!(" --only '{}'", options.only) };
        let head = format!(
            "{}, of which the host gave {:.0} % to others meanwhile; RabbitMQ {}; commit {}; `cargo xtask bench -- {} --seconds {} --runs {}{only}`.",
            machine(),
            100.0 * context.steal.part(),
            context.broker.version(),
            commit(),
            scenario.name(),
            options.seconds,
            options.runs,
        );
        Self { scenario, head, body: String::new(), figures: Vec::new() }
    }

    /// Adds a table; its first row names the columns.
    pub(crate) fn table(&mut self, columns: &[&str], rows: Vec<Vec<String>>) {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header(columns.iter().copied()).add_rows(rows);
        self.text(&table.to_string());
    }

    /// Adds a paragraph.
    pub(crate) fn text(&mut self, text: &str) {
        self.body = [&self.body, "\n\n", text].concat();
    }

    /// Adds a plot.
    pub(crate) fn figure(&mut self, figure: Figure) {
        self.text(&format!("![{}](benchmarks/{}.svg)", figure.caption, figure.name));
        self.figures.push(figure);
    }

    pub(crate) fn print(&self) {
        println!("\n{}{}\n", self.head, self.body);
    }

    /// Replaces the part between the scenario's markers, and its plots.
    pub(crate) fn write(&self) -> Result<()> {
        let folder = docs().join("benchmarks");
        std::fs::create_dir_all(&folder)?;
        for figure in &self.figures {
            std::fs::write(folder.join(format!("{}.svg", figure.name)), &figure.svg)?;
        }
        let path = docs().join("benchmarks.md");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let text = replaced(&text, self.scenario.name(), &format!("{}{}", self.head, self.body))?;
        Ok(std::fs::write(&path, text)?)
    }
}

/// The page with what stands between a scenario's markers replaced.
fn replaced(page: &str, scenario: &str, part: &str) -> Result<String> {
    let begin = format!("<!-- {scenario}: written by `cargo xtask bench -- {scenario} --write` -->");
    let end = format!("<!-- {scenario}: end -->");
    let lost = |marker: &str| format!("docs/benchmarks.md has lost its marker `{marker}`");
    let (before, rest) = page.split_once(&begin).with_context(|| lost(&begin))?;
    let (_, after) = rest.split_once(&end).with_context(|| lost(&end))?;
    Ok(format!("{before}{begin}\n\n{part}\n\n{end}{after}"))
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown CPU");
    format!("{} × {}", cores(), model.trim_start_matches([' ', '\t', ':']))
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_scenario_has_its_place_on_the_page() {
        let page = std::fs::read_to_string(docs().join("benchmarks.md")).unwrap();
        for scenario in Scenario::value_variants() {
            let page = replaced(&page, scenario.name(), "new figures").unwrap();
            assert_eq!(page.matches("new figures").count(), 1);
        }
    }
}
