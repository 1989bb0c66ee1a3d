//! Broker addresses that never print their password.

use std::fmt;
use std::str::FromStr;

use lapin::uri::{AMQPScheme, AMQPUri};
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
        Ok(Self(uri))
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;
    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}:***@{}:{}/{}",
            self.0.scheme,
            self.user(),
            self.host(),
            self.port(),
            self.vhost().replace('/', "%2f")
        )
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
    fn errors_do_not_repeat_the_address() {
        for bad in ["http://ann:s3cret@h/", "s3cret", "amqp://ann:s3cret@h:port/x", "amqp://ann:s3cret@h/"] {
            let error = bad.parse::<Address>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }
}
