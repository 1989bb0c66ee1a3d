//! The shared broker's management API, for what AMQP cannot say: users and policies.

use millrace_harness::broker;
use serde_json::{Value, json};

/// A broker user that ends with this value.
pub struct User {
    name: String,
    amqp_url: String,
}

impl User {
    /// Creates a user with every permission on the names that begin with `prefix`.
    pub fn create(name: &str, password: &str, prefix: &str) -> Self {
        let everything = format!("^{prefix}\\..*$");
        put(&format!("users/{name}"), &json!({"password": password, "tags": ""}));
        put(
            &format!("permissions/%2f/{name}"),
            &json!({"configure": everything, "write": everything, "read": everything}),
        );
        Self::existing(name, password)
    }

    /// A user that somebody else creates, or has.
    pub fn existing(name: &str, password: &str) -> Self {
        let (_, rest) = broker::shared().amqp_url.rsplit_once('@').expect("the address names a user");
        Self { name: name.to_owned(), amqp_url: format!("amqp://{name}:{password}@{rest}") }
    }

    /// A user that may do nothing in the virtual host but connect.
    pub fn without_rights(name: &str, password: &str) -> Self {
        let nothing = json!({"configure": "^$", "write": "^$", "read": "^$"});
        put(&format!("users/{name}"), &json!({"password": password, "tags": ""}));
        put(&format!("permissions/%2f/{name}"), &nothing);
        Self::existing(name, password)
    }

    /// Gives it another password; returns the address with that.
    pub fn change_password(&self, password: &str) -> String {
        put(&format!("users/{}", self.name), &json!({"password": password, "tags": ""}));
        let (_, rest) = self.amqp_url.rsplit_once('@').expect("the address names a user");
        format!("amqp://{}:{password}@{rest}", self.name)
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The broker's address for this user, password included.
    pub fn amqp_url(&self) -> &str {
        &self.amqp_url
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = ureq::delete(url(&format!("users/{}", self.name))).call();
    }
}

fn put(path: &str, body: &Value) {
    ureq::put(url(path)).send_json(body).unwrap_or_else(|error| panic!("PUT {path}: {error}"));
}

fn url(path: &str) -> String {
    format!("{}/api/{path}", broker::shared().management_url)
}
