//! Limits that an operator may change while queues live.

use super::{Argument, Policy, Settings, arguments};

pub(super) fn policies(settings: &Settings) -> Vec<Policy> {
    let prefix = settings.prefix.replace('.', "\\.");
    let number = |value: u64| Argument::Number(i64::try_from(value).unwrap_or(i64::MAX));
    let mut policies: Vec<Policy> = settings
        .tiers
        .iter()
        .map(|tier| Policy {
            name: format!("{}.request.{}", settings.prefix, tier.name),
            // Shards that the tier does not have (any more) too: what still waits in their queues must not wait for ever.
            pattern: format!("^{prefix}\\.request\\.[A-Za-z0-9_-]+\\.{}(\\.[0-9]+)?$", tier.name),
            priority: 10,
            // Whoever says truly who he is can fill his own shard only.
            definition: arguments([
                ("max-length", number(tier.max_length.div_ceil(tier.shards.into()))),
                ("max-length-bytes", number(tier.max_length_bytes.div_ceil(tier.shards.into()))),
                ("message-ttl", number(tier.default_budget_ms)),
            ]),
        })
        .collect();
    policies.push(Policy {
        name: format!("{}.dead", settings.prefix),
        pattern: format!("^{prefix}\\.dead(\\.inbox)?$"),
        priority: 10,
        definition: arguments([("max-length", number(settings.dead_max_length))]),
    });
    // A model's suspects must not wait for ever where no worker serves it any more.
    let longest = settings.tiers.iter().map(|tier| tier.default_budget_ms).max().unwrap_or_default();
    policies.push(Policy {
        name: format!("{}.solo", settings.prefix),
        pattern: format!("^{prefix}\\.solo\\.[A-Za-z0-9_-]+$"),
        priority: 10,
        // No length: who moves a request there has nowhere else to put it.
        definition: arguments([("message-ttl", number(longest))]),
    });
    policies
}
