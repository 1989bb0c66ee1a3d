//! What is measured, a file each: its cases, how one is measured, and what is reported.

mod cost;
mod flood;
mod latency;
mod memory;
mod peers;
mod scaling;
mod shares;
mod skew;
mod tenants;
mod throughput;
mod unequal;

use anyhow::Result;

use crate::cli::Scenario;
use crate::context::Context;
use crate::report::Section;

/// Measures one; `None` when `--only` lets none of its cases through.
pub(crate) fn run(scenario: Scenario, context: &Context) -> Result<Option<Section>> {
    match scenario {
        Scenario::Throughput => throughput::run(context),
        Scenario::Latency => latency::run(context),
        Scenario::Flood => flood::run(context),
        Scenario::Shares => shares::run(context),
        Scenario::Unequal => unequal::run(context),
        Scenario::Scaling => scaling::run(context),
        Scenario::Skew => skew::run(context),
        Scenario::Tenants => tenants::run(context),
        Scenario::Cost => cost::run(context),
        Scenario::Memory => memory::run(context),
        Scenario::Peers => peers::run(context),
    }
}
