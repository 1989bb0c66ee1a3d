//! One tenant queues 10,000 requests, then another 100: the second must not wait for all of the first.
//!
//! Tenants are broker users. The worker is stopped while the first tenant's requests are queued and continued as the second sends
//! its own, so that every run begins alike.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::cli::Scenario;
use crate::context::Context;
use crate::load::{Arrivals, Generator, Outcome, Spec};
use crate::report::{Section, Spread};
use crate::stack::Stack;
use crate::workload::{Model, Workload};

const FIRST: usize = 10_000;
const SECOND: usize = 100;
const USERS: [&str; 2] = ["bench-first", "bench-second"];
const PASSWORD: &str = "bench";
const DEADLINE: Duration = Duration::from_secs(300);

struct Measured {
    /// Requests a second in a closed loop.
    capacity: f64,
    first: Outcome,
    second: Outcome,
}

impl Measured {
    /// How long the second tenant's requests take at half of the capacity.
    fn fair_s(&self) -> f64 {
        SECOND as f64 / (self.capacity / 2.0)
    }

    fn waited_s(&self) -> f64 {
        self.second.latency_ms(1.0) / 1e3
    }
}

pub(super) fn run(context: &Context) -> Result<Option<Section>> {
    let cases = context.selected(vec![Workload::of(Model::Mid)], Workload::name);
    if cases.is_empty() {
        return Ok(None);
    }
    for user in USERS {
        context.broker.ctl(&["add_user", user, PASSWORD])?;
        context.broker.ctl(&["set_permissions", user, ".*", ".*", ".*"])?;
    }
    let results = context.alternate("tenants", &cases, Workload::name, |case, _| measure(context, *case));
    for user in USERS {
        context.broker.ctl(&["delete_user", user])?;
    }
    let runs = results?.remove(0);
    let spread = |value: &dyn Fn(&Measured) -> f64| Spread::of(&runs, value);
    let mut section = Section::new(Scenario::Tenants, context);
    section.table(
        &[
            "case",
            "capacity /s",
            "fair time of 100, s",
            "second tenant's last answer, s",
            "times fair",
            "its median answer, s",
            "first tenant's last answer, s",
        ],
        vec![vec![
            cases[0].name(),
            spread(&|run| run.capacity).text(0),
            spread(&Measured::fair_s).text(3),
            spread(&Measured::waited_s).text(3),
            spread(&|run| run.waited_s() / run.fair_s()).ratio(),
            spread(&|run| run.second.latency_ms(0.5) / 1e3).text(3),
            spread(&|run| run.first.latency_ms(1.0) / 1e3).text(3),
        ]],
    );
    Ok(Some(section))
}

fn measure(context: &Context, case: Workload) -> Result<Measured> {
    let mut stack = Stack::new(context, "tenants", case)?;
    stack.start_worker(&[])?;
    let capacity = stack.capacity()?;
    let spec = |user: &str, count: usize| {
        let spec = stack.spec("free", Arrivals::Burst { count });
        let url = spec.url.replace("guest:guest@", &format!("{user}:{PASSWORD}@"));
        Spec { url, warm_up: Duration::ZERO, deadline: DEADLINE, ..spec }
    };
    let mut first = Generator::spawn(spec(USERS[0], FIRST), context.scratch()?)?;
    let mut second = Generator::spawn(spec(USERS[1], SECOND), context.scratch()?)?;
    first.ready()?;
    second.ready()?;
    let signal = |signal| stack.workers.iter().for_each(|worker| worker.signal(signal));
    signal(Signal::SIGSTOP);
    first.go(SystemTime::now())?;
    let taken = first.taken();
    let told = second.go(SystemTime::now());
    signal(Signal::SIGCONT);
    taken.and(told)?;
    let measured =
        Measured { capacity, second: second.finish()?.checked()?, first: first.finish()?.checked()? };
    stack.stop()?;
    eprintln!("  fair {:.3} s, waited {:.3} s", measured.fair_s(), measured.waited_s());
    Ok(measured)
}
