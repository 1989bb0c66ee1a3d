//! RabbitMQ's management API: what AMQP cannot do. Every call blocks; [`Management::run`] moves them off the runtime.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use millrace_producer::Config;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::exit::usage;

const TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 15672;

/// Where the management API is.
#[derive(Args, Clone)]
pub(crate) struct Place {
    /// Address of RabbitMQ's management API [default: http://HOST:15672, HOST being the broker's]. User and password are
    /// those of the broker's address, unless the URL has its own
    #[arg(long, value_name = "URL", env = "MILLRACE_MANAGEMENT_URL", hide_env_values = true)]
    management_url: Option<String>,
}

/// The API of one broker, for one virtual host. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Management {
    agent: ureq::Agent,
    base: String,
    authorization: SecretString,
    vhost: String,
}

/// Why the API did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManagementError {
    /// Nothing answers.
    #[error(
        "no management API at {base} ({reason}); switch it on with `rabbitmq-plugins enable rabbitmq_management` on the \
         broker's host, or name another address with --management-url"
    )]
    Unreachable {
        /// The address, without user and password.
        base: String,
        /// Why.
        reason: String,
    },
    /// It refused.
    #[error("the management API refused {what}: {status} {reason}{hint}")]
    Refused {
        /// The method and path.
        what: String,
        /// HTTP status.
        status: u16,
        /// The API's words.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
}

impl Management {
    /// Prepares; connects to nothing yet.
    pub(crate) fn new(config: &Config, place: &Place) -> Result<Self> {
        let address = &config.broker.addresses[0];
        let default = || format!("http://{}:{DEFAULT_PORT}", address.host());
        let url = place.management_url.clone().filter(|url| !url.is_empty()).unwrap_or_else(default);
        let (base, user_info) = split(&url).ok_or_else(|| {
            usage("--management-url is not an address: write http://HOST:15672 or https://HOST:15671")
        })?;
        let credentials = user_info.unwrap_or_else(|| format!("{}:{}", address.user(), address.password()));
        Ok(Self {
            agent: agent(config)?,
            base,
            authorization: format!("Basic {}", STANDARD.encode(credentials)).into(),
            vhost: encode(address.vhost()),
        })
    }

    /// The address, without user and password.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Runs blocking calls off the runtime.
    pub(crate) async fn run<T, F>(&self, calls: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T> + Send + 'static,
    {
        let management = self.clone();
        tokio::task::spawn_blocking(move || calls(&management)).await.context("a management call panicked")?
    }

    /// `GET /api/<kind>`.
    pub(crate) fn get<T: DeserializeOwned>(&self, kind: &str) -> Result<T> {
        self.fetch(&format!("/api/{kind}"))
    }

    /// `GET /api/<kind>/<this virtual host>`.
    pub(crate) fn list<T: DeserializeOwned>(&self, kind: &str) -> Result<T> {
        self.fetch(&format!("/api/{kind}/{}", self.vhost))
    }

    /// `PUT /api/<kind>/<this virtual host>/<name>`.
    pub(crate) fn put<T: Serialize>(&self, kind: &str, name: &str, value: &T) -> Result<()> {
        self.send(&format!("/api/{kind}/{}/{}", self.vhost, encode(name)), value)
    }

    /// `PUT /api/users/<name>`; users belong to no virtual host.
    pub(crate) fn put_user<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.send(&format!("/api/users/{}", encode(name)), value)
    }

    fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = self.agent.get(format!("{}{path}", self.base));
        let answer = request.header("authorization", self.authorization.expose_secret()).call();
        let mut answer = self.checked("GET", path, answer)?;
        // Bindings of a large broker are many.
        let read = answer.body_mut().with_config().limit(256 << 20).read_json();
        read.with_context(|| format!("{}{path} answered with something else than RabbitMQ would", self.base))
    }

    fn send<T: Serialize>(&self, path: &str, value: &T) -> Result<()> {
        let request = self.agent.put(format!("{}{path}", self.base));
        let answer = request.header("authorization", self.authorization.expose_secret()).send_json(value);
        self.checked("PUT", path, answer)?;
        Ok(())
    }

    fn checked(
        &self,
        method: &str,
        path: &str,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<ureq::http::Response<ureq::Body>, ManagementError> {
        let unreachable = |reason: String| ManagementError::Unreachable { base: self.base.clone(), reason };
        let mut answer = answer.map_err(|error| unreachable(error.to_string()))?;
        let status = answer.status().as_u16();
        if answer.status().is_success() {
            return Ok(answer);
        }
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        Err(ManagementError::Refused {
            what: format!("{method} {path}"),
            status,
            reason: text.chars().take(300).collect(),
            hint: match status {
                401 => {
                    "; check user and password, and give the user a tag: rabbitmqctl set_user_tags USER policymaker"
                }
                403 => "; the user's tags do not allow it: policymaker for policies, administrator for users",
                404 => "; is this the management API, and does the virtual host exist?",
                _ => "",
            },
        })
    }
}

fn agent(config: &Config) -> Result<ureq::Agent> {
    let mut tls = TlsConfig::builder();
    let ca_file = &config.broker.tls.ca_file;
    if !ca_file.is_empty() {
        let unreadable = || format!("cannot read {ca_file} (broker.tls.ca_file)");
        let pem = std::fs::read(ca_file).with_context(unreadable)?;
        let certificate = Certificate::from_pem(&pem).with_context(unreadable)?;
        tls = tls.root_certs(RootCerts::new_with_certs(&[certificate]));
    }
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        // A broker stands beside its clients, not behind the way out.
        .proxy(None)
        .tls_config(tls.build())
        .build();
    Ok(agent.into())
}

/// The address without user and password, and those, decoded.
fn split(url: &str) -> Option<(String, Option<String>)> {
    let (scheme, rest) = url.split_once("://")?;
    if !matches!(scheme, "http" | "https") {
        return None;
    }
    let (user_info, host) = match rest.rsplit_once('@') {
        Some((user_info, host)) => (Some(decode(user_info)?), host),
        None => (None, rest),
    };
    let host = host.trim_end_matches('/');
    let is_plain = !host.is_empty() && !host.contains(['?', '#', ' ']);
    is_plain.then(|| (format!("{scheme}://{host}"), user_info))
}

/// Percent-encodes everything but what is always safe.
fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(first);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_are_taken_out_of_the_address() {
        let split = |url| split(url).unwrap();
        assert_eq!(split("http://h:15672"), ("http://h:15672".to_owned(), None));
        let (base, user_info) = split("https://ann:p%40ss@h:15671/");
        assert_eq!((base.as_str(), user_info.as_deref()), ("https://h:15671", Some("ann:p@ss")));
        for bad in ["h:15672", "ftp://h", "http://", "http://a%zz@h", "http://h?x"] {
            assert!(super::split(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn names_are_encoded_for_paths() {
        assert_eq!(encode("/"), "%2F");
        assert_eq!(encode("millrace.request.a_b-1"), "millrace.request.a_b-1");
        assert_eq!(decode(&encode("ä/ %")).as_deref(), Some("ä/ %"));
    }

    #[test]
    fn errors_do_not_show_the_password() {
        let config = Config::load(None).unwrap();
        let place = Place { management_url: Some("http://ann:s3cret@127.0.0.1:1".to_owned()) };
        let management = Management::new(&config, &place).unwrap();
        let error = management.get::<serde_json::Value>("overview").unwrap_err();
        let text = format!("{error:#} {error:?}");
        assert!(!text.contains("s3cret") && text.contains("127.0.0.1:1"), "{text}");
    }
}
