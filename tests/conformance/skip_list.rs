//! The committed list of what does not simply pass, and why.

use std::fs;
use std::path::Path;

use serde::Deserialize;

/// What a listed case does instead of passing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The library does not load the model. Left out of the repository.
    Refused,
    /// The library loads the model and fails to run it. The worker must answer `backend_error`.
    RunFails,
    /// The reply is bit-identical to a direct run, but both differ from the stored output.
    Differs,
}

/// Some cases and their reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) reason: String,
    /// What of the machine it hangs on, if it does: elsewhere these cases may pass.
    pub(crate) depends_on: Option<String>,
    /// Names; `*` stands for any text.
    pub(crate) cases: Vec<String>,
}

/// `skip.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SkipList {
    skip: Vec<Entry>,
}

impl SkipList {
    /// Reads the list.
    pub(crate) fn load(file: &Path) -> Self {
        toml::from_str(&fs::read_to_string(file).unwrap()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The entry that lists a case.
    ///
    /// # Panics
    /// When two do: one of the reasons would be wrong.
    pub(crate) fn find(&self, case: &str) -> Option<&Entry> {
        let mut listing = self.skip.iter().filter(|entry| entry.lists(case));
        let first = listing.next();
        assert!(listing.next().is_none(), "{case} is listed twice");
        first
    }

    /// Names and patterns that no case has.
    pub(crate) fn idle<'a>(&'a self, cases: &[String]) -> Vec<&'a str> {
        let patterns = self.skip.iter().flat_map(|entry| &entry.cases);
        patterns
            .map(String::as_str)
            .filter(|pattern| !cases.iter().any(|case| matches(pattern, case)))
            .collect()
    }
}

impl Entry {
    /// Whether its cases may pass all the same.
    pub(crate) fn may_pass(&self) -> bool {
        self.depends_on.is_some()
    }

    fn lists(&self, case: &str) -> bool {
        self.cases.iter().any(|pattern| matches(pattern, case))
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(after, &rest[at..]))
}

#[test]
fn a_star_stands_for_any_text() {
    for (pattern, name, is_match) in [
        ("test_a", "test_a", true),
        ("test_a", "test_ab", false),
        ("test_a*", "test_a", true),
        ("test_a*", "test_ab", true),
        ("*_cuda", "test_a", false),
        ("test_*_x_*", "test_a_x_b", true),
        ("test_*_x", "test_a_x_b", false),
    ] {
        assert_eq!(matches(pattern, name), is_match, "{pattern} {name}");
    }
}
