//! One broker for all tests that can share: a start takes seconds, so every test takes a prefix of its own instead.

use std::sync::OnceLock;

use super::{Broker, BrokerOptions};

/// Names the broker to use; `cargo xtask test` starts one for all test binaries and sets it.
pub const AMQP_VARIABLE: &str = "MILLRACE_TEST_AMQP_URL";
/// Its management API.
pub const MANAGEMENT_VARIABLE: &str = "MILLRACE_TEST_MANAGEMENT_URL";

/// Where the shared broker is. Both addresses carry user and password.
#[derive(Debug, Clone)]
pub struct SharedBroker {
    pub amqp_url: String,
    pub management_url: String,
}

/// The broker that the environment names, else one started at the first call, which ends with this process.
///
/// # Panics
/// When neither variable is set and no broker can be started: no test could go on.
pub fn shared() -> &'static SharedBroker {
    static SHARED: OnceLock<(SharedBroker, Option<Broker>)> = OnceLock::new();
    &SHARED.get_or_init(find_or_start).0
}

fn find_or_start() -> (SharedBroker, Option<Broker>) {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(amqp_url) = set(AMQP_VARIABLE) {
        let management_url = set(MANAGEMENT_VARIABLE)
            .unwrap_or_else(|| panic!("{AMQP_VARIABLE} is set, so {MANAGEMENT_VARIABLE} must be too"));
        let shared = SharedBroker { amqp_url, management_url };
        return (shared, None);
    }
    let broker =
        Broker::start(BrokerOptions::default()).unwrap_or_else(|error| panic!("no shared broker: {error:#}"));
    let shared = SharedBroker { amqp_url: broker.amqp_url(), management_url: broker.management_url() };
    (shared, Some(broker))
}
