//! Hostile messages: nothing is published for them anywhere, people find them with the reason, and the next good request
//! is served.

use std::time::Duration;

use lapin::types::{AMQPValue, FieldArray};
use lapin::{BasicProperties, Confirmation};
use millrace_harness::models;
use millrace_tests::foreign::{Foreign, rows, text_header, with_header};
use millrace_tests::management::User;
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually};

const PATIENCE: Duration = Duration::from_secs(20);
/// A reply key that the client under test does not own.
const VICTIM: &str = "ann.abcdefghijklmnopqrstuvwxyz";

struct Scene {
    foreign: Foreign,
    victim: Foreign,
    prefix: String,
}

impl Scene {
    async fn new(stack: &Stack) -> Self {
        Self {
            foreign: Foreign::connect(stack.amqp_url(), stack.prefix()).await,
            victim: Foreign::with_key(stack.amqp_url(), stack.prefix(), VICTIM).await,
            prefix: stack.prefix().to_owned(),
        }
    }

    /// Takes the only dead letter and checks what it says.
    async fn expect_dead(&self, id: &str, reason: &str, what: &str) {
        eventually(what, PATIENCE, async || self.foreign.depth("dead").await == 1).await;
        let dead = self.foreign.get("dead").await.expect("just seen");
        assert_eq!(text_header(&dead, "x-dead-reason"), reason, "{what}");
        assert!(!text_header(&dead, "x-dead-detail").is_empty(), "{what}");
        assert_eq!(dead.properties.message_id().as_ref().map(|id| id.as_str()), Some(id), "{what}");
        // Published again as it came, these would do their harm now.
        for header in ["CC", "BCC"] {
            assert_eq!(text_header(&dead, header), "", "{what}");
        }
        assert_eq!(dead.data, rows(&[[1.0; 4]]), "{what}");
    }

    /// A good request has its answer, and nobody got anything else.
    async fn expect_peace(&mut self, what: &str) {
        let id = self.foreign.request("m.premium", &rows(&[[2.0; 4]])).await;
        let answer = self.foreign.reply(PATIENCE).await.unwrap_or_else(|| panic!("{what}: no answer"));
        assert_eq!((&answer.id, answer.status.as_str()), (&id, "ok"), "{what}: {answer:?}");
        let left = self.foreign.leftovers().await;
        assert!(left.is_empty(), "{what}: {left:?}");
        assert_eq!(self.victim.depth(&self.victim.reply_queue()).await, 0, "{what}");
        for queue in ["dead", "dead.inbox", "request.m.premium", "request.m.free", "retry.50"] {
            assert_eq!(self.foreign.depth(queue).await, 0, "{what}: {queue}");
        }
    }

    async fn refused(&mut self, what: &str, key: &str, properties: BasicProperties, reason: &str) {
        let id = self.foreign.request_with(key, properties, &rows(&[[1.0; 4]])).await;
        self.expect_dead(&id, reason, what).await;
        self.expect_peace(what).await;
    }
}

fn stack() -> Stack {
    Stack::new().config("m", ONE_INSTANCE).model("m", &models::scale(1.0))
}

fn keys(keys: &[&str]) -> AMQPValue {
    let keys = keys.iter().map(|key| AMQPValue::LongString((*key).into())).collect::<Vec<_>>();
    AMQPValue::FieldArray(FieldArray::from(keys))
}

/// What is no reply key, in a fleet of this prefix.
pub(crate) fn reply_tos(prefix: &str) -> Vec<String> {
    let token = "abcdefghijklmnopqrstuvwxyz";
    vec![
        "results".to_owned(),
        token.to_owned(),
        format!("guest.{}", &token[..21]),
        format!("guest.{token}#"),
        format!("#.{token}"),
        format!("*.{token}"),
        format!("guest.{}", "x".repeat(244)),
        "x".repeat(250),
        "m.premium".to_owned(),
        format!("{}.request.m.premium", prefix),
        format!("{}.dead", prefix),
        format!("../../{token}"),
        format!("guest\n.{token}"),
        format!(".{token}"),
        format!("guest.{}", "x".repeat(87)),
        format!("{}.{token}", "u".repeat(65)),
        format!("gu est.{token}"),
        format!("guest.{token}="),
        format!("gäst.{token}"),
        format!("amq.rabbitmq.reply-to.{}", "g1h2AA".repeat(16)),
    ]
}

#[tokio::test]
async fn a_hostile_reply_to_is_never_published_to() {
    let stack = stack();
    let _worker = stack.worker();
    let mut scene = Scene::new(&stack).await;
    let token = "abcdefghijklmnopqrstuvwxyz";
    for reply_to in reply_tos(&scene.prefix) {
        let properties = scene.foreign.properties().with_reply_to(reply_to.as_str().into());
        scene.refused(&reply_to, "m.premium", properties, "invalid_reply_to").await;
    }
    // A well-formed key of somebody else, while the broker vouches for who sends.
    let properties = scene.foreign.properties().with_reply_to(VICTIM.into()).with_user_id("guest".into());
    scene.refused("another user's key", "m.premium", properties, "invalid_reply_to").await;
    // Only gateways may ask for somebody else, and a header does not make one.
    let user = User::create(&format!("mallory-{}", scene.prefix), "secret", &scene.prefix);
    let name = user.name();
    let mut mallory = Foreign::with_key(user.amqp_url(), &scene.prefix, &format!("{name}.{token}")).await;
    mallory.listen().await;
    let own = mallory.properties().with_user_id(name.into());
    let claims = with_header(own.clone(), "x-tenant", AMQPValue::LongString("ann".into()));
    let id = mallory.request_with("m.free", claims.with_reply_to(VICTIM.into()), &rows(&[[1.0; 4]])).await;
    scene.expect_dead(&id, "invalid_reply_to", "a claimed tenant").await;
    scene.expect_peace("a claimed tenant").await;
    mallory.request_with("m.free", own, &rows(&[[1.0; 4]])).await;
    assert_eq!(mallory.reply(PATIENCE).await.map(|answer| answer.status).as_deref(), Some("ok"));
}

#[tokio::test]
async fn copies_and_foreign_keys_evade_no_tier() {
    let stack = stack();
    let _worker = stack.worker();
    let mut scene = Scene::new(&stack).await;

    // The broker copies the message into the premium queue; the copy and the original both name the trick.
    let properties = with_header(scene.foreign.properties(), "CC", keys(&["m.premium"]));
    let body = rows(&[[1.0; 4]]);
    let id = scene.foreign.request_with("m.free", properties, &body).await;
    eventually("both copies are dead", PATIENCE, async || scene.foreign.depth("dead").await == 2).await;
    let first = scene.foreign.get("dead").await.expect("just seen");
    assert_eq!(text_header(&first, "x-dead-reason"), "sender_selected");
    scene.expect_dead(&id, "sender_selected", "the other copy of CC").await;
    scene.expect_peace("CC").await;

    // The broker takes BCC out: the original is a good request, the copy is known by its key.
    let properties = with_header(scene.foreign.properties(), "BCC", keys(&["m.premium"]));
    let id = scene.foreign.request_with("m.free", properties, &body).await;
    let answer = scene.foreign.reply(PATIENCE).await.expect("the free request is served");
    assert_eq!((&answer.id, answer.status.as_str()), (&id, "ok"));
    scene.expect_dead(&id, "foreign_routing_key", "the copy of BCC").await;
    scene.expect_peace("BCC").await;

    // Forms of the header that the broker itself makes nothing of.
    for (what, value) in [("CC to nobody", keys(&["nobody.free"])), ("no key in CC", keys(&[]))] {
        let properties = with_header(scene.foreign.properties(), "CC", value);
        scene.refused(what, "m.free", properties, "sender_selected").await;
    }

    // Past the request exchange, straight into the queue.
    let queue = format!("{}.request.m.premium", scene.prefix);
    let properties = scene.foreign.properties();
    let id = properties.message_id().as_ref().expect("set").to_string();
    let confirm = scene.foreign.publish_to("", &queue, properties, &body).await;
    assert_eq!(confirm, Confirmation::Ack(None));
    scene.expect_dead(&id, "foreign_routing_key", "the default exchange").await;
    scene.expect_peace("the default exchange").await;
}
