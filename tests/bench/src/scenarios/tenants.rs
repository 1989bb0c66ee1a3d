//! One tenant queues 10,000 requests, then another 100: the second must not wait for all of the first.
//!
//! Tenants are broker users; where their tier has shards, two whose requests wait in different ones. The worker is stopped while the
//! first tenant's requests are queued and continued as the second sends its own, so that every run begins alike.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use millrace_common::amqp::connection::Connector;
use millrace_common::amqp::message::header;
use millrace_common::amqp::topology::{Names, Topology, apply};
use millrace_common::tier::Tier;
use nix::sys::signal::Signal;

use crate::cli::Scenario;
use crate::context::Context;
use crate::load::{Arrivals, Generator, Outcome, Spec};
use crate::plot::{Bars, Layout};
use crate::report::{Figure, Section, Spread};
use crate::stack::Stack;
use crate::workload::{Model, Workload};

const FIRST: usize = 10_000;
const SECOND: usize = 100;
const TIER: &str = "free";
const SHARDS: [u16; 2] = [1, 8];
const PASSWORD: &str = "bench";
const DEADLINE: Duration = Duration::from_secs(300);

struct Measured {
    /// Requests a second in a closed loop, of one tenant and of both together.
    alone: f64,
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
    let cases = SHARDS.map(|shards| Workload { shards, ..Workload::of(Model::Mid) });
    let cases = context.selected(cases.into(), Workload::name);
    if cases.is_empty() {
        return Ok(None);
    }
    let results = context.alternate("tenants", &cases, Workload::name, |case, _| measure(context, *case))?;
    let mut section = Section::new(Scenario::Tenants, context);
    section.table(
        &[
            "case",
            "capacity /s of one tenant",
            "of both",
            "fair time of 100, s",
            "second tenant's last answer, s",
            "times fair",
            "its median answer, s",
            "first tenant's last answer, s",
        ],
        cases.iter().zip(&results).map(|(case, runs)| row(case, runs)).collect(),
    );
    section.figure(figure(&cases, &results)?);
    Ok(Some(section))
}

fn figure(cases: &[Workload], results: &[Vec<Measured>]) -> Result<Figure> {
    let group = |(case, runs): (&Workload, &Vec<Measured>)| {
        let median = |value: fn(&Measured) -> f64| Spread::of(runs, value).median;
        let first = median(|run| run.first.latency_ms(1.0) / 1e3);
        (case.name(), vec![median(Measured::fair_s), median(Measured::waited_s), first])
    };
    let bars = Bars {
        y: "seconds from sending",
        layout: Layout::SideBySide,
        parts: &["second tenant's fair time", "its last answer", "first tenant's last answer"],
        groups: cases.iter().zip(results).map(group).collect(),
    };
    Ok(Figure {
        name: "tenants".to_owned(),
        caption: format!("{SECOND} requests behind another tenant's {FIRST}"),
        svg: bars.svg()?,
    })
}

fn row(case: &Workload, runs: &[Measured]) -> Vec<String> {
    let spread = |value: &dyn Fn(&Measured) -> f64| Spread::of(runs, value);
    vec![
        case.name(),
        spread(&|run| run.alone).text(0),
        spread(&|run| run.capacity).text(0),
        spread(&Measured::fair_s).text(3),
        spread(&Measured::waited_s).text(3),
        spread(&|run| run.waited_s() / run.fair_s()).ratio(),
        spread(&|run| run.second.latency_ms(0.5) / 1e3).text(3),
        spread(&|run| run.first.latency_ms(1.0) / 1e3).text(3),
    ]
}

fn measure(context: &Context, case: Workload) -> Result<Measured> {
    let mut stack = Stack::new(context, "tenants", case)?;
    let users = context.runtime.block_on(tenants(&stack, case, &context.broker.amqp_url()))?;
    for user in &users {
        context.broker.ctl(&["add_user", user, PASSWORD])?;
        context.broker.ctl(&["set_permissions", user, ".*", ".*", ".*"])?;
    }
    stack.start_worker(&[])?;
    let of = |user: &str, arrivals| {
        let spec = stack.spec(TIER, arrivals);
        Spec { url: spec.url.replace("guest:guest@", &format!("{user}:{PASSWORD}@")), ..spec }
    };
    let alone = stack.capacity()?;
    let half = Arrivals::Closed { in_flight: case.in_flight() / 2 };
    let both = stack.run(users.iter().map(|user| of(user, half)).collect())?.outcomes;
    let rates = both.into_iter().map(|outcome| Ok(outcome.checked()?.rate()));
    let capacity = rates.sum::<Result<f64>>()?;
    let burst = |user: &str, count| Spec {
        warm_up: Duration::ZERO,
        deadline: DEADLINE,
        ..of(user, Arrivals::Burst { count })
    };
    let mut first = Generator::spawn(burst(&users[0], FIRST), context.scratch()?)?;
    let mut second = Generator::spawn(burst(&users[1], SECOND), context.scratch()?)?;
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
        Measured { alone, capacity, second: second.finish()?.checked()?, first: first.finish()?.checked()? };
    stack.stop()?;
    for user in &users {
        context.broker.ctl(&["delete_user", user])?;
    }
    eprintln!("  fair {:.3} s, waited {:.3} s", measured.fair_s(), measured.waited_s());
    Ok(measured)
}

/// Two users, in different shards where there are several: found by sending a message for each while nobody consumes.
async fn tenants(stack: &Stack<'_>, case: Workload, url: &str) -> Result<[String; 2]> {
    let config = stack.config()?;
    let mut topology = Topology::shared(&config.topology);
    topology.extend(Topology::model(&config.topology, case.model.name()));
    apply(&Connector::new(&config.broker, "tenants")?, &topology).await?;
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let names = config.topology.names();
    let first = "bench-tenant-0".to_owned();
    let shard = shard_of(&channel, &names, case, &first).await?;
    for number in 1..100 {
        let second = format!("bench-tenant-{number}");
        if case.shards == 1 || shard_of(&channel, &names, case, &second).await? != shard {
            connection.close(200, "OK".into()).await?;
            return Ok([first, second]);
        }
    }
    anyhow::bail!("every tenant is in one shard")
}

/// The shard that a tenant's requests come into.
async fn shard_of(channel: &Channel, names: &Names, case: Workload, tenant: &str) -> Result<u16> {
    let mut headers = FieldTable::default();
    headers.insert(header::TENANT.into(), AMQPValue::LongString(tenant.into()));
    let properties = BasicProperties::default().with_headers(headers);
    let (exchange, key) = (names.request_exchange(), Names::request_key(case.model.name(), TIER));
    let (exchange, key, options) =
        (exchange.as_str().into(), key.as_str().into(), BasicPublishOptions::default());
    channel.basic_publish(exchange, key, options, b"", properties).await?.await?;
    let tier = Tier::new(TIER)?;
    for shard in 0..case.shards {
        let queue = names.shard_queue(case.model.name(), &tier, shard);
        if channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await?.is_some() {
            return Ok(shard);
        }
    }
    anyhow::bail!("no shard has taken the message of {tenant}")
}
