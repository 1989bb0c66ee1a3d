//! Live switches: what an operator changes for the whole fleet, for a while and without a restart.
//!
//! Each change is a record in a stream that every worker reads from its beginning: state and audit log in one. Every switch ends by
//! itself, after a week at most: what should stay belongs in the configuration, and no record that still counts is older than the
//! stream keeps.

mod follow;
mod setting;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::amqp::message::now_ms;
use crate::amqp::properties::Properties;
use crate::amqp::publisher::Message;
use crate::amqp::topology::Names;
use crate::config::load::Invalid;
use crate::config::sections::within;

pub use follow::{Follower, Logged, Reader};
pub use setting::{Feature, Forced, NAMES, Setting};

/// The version of the format. Readers skip records of a newer one.
pub const FORMAT: u32 = 1;
/// The longest that a switch holds.
pub const LONGEST: Duration = Duration::from_secs(7 * 86_400);
/// Longest record that is read.
const MAX_BYTES: usize = 64 << 10;
/// Switches in one record, at most.
pub const MOST_IN_RECORD: usize = 100;
/// Switches that hold at the same time, at most.
const MOST: usize = 10_000;
/// Characters of a reason.
const MOST_REASON: usize = 1_000;
/// How far clocks may differ.
const MOST_SKEW_MS: u64 = 600_000;

/// A change of some switches, by one operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// When it was made, milliseconds since the epoch.
    pub at_ms: u64,
    /// How long what is set holds.
    #[serde(default)]
    pub seconds: u64,
    /// Values by name.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Names of those that hold no more.
    #[serde(default)]
    pub clear: Vec<String>,
    /// Why, for people.
    pub reason: String,
}

/// A switch that was set.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What it is set to.
    pub setting: Setting,
    /// When, milliseconds since the epoch.
    pub at_ms: u64,
    /// When it ends, milliseconds since the epoch.
    pub until_ms: u64,
    /// The broker user that set it.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl Entry {
    /// Whoever set it may have a clock that is ahead, but not so far: whenever the record is read, it begins at the same time.
    fn begins_ms(&self) -> u64 {
        self.at_ms.saturating_sub(MOST_SKEW_MS)
    }

    fn holds(&self, now_ms: u64) -> bool {
        self.begins_ms() <= now_ms && self.until_ms > now_ms
    }
}

impl Record {
    /// Sets switches for a while.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn set(settings: &[Setting], hold: Duration, reason: &str) -> Result<Self, Invalid> {
        let set = settings.iter().map(|setting| (setting.name(), setting.value())).collect();
        Self { set, seconds: hold.as_secs(), ..Self::new(reason) }.checked()
    }

    /// Ends switches before their time.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn clear(names: Vec<String>, reason: &str) -> Result<Self, Invalid> {
        Self { clear: names, ..Self::new(reason) }.checked()
    }

    fn new(reason: &str) -> Self {
        Self {
            format: FORMAT,
            at_ms: now_ms(),
            seconds: 0,
            set: BTreeMap::new(),
            clear: Vec::new(),
            reason: reason.to_owned(),
        }
    }

    /// Reads a body.
    ///
    /// # Errors
    /// Why it is no record. Nothing of it counts then.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        if body.len() > MAX_BYTES {
            return Err(format!("longer than {MAX_BYTES} bytes"));
        }
        let record: Self = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if record.format != FORMAT {
            return Err(format!("of format {}", record.format));
        }
        record.checked().map_err(|error| error.to_string())
    }

    fn checked(self) -> Result<Self, Invalid> {
        let count = self.set.len() + self.clear.len();
        within("the number of switches", count as u64, 1, MOST_IN_RECORD as u64)?;
        if !self.set.is_empty() {
            within("the time in seconds", self.seconds, 1, LONGEST.as_secs())?;
        }
        if self.reason.trim().is_empty() || self.reason.chars().count() > MOST_REASON {
            let remedy = format!("say why, in {MOST_REASON} characters at most");
            return Err(Invalid::new("the reason", format!("`{:.20}`", self.reason), remedy));
        }
        self.settings()?;
        self.clear.iter().try_for_each(|name| Setting::check_name(name))?;
        Ok(self)
    }

    /// What it sets.
    ///
    /// # Errors
    /// The first that is none.
    pub fn settings(&self) -> Result<Vec<Setting>, Invalid> {
        self.set.iter().map(|(name, value)| Setting::parse(name, value)).collect()
    }

    /// As a message of this user.
    pub fn message(&self, names: &Names, user: &str) -> Message {
        Message {
            exchange: names.switches().into(),
            routing_key: String::new(),
            properties: Properties::persistent().with_content_type("application/json").with_user_id(user),
            body: serde_json::to_vec(self).expect("text serializes").into(),
            mandatory: true,
        }
    }
}

/// The switches as of a number of records. Plain data: time is a parameter.
#[derive(Clone, Debug, Default)]
pub struct Switches {
    entries: BTreeMap<String, Entry>,
}

impl Switches {
    /// Takes the next record.
    ///
    /// # Errors
    /// Why nothing of it counts.
    pub fn apply(&mut self, record: &Record, by: &str, now_ms: u64) -> Result<(), String> {
        let settings = record.settings().map_err(|error| error.to_string())?;
        self.entries.retain(|_, entry| entry.until_ms > now_ms);
        let seconds = record.seconds.min(LONGEST.as_secs());
        let until_ms = record.at_ms.saturating_add(seconds * 1000);
        let entries: Vec<(String, Entry)> = settings
            .into_iter()
            .map(|setting| {
                let (by, reason) = (by.to_owned(), record.reason.clone());
                (setting.name(), Entry { setting, at_ms: record.at_ms, until_ms, by, reason })
            })
            .collect();
        let fresh = entries.iter().filter(|(name, _)| !self.entries.contains_key(name)).count();
        if self.entries.len() + fresh > MOST {
            return Err(format!("more than {MOST} switches hold"));
        }
        for name in &record.clear {
            self.entries.remove(name);
        }
        self.entries.extend(entries);
        Ok(())
    }

    /// Those that hold, by name.
    pub fn hold(&self, now_ms: u64) -> Vec<Entry> {
        self.entries.values().filter(|entry| entry.holds(now_ms)).cloned().collect()
    }

    /// When the first of them begins or ends.
    pub fn next_change(&self, now_ms: u64) -> Option<u64> {
        let changes = self.entries.values().flat_map(|entry| [entry.begins_ms(), entry.until_ms]);
        changes.filter(|&change| change > now_ms).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000;

    fn weight(weight: u32) -> Setting {
        Setting::parse("tier.free.weight", &weight.to_string()).unwrap()
    }

    fn set(setting: Setting, at_ms: u64, seconds: u64) -> Record {
        let record = Record::set(&[setting], Duration::from_secs(seconds), "why").unwrap();
        Record { at_ms, ..record }
    }

    fn values(switches: &Switches, now_ms: u64) -> Vec<String> {
        switches.hold(now_ms).iter().map(|entry| entry.setting.to_string()).collect()
    }

    #[test]
    fn a_switch_holds_until_its_end_or_the_next_word_on_it() {
        let mut switches = Switches::default();
        switches.apply(&set(weight(2), 0, 10), "ann", 0).unwrap();
        switches.apply(&set(weight(3), SECOND, 10), "bob", SECOND).unwrap();
        assert_eq!(values(&switches, 10_500), ["tier.free.weight=3"]);
        assert_eq!(switches.next_change(10_500), Some(11_000));
        assert_eq!(switches.hold(0)[0].by, "bob");
        assert!(values(&switches, 11_000).is_empty() && switches.next_change(11_000).is_none());
        let clear = Record::clear(vec!["tier.free.weight".into(), "tier.old.weight".into()], "done").unwrap();
        switches.apply(&clear, "ann", clear.at_ms).unwrap();
        assert!(values(&switches, 10_500).is_empty());
    }

    #[test]
    fn a_record_counts_whole_or_not_at_all() {
        let good = serde_json::json!({"format": 1, "at_ms": 1, "seconds": 5, "set": {"tier.free.weight": "2"}, "reason": "r"});
        Record::read(good.to_string().as_bytes()).unwrap();
        for (key, value) in [
            ("format", 2.into()),
            ("seconds", 0.into()),
            ("seconds", (LONGEST.as_secs() + 1).into()),
            ("reason", " ".into()),
            ("set", serde_json::json!({})),
            ("set", serde_json::json!({"tier.free.weight": "2", "tier.free.max_share": "7"})),
            ("set", serde_json::json!({"tier.free.weight": "2", "tier.free.wieght": "2"})),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            assert!(Record::read(bad.to_string().as_bytes()).is_err(), "{bad}");
        }
        assert!(Record::read(&vec![b' '; MAX_BYTES + 1]).is_err() && Record::read(b"\xff").is_err());
    }

    #[test]
    fn a_record_of_the_future_begins_when_its_time_comes_whenever_it_is_read() {
        let mut switches = Switches::default();
        switches.apply(&set(weight(2), MOST_SKEW_MS + 5, 1_000), "ann", 0).unwrap();
        assert!(values(&switches, 4).is_empty());
        assert_eq!(switches.next_change(4), Some(5));
        assert_eq!(values(&switches, 5), ["tier.free.weight=2"]);
        switches.apply(&Record::clear(vec!["tier.free.weight".into()], "r").unwrap(), "ann", 1).unwrap();
        assert!(values(&switches, 5).is_empty(), "it can be cleared before");
    }

    proptest! {
        /// Whoever reads from the beginning, and however late, finds what those who were there found.
        #[test]
        fn late_readers_find_the_same(
            records in prop::collection::vec((0usize..3, 1u32..5, 1u64..20, 0u64..4, 0u64..700_000, any::<bool>()), 1..60),
        ) {
            let names = ["tier.a.weight", "tier.b.weight", "tier.c.weight"];
            let mut now = 0;
            let (mut early, mut written) = (Switches::default(), Vec::new());
            for (name, value, seconds, pause, ahead, clears) in records {
                now += pause * SECOND;
                let record = match clears {
                    true => Record { at_ms: now, ..Record::clear(vec![names[name].to_owned()], "r").unwrap() },
                    false => set(Setting::parse(names[name], &value.to_string()).unwrap(), now + ahead, seconds),
                };
                early.apply(&record, "u", now).unwrap();
                written.push(record);
                let mut late = Switches::default();
                written.iter().for_each(|record| late.apply(record, "u", now).unwrap());
                prop_assert_eq!(early.hold(now), late.hold(now));
                prop_assert!(early.hold(now).iter().all(|entry| entry.until_ms > now));
            }
        }
    }
}
