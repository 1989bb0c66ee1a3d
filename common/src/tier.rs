//! Tiers: the classes of users whose requests are kept apart and share the fleet by weight.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a tier, for example `premium`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tier(Arc<str>);

/// A tier or model name with characters outside `[A-Za-z0-9_-]`, or not 1 to 64 of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a valid name: use 1 to 64 of the characters A-Z a-z 0-9 _ -")]
pub struct InvalidName {
    /// The offending text, cut to 80 characters.
    pub name: String,
}

/// Checks the name rule shared by models and tiers: `[A-Za-z0-9_-]{1,64}`.
///
/// The rule keeps names free of the topic separator `.`, the wildcards `*` and `#`, and of path separators.
///
/// # Errors
/// [`InvalidName`] when the rule is broken.
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    let valid = (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if valid { Ok(()) } else { Err(InvalidName { name: name.chars().take(80).collect() }) }
}

impl Tier {
    /// A tier of this name.
    ///
    /// # Errors
    /// [`InvalidName`] when `name` breaks [`check_name`]'s rule.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        check_name(name)?;
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Tier {
    type Error = InvalidName;
    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::new(&name)
    }
}

impl From<Tier> for String {
    fn from(tier: Tier) -> Self {
        tier.0.as_ref().to_owned()
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_clear_of_topics_and_paths() {
        for good in ["a", "premium", "Tier_2-b", &"x".repeat(64)] {
            assert!(Tier::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a.b", "a/b", "..", "#", "*", "ü", "a b", &"x".repeat(65)] {
            assert!(Tier::new(bad).is_err(), "{bad}");
        }
    }
}
