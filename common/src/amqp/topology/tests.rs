//! What is declared.

use super::*;

/// What some broker from 3.10 to 4.3 refuses or ignores must not be declared.
#[test]
fn only_portable_objects_are_declared() {
    for queue_type in [QueueKind::Quorum, QueueKind::Classic] {
        let settings = Settings { queue_type, ..Settings::default() };
        let mut topology = Topology::shared(&settings);
        topology.extend(Topology::model(&settings, "digits"));
        topology.extend(Topology::reply(&settings, "ann.x", std::time::Duration::from_secs(1)));
        for queue in &topology.queues {
            let argument = |name: &str| queue.arguments.get(name);
            assert_eq!(argument("x-queue-type"), Some(&text(&queue.kind.to_string())), "{}", queue.name);
            assert!(argument("x-queue-mode").is_none() && argument("x-queue-version").is_none());
            if queue.kind == QueueKind::Stream {
                assert_eq!((queue.name.as_str(), argument("x-overflow")), ("millrace.switches", None));
                continue;
            }
            let overflow = if queue.name == "millrace.dead" { "drop-head" } else { "reject-publish" };
            assert_eq!(argument("x-overflow"), Some(&text(overflow)), "{}", queue.name);
            assert!(argument("x-max-priority").is_none() || queue.kind == QueueKind::Classic);
        }
        let direct = topology.exchanges.iter().filter(|exchange| exchange.kind == ExchangeKind::Direct);
        assert_eq!(
            direct.map(|exchange| &*exchange.name).collect::<Vec<_>>(),
            ["millrace.reply", "millrace.solo"]
        );
    }
}

fn with_shards(shards: u16) -> Topology {
    let mut settings = Settings::default();
    settings.tiers.truncate(1);
    settings.tiers[0].shards = shards;
    let mut topology = Topology::model(&settings, "m");
    topology.queues.retain(|queue| !settings.names().is_solo_queue(&queue.name));
    topology.bindings.retain(|binding| binding.exchange != settings.names().solo_exchange());
    topology
}

#[test]
fn the_suspects_of_all_tiers_have_one_queue() {
    let settings = Settings { queue_type: QueueKind::Classic, ..Settings::default() };
    let topology = Topology::model(&settings, "m");
    let solo: Vec<_> = topology.queues.iter().filter(|queue| queue.name.contains(".solo")).collect();
    let [queue] = &solo[..] else { panic!("{solo:?}") };
    assert_eq!((queue.name.as_str(), queue.kind), ("millrace.solo.m", QueueKind::Quorum), "it must count");
    assert_eq!(queue.arguments["x-delivery-limit"], Argument::Number(2), "three runs");
    let keys = topology.bindings.iter().filter(|binding| binding.queue == queue.name);
    let keys: Vec<_> = keys.map(|binding| (&*binding.exchange, &*binding.routing_key)).collect();
    assert_eq!(keys, ["m.premium", "m.enterprise", "m.free"].map(|key| ("millrace.solo", key)));
    let names = settings.names();
    assert!(names.is_solo_queue("millrace.solo.m") && !names.is_solo_queue("millrace.solo"));
    assert!(!names.is_solo_queue("millrace.request.m.free"));
}

fn binding(exchange: &str, queue: &str, key: &str) -> Binding {
    Binding { exchange: exchange.into(), queue: queue.into(), routing_key: key.into() }
}

const REQUEST: &str = "millrace.request";
const QUEUE: &str = "millrace.request.m.premium";
const SHARD: &str = "millrace.shard.m.premium";

#[test]
fn a_tier_without_shards_has_its_queue_bound_and_nothing_else() {
    let one = with_shards(1);
    assert_eq!(one.queues.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>(), [QUEUE]);
    assert_eq!(one.bindings, [binding(REQUEST, QUEUE, "m.premium")]);
    assert!(one.exchanges.is_empty() && one.exchange_bindings.is_empty());
    assert_eq!(one.stale, [Stale::Exchange(SHARD.into())], "what shards it had are routed to no more");
}

#[test]
fn shards_are_chosen_by_tenant_and_bound_alike() {
    let three = with_shards(3);
    let names: Vec<String> =
        [QUEUE.to_owned()].into_iter().chain([1, 2].map(|n| format!("{QUEUE}.{n}"))).collect();
    assert_eq!(three.queues.iter().map(|queue| queue.name.clone()).collect::<Vec<_>>(), names);
    assert!(three.queues.iter().all(|queue| queue.arguments == with_shards(1).queues[0].arguments));
    assert_eq!(three.bindings, names.iter().map(|name| binding(SHARD, name, "1")).collect::<Vec<_>>());
    let [exchange] = &three.exchanges[..] else { panic!("{:?}", three.exchanges) };
    assert_eq!((exchange.name.as_str(), exchange.kind), (SHARD, ExchangeKind::ConsistentHash));
    assert_eq!(exchange.arguments, arguments([("hash-header", text("x-tenant"))]));
    let through = ExchangeBinding { from: REQUEST.into(), to: SHARD.into(), routing_key: "m.premium".into() };
    assert_eq!(three.exchange_bindings, [through]);
}

/// Whatever the number was before: no request is routed past the shards, twice, or to one that nobody consumes.
#[test]
fn from_any_number_of_shards_to_any_other_only_wanted_bindings_stay() {
    for from in [1, 2, 8, MAX_SHARDS] {
        for to in [1, 2, 8, MAX_SHARDS] {
            let (before, after) = (with_shards(from), with_shards(to));
            let is_stale = |binding: &Binding| {
                after.stale.contains(&Stale::Binding(binding.clone()))
                    || after.stale.contains(&Stale::Exchange(binding.exchange.clone()))
            };
            for binding in &before.bindings {
                assert!(after.bindings.contains(binding) != is_stale(binding), "{from} to {to}: {binding:?}");
            }
            assert!(!after.bindings.iter().any(is_stale), "{from} to {to}");
        }
    }
}

#[test]
fn the_limits_of_a_tier_are_those_of_its_shards_together() {
    let mut settings = Settings::default();
    settings.tiers[0].shards = 8;
    let policies = Topology::shared(&settings).policies;
    let limit = |policy: &Policy| policy.definition["max-length"].clone();
    assert_eq!(policies[..2].iter().map(limit).collect::<Vec<_>>(), [12_500, 100_000].map(Argument::Number));
    assert!(policies[0].pattern.ends_with("\\.premium(\\.[0-9]+)?$"), "{}", policies[0].pattern);
}

#[test]
fn what_is_a_connections_own_is_named_after_it() {
    let settings = Settings::default();
    let mut topology = Topology::control_listener(&settings, "millrace.control.a");
    topology.queues.extend(with_shards(1).queues);
    topology.bindings.push(binding(REQUEST, QUEUE, "m.premium"));
    let own = topology.on_connection(2);
    let names: Vec<_> = own.queues.iter().map(|queue| queue.name.as_str()).collect();
    assert_eq!(names, ["millrace.control.a.2", QUEUE]);
    let bound: Vec<_> = own.bindings.iter().map(|binding| binding.queue.as_str()).collect();
    assert_eq!(bound, names);
    assert_eq!(topology.name_on_connection("millrace.control.a", 2), names[0]);
    assert_eq!(topology.name_on_connection(QUEUE, 2), QUEUE);
}
