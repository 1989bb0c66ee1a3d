//! The broker's users by role, each with the least that it needs while an operator creates the topology.
//!
//! RabbitMQ searches its regular expressions: all are anchored. A queue is bound by those who may write to it and read from
//! the exchange. A user without a topic permission has all of them, hence an entry for every user and topic exchange.

use std::env::VarError;
use std::str::FromStr;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use millrace_common::tier::{Tier, check_name};
use millrace_producer::Config;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::exit::usage;

const NOTHING: &str = "^$";

/// Which users are wanted.
#[derive(Args)]
pub(super) struct Roles {
    /// Set up the users `<prefix>-worker`, `<prefix>-producer` and `<prefix>-operator` as well, each with the least permissions
    /// that its role needs. Passwords come from MILLRACE_USER_WORKER_PASSWORD, MILLRACE_USER_PRODUCER_PASSWORD and
    /// MILLRACE_USER_OPERATOR_PASSWORD; a role without one is left out
    #[arg(long)]
    pub(super) users: bool,

    /// Besides, a user `<prefix>-producer-NAME` that may send requests in these tiers only, for clients that must not choose
    /// their tier. Its password comes from MILLRACE_USER_PRODUCER_NAME_PASSWORD, in capitals, `-` as `_`. May be repeated
    #[arg(long, value_name = "NAME=TIER[,TIER]", requires = "users")]
    producer: Vec<TierProducer>,
}

/// A producer of some tiers.
#[derive(Clone, Debug)]
pub(super) struct TierProducer {
    name: String,
    tiers: Vec<Tier>,
}

impl FromStr for TierProducer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, tiers) = text.split_once('=').ok_or("write NAME=TIER[,TIER]")?;
        check_name(name).map_err(|error| error.to_string())?;
        let tiers = tiers.split(',').map(|tier| Tier::new(tier).map_err(|error| error.to_string()));
        Ok(Self { name: name.to_owned(), tiers: tiers.collect::<Result<_, _>>()? })
    }
}

/// A user of the broker.
pub(super) struct User {
    /// `<prefix>-<role>`.
    pub(super) name: String,
    /// The environment variable of its password.
    pub(super) variable: String,
    /// Its password, where the variable is set.
    pub(super) password: Option<SecretString>,
    tags: &'static str,
    configure: String,
    write: String,
    read: String,
    /// Topic exchange, what may be published, what may be bound.
    topics: Vec<(String, String, String)>,
}

/// The users wanted, with the passwords that the environment gives; those without one are left out, and said to be.
pub(super) fn wanted(config: &Config, roles: &Roles) -> Result<Vec<User>> {
    if !roles.users {
        return Ok(Vec::new());
    }
    let (with, without): (Vec<User>, Vec<User>) =
        all(config, &roles.producer)?.into_iter().partition(|user| user.password.is_some());
    for user in without {
        eprintln!("{} is left out: set {} to its password", user.name, user.variable);
    }
    Ok(with)
}

/// All users, with and without password.
pub(super) fn all(config: &Config, producers: &[TierProducer]) -> Result<Vec<User>> {
    let mut users = vec![worker(config), producer(config), operator(config)];
    for named in producers {
        if let Some(unknown) = named.tiers.iter().find(|tier| config.topology.tier(tier).is_none()) {
            return Err(usage(format!("--producer {}: topology.tiers has no {unknown}", named.name)));
        }
        let user = producer_of(config, &format!("producer-{}", named.name), &named.tiers);
        if let Some(other) = users.iter().find(|other| other.variable == user.variable) {
            let (name, other, variable) = (&named.name, &other.name, &user.variable);
            return Err(usage(format!(
                "--producer {name}: {other} has its password in {variable} too; choose another name"
            )));
        }
        users.push(user);
    }
    for user in &mut users {
        user.password = match std::env::var(&user.variable) {
            Ok(password) if !password.is_empty() => Some(password.into()),
            Ok(_) | Err(VarError::NotPresent) => None,
            Err(VarError::NotUnicode(_)) => return Err(usage(format!("{} is not UTF-8", user.variable))),
        };
    }
    Ok(users)
}

/// Consumes tier queues; publishes replies, retries, dead letters and its status.
fn worker(config: &Config) -> User {
    let p = escaped_prefix(config);
    let status = format!("{p}\\.status");
    let control = format!("{p}\\.control");
    User {
        name: format!("{}-worker", config.topology.prefix),
        variable: variable("worker"),
        password: None,
        tags: "",
        configure: format!("^({status}|{control})\\..+$"),
        write: format!(
            "^({p}\\.(reply|solo|retry\\.[0-9]+|dead|dead\\.inbox)|{status}|{status}\\..+|{control}\\..+)$"
        ),
        read: format!(
            "^({p}\\.(request|solo)\\..+|{p}\\.(dead\\.inbox|switches)|{status}|{status}\\..+|{control}|{control}\\..+)$"
        ),
        topics: topics(config, NOTHING.to_owned(), "^.+$"),
    }
}

/// Publishes requests in every tier.
fn producer(config: &Config) -> User {
    let tiers: Vec<Tier> = config.topology.tiers.iter().map(|tier| tier.name.clone()).collect();
    producer_of(config, "producer", &tiers)
}

fn variable(role: &str) -> String {
    format!("MILLRACE_USER_{}_PASSWORD", role.to_ascii_uppercase().replace('-', "_"))
}

/// Publishes requests in these tiers; reads its own reply queues and the fleet's status.
fn producer_of(config: &Config, role: &str, tiers: &[Tier]) -> User {
    let p = escaped_prefix(config);
    let name = format!("{}-{role}", config.topology.prefix);
    let own_replies = format!("{p}\\.reply\\.{name}\\.[A-Za-z0-9_-]+");
    let listeners = format!("{p}\\.status\\..+");
    let tiers: Vec<&str> = tiers.iter().map(Tier::as_str).collect();
    User {
        variable: variable(role),
        password: None,
        tags: "",
        configure: format!("^({own_replies}|{listeners})$"),
        write: format!("^({p}\\.(request|control)|{own_replies}|{listeners})$"),
        read: format!("^({p}\\.(reply|status)|{own_replies}|{listeners})$"),
        topics: topics(config, format!("^[A-Za-z0-9_-]+\\.({})$", tiers.join("|")), NOTHING),
        name,
    }
}

/// Does everything to Millrace's own objects, and sets policies.
fn operator(config: &Config) -> User {
    let all = format!("^{}\\..+$", escaped_prefix(config));
    User {
        name: format!("{}-operator", config.topology.prefix),
        variable: variable("operator"),
        password: None,
        tags: "policymaker,monitoring",
        configure: all.clone(),
        write: all.clone(),
        read: all,
        topics: topics(config, "^.+$".to_owned(), "^.+$"),
    }
}

/// Everybody may hear the fleet; `status` says what may be announced, `request` what may be asked for.
fn topics(config: &Config, request: String, status: &str) -> Vec<(String, String, String)> {
    let names = config.topology.names();
    let may_bind_requests = if status == NOTHING || request == NOTHING { NOTHING } else { "^.+$" };
    vec![
        (names.request_exchange(), request, may_bind_requests.to_owned()),
        (names.status_exchange(), status.to_owned(), "^.*$".to_owned()),
    ]
}

/// Prefixes hold no characters that mean something in regular expressions but in brackets.
fn escaped_prefix(config: &Config) -> &str {
    &config.topology.prefix
}

impl User {
    /// Password and tags, as the management API takes them.
    pub(super) fn account(&self) -> Value {
        let password = self.password.as_ref().map(ExposeSecret::expose_secret);
        json!({ "password": password, "tags": self.tags })
    }

    /// The account with a hashed password, as a definitions file has it; salted anew each time.
    pub(super) fn hashed_account(&self) -> Value {
        let password = self.password.as_ref().map_or("", ExposeSecret::expose_secret);
        json!({
            "name": self.name,
            "password_hash": password_hash(password, rand::random()),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": self.tags,
        })
    }

    /// Permissions in a virtual host.
    pub(super) fn permissions(&self) -> Value {
        json!({ "configure": self.configure, "write": self.write, "read": self.read })
    }

    /// Topic permissions in a virtual host.
    pub(super) fn topics(&self) -> impl Iterator<Item = Value> {
        self.topics
            .iter()
            .map(|(exchange, write, read)| json!({ "exchange": exchange, "write": write, "read": read }))
    }
}

/// `base64(salt + sha256(salt + password))`, by <https://www.rabbitmq.com/docs/passwords>.
fn password_hash(password: &str, salt: [u8; 4]) -> String {
    let digest = Sha256::new().chain_update(salt).chain_update(password).finalize();
    STANDARD.encode([&salt[..], &digest[..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_rabbitmqs() {
        // The example of RabbitMQ's documentation: salt 908D C60A, password test12.
        assert_eq!(
            password_hash("test12", [0x90, 0x8d, 0xc6, 0x0a]),
            "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
        );
    }

    #[test]
    fn every_pattern_is_anchored_and_no_role_but_the_operator_creates_tier_queues() {
        let config = Config::load(None).unwrap();
        let paying: TierProducer = "paying-ones=premium,enterprise".parse().unwrap();
        let users = all(&config, &[paying]).unwrap();
        assert_eq!(users[3].name, "millrace-producer-paying-ones");
        assert_eq!(users[3].variable, "MILLRACE_USER_PRODUCER_PAYING_ONES_PASSWORD");
        assert_eq!(users[3].topics[0].1, "^[A-Za-z0-9_-]+\\.(premium|enterprise)$");
        assert!(all(&config, &["a=gold".parse().unwrap()]).is_err());
        for bad in ["a", "a=", "=free", "a.b=free", "a=free|premium"] {
            assert!(bad.parse::<TierProducer>().is_err(), "{bad}");
        }
        for user in users {
            let topics = user.topics.iter().flat_map(|(_, write, read)| [write, read]);
            for pattern in [&user.configure, &user.write, &user.read].into_iter().chain(topics) {
                assert!(pattern.starts_with('^') && pattern.ends_with('$'), "{}: {pattern}", user.name);
            }
            assert!(!user.configure.contains("request"), "{}", user.name);
            assert_eq!(user.topics.len(), 2);
        }
        let producer = producer(&config);
        assert_eq!(producer.topics[0].1, "^[A-Za-z0-9_-]+\\.(premium|enterprise|free)$");
        assert!(!producer.write.contains("dead") && !producer.read.contains("request"));
    }
}
