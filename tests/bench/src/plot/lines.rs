//! Values over a common axis.

use std::ops::Range;

use anyhow::Result;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::{GREY, SIZE, colour, failed, label, text};

/// How the vertical axis grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Logarithmic,
}

/// One line.
#[derive(Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Lines over a common axis; the axes' names give their units.
pub(crate) struct Lines<'a> {
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    pub(crate) scale: Scale,
    pub(crate) series: Vec<Series>,
}

impl Lines<'_> {
    pub(crate) fn svg(&self) -> Result<String> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = bounds(points().map(|point| point.0));
        let y = bounds(points().map(|point| point.1).filter(|&y| self.scale == Scale::Linear || y > 0.0));
        match self.scale {
            Scale::Linear => self.draw(x, 0.0..y.end * 1.05),
            Scale::Logarithmic => self.draw(x, (y.start / 1.5..y.end * 1.5).log_scale()),
        }
    }

    fn draw<Y>(&self, x: Range<f64>, y: Y) -> Result<String>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let mut chart = ChartBuilder::on(&root)
                .margin(12)
                .x_label_area_size(42)
                .y_label_area_size(62)
                .build_cartesian_2d(x, y)
                .map_err(failed)?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(GREY.mix(0.25))
                .axis_style(GREY)
                .label_style(text())
                .x_desc(self.x)
                .y_desc(self.y)
                .x_label_formatter(&|value| label(*value))
                .y_label_formatter(&|value| label(*value))
                .draw()
                .map_err(failed)?;
            for (index, series) in self.series.iter().enumerate() {
                let style = colour(index).stroke_width(2);
                let line = LineSeries::new(series.points.iter().copied(), style).point_size(2);
                let sign = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style);
                chart.draw_series(line).map_err(failed)?.label(&series.name).legend(sign);
            }
            let legend = &mut chart.configure_series_labels();
            legend.position(SeriesLabelPosition::UpperLeft).label_font(text()).draw().map_err(failed)?;
            root.present().map_err(failed)?;
        }
        Ok(svg)
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, most) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), value| (a.min(value), b.max(value)));
    if least < most { least..most } else { 0.9 * least.min(1e9)..1.1 * most.max(1e-9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_and_lines_are_named_and_nothing_lies_behind_them() {
        let points = vec![(10.0, 1.5), (50.0, 20.0), (120.0, 900.0)];
        let series = vec![Series { name: "p99".to_owned(), points }];
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let series = series.clone();
            let svg = Lines { x: "offered load (%)", y: "latency (ms)", scale, series }.svg().unwrap();
            for part in ["offered load (%)", "latency (ms)", "p99", "<polyline"] {
                assert!(svg.contains(part), "{part}: {svg}");
            }
            assert!(!svg.to_lowercase().contains("#ffffff"), "{svg}");
        }
    }
}
