//! The comparison as rows of a table.

use anyhow::Result;

use super::closed_loop::Figures;
use super::peer::Peer;
use crate::plot::{Bars, Layout};
use crate::report::{Figure, Spread};
use crate::workload::{Model, Workload};

pub(super) const COLUMNS: [&str; 7] = [
    "case",
    "who",
    "items /s",
    "fleet, a row a message ÷ this",
    "fleet, packed ÷ this",
    "p50 / p99 ms",
    "CPU µs an item: client + worker + broker",
];

/// Whose figures a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contestant {
    /// The fleet, each request a message of its own.
    Single,
    /// The fleet as it is by default: the client joins rows.
    Packed,
    Peer(Peer),
    /// ONNX Runtime in a loop: what nobody can exceed.
    Limit,
}

impl Contestant {
    /// In the order of measuring; the fleet's come first.
    pub(super) const ALL: [Self; 6] = [
        Self::Single,
        Self::Packed,
        Self::Peer(Peer::Celery),
        Self::Peer(Peer::AioPika),
        Self::Peer(Peer::Mosec),
        Self::Limit,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Single => "**fleet**, a row a message",
            Self::Packed => "**fleet**, packed",
            Self::Peer(peer) => peer.name(),
            Self::Limit => "raw loop (the limit)",
        }
    }

    /// As short as it fits below a bar.
    fn label(self) -> &'static str {
        match self {
            Self::Single => "fleet",
            Self::Packed => "fleet, packed",
            Self::Peer(Peer::Celery) => "Celery",
            Self::Peer(Peer::AioPika) => "aio-pika",
            Self::Peer(Peer::Mosec) => "Mosec",
            Self::Limit => "raw loop",
        }
    }
}

/// One run of a case, in the order of [`Contestant::ALL`].
pub(super) type Run = Vec<Figures>;

/// A row each contestant.
pub(super) fn rows(case: &Workload, runs: &[Run]) -> Vec<Vec<String>> {
    Contestant::ALL.iter().enumerate().map(|(index, who)| row(case, *who, index, runs)).collect()
}

fn row(case: &Workload, who: Contestant, index: usize, runs: &[Run]) -> Vec<String> {
    let spread = |value: &dyn Fn(&Figures) -> f64| Spread::of(runs, |run| value(&run[index]));
    // Run by run: a noisy minute hits both.
    let ratio = |fleet: usize| match who {
        Contestant::Peer(_) | Contestant::Limit => {
            Spread::of(runs, |run| run[fleet].rate / run[index].rate).ratio()
        }
        Contestant::Single | Contestant::Packed => String::new(),
    };
    let cpu: Vec<f64> = (0..3).map(|side| spread(&|figures| figures.cpu_us[side]).median).collect();
    vec![
        case.name(),
        who.name().to_owned(),
        spread(&|figures| figures.rate).text(0),
        ratio(0),
        ratio(1),
        match who {
            Contestant::Limit => format!("{:.1} a batch", spread(&|figures| figures.p50_ms).median),
            _ => format!(
                "{:.1} / {:.1}",
                spread(&|figures| figures.p50_ms).median,
                spread(&|figures| figures.p99_ms).median
            ),
        },
        format!("{:.0} + {:.0} + {:.0} = {:.0}", cpu[0], cpu[1], cpu[2], cpu.iter().sum::<f64>()),
    ]
}

/// Everybody's rate; the raw loop's too, but of *tiny*, beside which nobody else could be seen.
pub(super) fn figure(case: &Workload, runs: &[Run]) -> Result<Figure> {
    let shown = Contestant::ALL.iter().enumerate();
    let shown = shown.filter(|(_, who)| **who != Contestant::Limit || case.model != Model::Tiny);
    let rate = |index: usize| Spread::of(runs, |run| run[index].rate).median;
    let bars = Bars {
        y: "items a second",
        layout: Layout::SideBySide,
        parts: &["median of the runs"],
        groups: shown.map(|(index, who)| (who.label().to_owned(), vec![rate(index)])).collect(),
    };
    Ok(Figure {
        name: format!("peers-{}-{}", case.model.name(), case.queue_type),
        caption: format!("Items a second, {}", case.name()),
        svg: bars.svg()?,
    })
}
