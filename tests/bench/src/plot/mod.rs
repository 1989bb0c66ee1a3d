//! Plots as SVG, readable on white and on dark pages: nothing behind them, middle greys, colours of middling brightness.

mod bars;
mod lines;

use plotters::prelude::*;

pub(crate) use bars::{Bars, Layout};
pub(crate) use lines::{Lines, Scale, Series};

const SIZE: (u32, u32) = (760, 380);
const GREY: RGBColor = RGBColor(0x80, 0x80, 0x80);
const FONT: &str = "sans-serif";
/// As the plotting library counts; about 13 pixels.
const FONT_SIZE: u32 = 16;

/// Colours that people with colour-blindness tell apart, on white and on black (after Okabe and Ito, 2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x83, 0xc4),
    RGBColor(0xd8, 0x7a, 0x12),
    RGBColor(0x11, 0x9c, 0x72),
    RGBColor(0xc0, 0x66, 0x9a),
    RGBColor(0x8a, 0x7a, 0xd0),
    RGBColor(0x98, 0x8e, 0x22),
];

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

fn text() -> TextStyle<'static> {
    (FONT, FONT_SIZE).into_font().color(&GREY)
}

/// A number as an axis shows it.
fn label(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => format!("{}k", value / 1000.0),
        size if size >= 10.0 || size == 0.0 => format!("{value:.0}"),
        _ => format!("{}", (value * 1000.0).round() / 1000.0),
    }
}

/// The plotting library's errors borrow the drawing.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("cannot draw: {error}")
}
