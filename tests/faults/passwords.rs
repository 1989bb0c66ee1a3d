//! The password of the fleet's user is changed while everybody works. Who is connected stays so; who must connect anew is told what to
//! change, and is back as soon as one of the two passwords is right.

use millrace_harness::models;
use millrace_producer::{Client, ConnectError};
use millrace_tests::load::{Plan, Trial};
use millrace_tests::management::User;
use millrace_tests::proxy::{Proxy, Way, Weather};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, milestone};

const SOME: usize = 200;
/// What the remedy must name.
const KEYS: [&str; 3] = ["check user and password", "broker.addresses", "MILLRACE_AMQP_URL"];

fn assert_names_the_keys(text: &str) {
    for key in KEYS {
        assert!(text.contains(key), "`{key}` is missing from: {text}");
    }
}

/// Ends the connections over a proxy, as a restart of something on the way does.
fn cut(proxy: &Proxy) {
    proxy.set(Weather { there: Way::CutAfter(1), back: Way::CutAfter(1) });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_stops_nobody_and_is_named_where_it_is_wrong() {
    let stack = Stack::new().config("m", ONE_INSTANCE).model("m", &models::slow(2));
    let user = User::create(&format!("fleet-{}", stack.prefix()), "old-password", stack.prefix());
    let at_worker = Proxy::before(user.amqp_url()).await;
    let at_client = Proxy::before(user.amqp_url()).await;
    let mut connected = stack.worker_with(&[("MILLRACE_AMQP_URL", user.amqp_url())]);
    let mut cut_off = stack.worker_with(&[("MILLRACE_AMQP_URL", at_worker.amqp_url())]);
    let with = |address: &str| {
        let mut config = stack.client_config();
        config.broker.addresses = vec![address.parse().unwrap()];
        config
    };
    let steady = Client::connect(with(user.amqp_url())).await.unwrap();
    let roaming = Client::connect(with(at_client.amqp_url())).await.unwrap();
    let trial = Trial::begin("changed password", &stack, steady, Plan::SINGLE).await;
    let other = Trial::begin("changed password, cut off", &stack, roaming, Plan::SINGLE).await;
    trial.load().flows(SOME).await;
    other.load().flows(SOME).await;

    let renewed = user.change_password("new-password");
    trial.load().flows(SOME).await;
    other.load().flows(SOME).await;
    // A worker and a client must connect anew, and cannot.
    cut(&at_worker);
    milestone(&mut cut_off, "no connection to the broker").await;
    at_worker.set(Weather::FAIR);
    milestone(&mut cut_off, KEYS[0]).await;
    let log = cut_off.stderr();
    assert_names_the_keys(log.lines().find(|line| line.contains(KEYS[0])).unwrap());
    cut(&at_client);
    trial.load().flows(SOME).await;
    at_client.set(Weather::FAIR);
    let error = Client::connect(with(user.amqp_url())).await.unwrap_err();
    assert!(matches!(error, ConnectError::Topology(_) | ConnectError::Broker(_)), "{error:?}");
    assert_names_the_keys(&error.to_string());
    assert!(cut_off.is_running(), "a worker waits for its operator:\n{}", cut_off.stderr());
    // It is started again with the right one, and loses nothing by that.
    cut_off.terminate();
    let status = tokio::task::spawn_blocking(move || cut_off.wait(READY).unwrap()).await.unwrap();
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    let _restarted = stack.worker_with(&[("MILLRACE_AMQP_URL", &renewed)]);
    trial.load().flows(SOME).await;
    // Or the password is what it was: the client, which nobody has started again, finds its way by itself.
    user.change_password("old-password");
    other.load().flows(SOME).await;
    assert!(connected.is_running(), "{}", connected.stderr());
    other.end().await;
    trial.end().await;
}
