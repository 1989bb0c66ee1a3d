//! Bars in groups or stacks.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{GREY, SIZE, colour, failed, label, text};

/// How the bars of one group lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    SideBySide,
    Stacked,
}

/// Groups of bars; the axis' name gives its unit.
pub(crate) struct Bars<'a> {
    pub(crate) y: &'a str,
    pub(crate) layout: Layout,
    /// What a group's parts are.
    pub(crate) parts: &'a [&'a str],
    /// Name, and a value for each part.
    pub(crate) groups: Vec<(String, Vec<f64>)>,
}

impl Bars<'_> {
    pub(crate) fn svg(&self) -> Result<String> {
        let heights = self.groups.iter().map(|(_, values)| match self.layout {
            Layout::SideBySide => values.iter().copied().fold(0.0, f64::max),
            Layout::Stacked => values.iter().sum(),
        });
        let most = heights.fold(f64::MIN_POSITIVE, f64::max);
        // The legend lies above the bars: a line of it takes a sixteenth of the height.
        let room = 1.1 + 0.09 * self.parts.len() as f64;
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let mut chart = ChartBuilder::on(&root)
                .margin(12)
                .x_label_area_size(30)
                .y_label_area_size(62)
                .build_cartesian_2d(0.0..self.groups.len().max(1) as f64, 0.0..most * room)
                .map_err(failed)?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(GREY.mix(0.25))
                .axis_style(GREY)
                .label_style(text())
                .x_labels(0)
                .y_desc(self.y)
                .y_label_formatter(&|value| label(*value))
                .draw()
                .map_err(failed)?;
            for (part, name) in self.parts.iter().enumerate() {
                let style = colour(part).filled();
                let bars = (0..self.groups.len()).filter_map(|group| self.bar(group, part));
                let sign = move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], style);
                let bars = bars.map(|corners| Rectangle::new(corners, style));
                chart.draw_series(bars).map_err(failed)?.label(*name).legend(sign);
            }
            let below = text().pos(Pos::new(HPos::Center, VPos::Top));
            let names = self.groups.iter().enumerate().map(|(group, (name, _))| {
                EmptyElement::at((group as f64 + 0.5, 0.0)) + Text::new(name.clone(), (0, 6), below.clone())
            });
            chart.draw_series(names).map_err(failed)?;
            let legend = &mut chart.configure_series_labels();
            legend.position(SeriesLabelPosition::UpperRight).label_font(text()).draw().map_err(failed)?;
            root.present().map_err(failed)?;
        }
        Ok(svg)
    }

    /// Two corners.
    fn bar(&self, group: usize, part: usize) -> Option<[(f64, f64); 2]> {
        let values = &self.groups.get(group)?.1;
        let &value = values.get(part)?;
        let left = group as f64;
        Some(match self.layout {
            Layout::SideBySide => {
                let width = 0.8 / self.parts.len() as f64;
                let left = left + 0.1 + width * part as f64;
                [(left, 0.0), (left + width * 0.9, value)]
            }
            Layout::Stacked => {
                let below: f64 = values[..part].iter().sum();
                [(left + 0.2, below), (left + 0.8, below + value)]
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_parts_lie_upon_each_other() {
        let groups = vec![("tiny".to_owned(), vec![50.0, 60.0]), ("mid".to_owned(), vec![40.0, 300.0])];
        let bars = Bars { y: "CPU (µs)", layout: Layout::Stacked, parts: &["client", "worker"], groups };
        let [(_, bottom), (_, top)] = bars.bar(1, 1).unwrap();
        assert_eq!((bottom, top), (40.0, 340.0));
        let svg = bars.svg().unwrap();
        for part in ["CPU (µs)", "tiny", "mid", "client", "worker", "<rect"] {
            assert!(svg.contains(part), "{part}");
        }
    }
}
