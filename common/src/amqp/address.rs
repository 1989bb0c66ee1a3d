//! Broker addresses that never print their password.

use std::fmt;
use std::str::FromStr;

use lapin::uri::{AMQPScheme, AMQPUri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize, Serializer};

/// `amqp://user:password@host:port/vhost` or `amqps://…`. `Debug`, `Display` and `Serialize` show `***` for the password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address(AMQPUri);

/// A broker address that cannot be parsed. The address itself is not repeated: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a broker address ({reason}); write amqp://USER:PASSWORD@HOST:PORT/VHOST or amqps://…, the default virtual host as %2f"
)]
pub struct InvalidAddress {
    reason: &'static str,
}

impl Address {
    /// The host name.
    pub fn host(&self) -> &str {
        &self.0.authority.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.authority.port
    }

    /// The user that connections of this address have.
    pub fn user(&self) -> &str {
        &self.0.authority.userinfo.username
    }

    /// The password, for the management API. Never log it.
    pub fn password(&self) -> &str {
        &self.0.authority.userinfo.password
    }

    /// The virtual host.
    pub fn vhost(&self) -> &str {
        &self.0.vhost
    }

    /// Whether the connection is encrypted (`amqps`).
    pub fn is_encrypted(&self) -> bool {
        self.0.scheme == AMQPScheme::AMQPS
    }

    pub(super) fn uri(&self) -> AMQPUri {
        self.0.clone()
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if !text.starts_with("amqp://") && !text.starts_with("amqps://") {
            return Err(InvalidAddress { reason: "it does not start with amqp:// or amqps://" });
        }
        // The parser's own message is dropped: it repeats parts of the text.
        let uri = text.parse::<AMQPUri>().map_err(|_| InvalidAddress { reason: "it is not a URL" })?;
        if uri.vhost.is_empty() {
            return Err(InvalidAddress { reason: "the virtual host is empty" });
        }
        // The parser decodes it, so a host could hold what looks like a port or a path.
        let host = uri.authority.host.as_str();
        let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(ipv6) => ipv6.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte)),
            None => host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
        };
        if !is_host {
            return Err(InvalidAddress { reason: "the host name holds what no host name does" });
        }
        Ok(Self(uri))
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;
    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

/// As it is written in an address.
fn encoded(text: &str) -> String {
    const PLAIN: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, &PLAIN).to_string().replace("%2F", "%2f")
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, vhost) = (encoded(self.user()), encoded(self.vhost()));
        write!(f, "{}://{user}:***@{}:{}/{vhost}", self.0.scheme, self.host(), self.port())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_printing_shows_the_password() {
        let address: Address = "amqps://ann:s3cret@broker:5671/%2f".parse().unwrap();
        let shown =
            format!("{address} {address:?} {address:#?} {}", serde_json::to_string(&address).unwrap());
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("amqps://ann:***@broker:5671/%2f"), "{shown}");
        assert_eq!(address.vhost(), "/");
    }

    #[test]
    fn what_is_printed_is_the_same_address() {
        for text in
            ["amqp://a%3Ab%40c:s@h/x%2541%2f", "amqps://ann:s@[::1]:5671/%2f", "amqp://ann:s@h_1.b-c/v"]
        {
            let address: Address = text.parse().unwrap();
            let again: Address = address.to_string().parse().unwrap();
            let parts = |address: &Address| {
                (
                    address.user().to_owned(),
                    address.vhost().to_owned(),
                    address.host().to_owned(),
                    address.port(),
                )
            };
            assert_eq!(parts(&again), parts(&address), "{address}");
        }
    }

    #[test]
    fn errors_do_not_repeat_the_address() {
        for bad in [
            "amqp://ann:s3cret@h%2f:1/x",
            "amqp://ann:s3cret@h*/x",
            "amqp://ann:s3cret@h%3A/x",
            "http://ann:s3cret@h/",
            "s3cret",
            "amqp://ann:s3cret@h:port/x",
            "amqp://ann:s3cret@h/",
        ] {
            let error = bad.parse::<Address>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }
}
