//! The digits data: `p0,...,p63,label,split`, and what training said about them.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::exit::usage;

/// Pixels of an image.
pub(super) const PIXELS: usize = 64;

/// A row of the data.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Digit {
    /// Row by row, each 0 to 16.
    pub(super) pixels: [f32; PIXELS],
    /// The digit shown.
    pub(super) label: i64,
    /// Whether training never saw it.
    pub(super) is_held_out: bool,
}

/// What the training script recorded.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Training {
    /// Rows of the data.
    pub(super) rows: usize,
    /// Rows held out.
    pub(super) held_out: usize,
    /// Held-out rows that the model classified correctly.
    pub(super) correct: usize,
    /// Their share.
    pub(super) accuracy: f64,
}

/// Reads the training script's record.
pub(super) fn training(path: &Path) -> Result<Training> {
    let text = read(path)?;
    serde_json::from_str(&text)
        .map_err(|error| usage(format!("{} is not a training record: {error}", path.display())))
}

/// Reads the data.
pub(super) fn digits(path: &Path) -> Result<Vec<Digit>> {
    parse(&read(path)?).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| usage(format!("cannot read {}: {error}", path.display())))
}

fn parse(text: &str) -> Result<Vec<Digit>> {
    let mut lines = text.lines();
    let header: Vec<String> =
        (0..PIXELS).map(|pixel| format!("p{pixel}")).chain(["label".into(), "split".into()]).collect();
    if lines.next().map(str::trim_end) != Some(&header.join(",")) {
        return Err(usage("the first line is not p0,...,p63,label,split"));
    }
    let rows = lines.enumerate().filter(|(_, line)| !line.trim().is_empty());
    rows.map(|(row, line)| {
        parse_row(line.trim_end()).ok_or_else(|| {
            usage(format!("line {} is not 64 numbers, a digit, and `train` or `test`", row + 2))
        })
    })
    .collect()
}

fn parse_row(line: &str) -> Option<Digit> {
    let mut fields = line.split(',');
    let mut pixels = [0.0; PIXELS];
    for pixel in &mut pixels {
        *pixel = fields.next()?.parse().ok()?;
    }
    let label = fields.next()?.parse().ok()?;
    let is_held_out = match fields.next()? {
        "test" => true,
        "train" => false,
        _ => return None,
    };
    fields.next().is_none().then_some(Digit { pixels, label, is_held_out })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv(rows: &[&str]) -> String {
        let header: String = (0..PIXELS).map(|pixel| format!("p{pixel},")).collect();
        format!("{header}label,split\r\n{}\r\n", rows.join("\r\n"))
    }

    #[test]
    fn rows_are_read_in_order_and_bad_ones_named() {
        let row = |first: &str, rest: &str| format!("{first},{}{rest}", "0,".repeat(PIXELS - 1));
        let good = csv(&[&row("16", "3,test"), &row("0.5", "9,train")]);
        let digits = parse(&good).unwrap();
        assert_eq!((digits[0].label, digits[0].is_held_out, digits[0].pixels[0]), (3, true, 16.0));
        assert_eq!((digits[1].label, digits[1].is_held_out, digits[1].pixels[0]), (9, false, 0.5));
        for bad in ["x,test", "3,tests", "3,test,", "3"] {
            let error = parse(&csv(&[&row("0", "3,test"), &row("1", bad)])).unwrap_err().to_string();
            assert!(error.contains("line 3"), "{bad}: {error}");
        }
        assert!(parse("a,b\n").is_err());
    }

    #[test]
    fn the_committed_data_fits_its_training_record() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../compose"));
        let digits = digits(&root.join("data/digits.csv")).unwrap();
        let training = training(&root.join("models/digits/training.json")).unwrap();
        assert_eq!(digits.len(), training.rows);
        assert_eq!(digits.iter().filter(|digit| digit.is_held_out).count(), training.held_out);
    }
}
