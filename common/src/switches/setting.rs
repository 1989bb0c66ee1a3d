//! The switches that there are, by name and value.

use std::fmt;

use crate::config::load::Invalid;
use crate::config::sections::within;
use crate::telemetry::logs;
use crate::tier::{Tier, check_name};

/// The names, for people.
pub const NAMES: &str = "  tier.TIER.weight=N
      the tier's share while several are backlogged, 1 to 10000
  tier.TIER.max_share=PART
      the largest part of each model's time that the tier may take, 0.01 to 1
  model.MODEL.circuit_breaker=forced_open | disabled
      the model is left alone, its requests go down their ladders; or it runs, whatever fails
  model.MODEL.TIER.degraded=on
      the tier's requests go down the model's ladder without a run, and are refused at its end
  feature.packing=off, feature.cache=off
      clients join rows in one request no more, or answer from what they keep
  feature.bundles=off, feature.access_log=on
      workers send each reply by itself, or log a line for each request
  logs.filter=FILTER
      what workers log, as logs.filter of the configuration";

/// A switch and its value.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// `tier.TIER.weight`
    Weight(Tier, u32),
    /// `tier.TIER.max_share`
    MaxShare(Tier, f64),
    /// `model.MODEL.circuit_breaker`
    Breaker(String, Forced),
    /// `model.MODEL.TIER.degraded`
    Degraded(String, Tier, bool),
    /// `feature.FEATURE`
    Feature(Feature, bool),
    /// `logs.filter`
    LogFilter(String),
}

/// What a circuit breaker does whatever its calls say; Resilience4j's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// Lets nothing through.
    ForcedOpen,
    /// Lets everything through.
    Disabled,
}

/// Work that a fleet can go without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Clients join rows in one request.
    Packing,
    /// Clients keep answers.
    Cache,
    /// Workers send small replies together.
    Bundles,
    /// Workers log every request.
    AccessLog,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Packing, Self::Cache, Self::Bundles, Self::AccessLog];

    /// As in a switch's name and in `[features]`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Packing => "packing",
            Self::Cache => "cache",
            Self::Bundles => "bundles",
            Self::AccessLog => "access_log",
        }
    }
}

impl Forced {
    /// As in a switch's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ForcedOpen => "forced_open",
            Self::Disabled => "disabled",
        }
    }

    fn parse(value: &str) -> Option<Self> {
        [Self::ForcedOpen, Self::Disabled].into_iter().find(|forced| forced.as_str() == value)
    }
}

impl Setting {
    /// Reads a switch.
    ///
    /// # Errors
    /// [`Invalid`] for a name that no switch has, and for a value out of its bounds.
    pub fn parse(name: &str, value: &str) -> Result<Self, Invalid> {
        let number = |least, most| {
            let number: Result<u64, _> = value.parse();
            let number = number.map_err(|_| refused(name, value, "write a whole number"))?;
            within(name, number, least, most).map(|()| number)
        };
        let is_on = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(refused(name, value, "write on or off")),
        };
        let tier = |tier| Tier::new(tier).map_err(|error| refused(name, value, &error.to_string()));
        let model = |model: &str| match check_name(model) {
            Ok(()) => Ok(model.to_owned()),
            Err(error) => Err(refused(name, value, &error.to_string())),
        };
        match *name.splitn(5, '.').collect::<Vec<_>>() {
            ["tier", of, "weight"] => {
                Ok(Self::Weight(tier(of)?, u32::try_from(number(1, 10_000)?).unwrap_or(u32::MAX)))
            }
            ["tier", of, "max_share"] => {
                let share = value.parse().ok().filter(|share| (0.01..=1.0).contains(share));
                let share = share.ok_or_else(|| refused(name, value, "name a part from 0.01 to 1"))?;
                Ok(Self::MaxShare(tier(of)?, share))
            }
            ["model", of, "circuit_breaker"] => {
                let forced = Forced::parse(value);
                let forced = forced.ok_or_else(|| refused(name, value, "write forced_open or disabled"))?;
                Ok(Self::Breaker(model(of)?, forced))
            }
            ["model", of, tier_of, "degraded"] => Ok(Self::Degraded(model(of)?, tier(tier_of)?, is_on()?)),
            ["feature", of] => {
                let feature = Feature::ALL.into_iter().find(|feature| feature.as_str() == of);
                Ok(Self::Feature(feature.ok_or_else(|| unknown(name))?, is_on()?))
            }
            ["logs", "filter"] => match logs::check_filter(value) {
                Ok(()) => Ok(Self::LogFilter(value.to_owned())),
                Err(error) => Err(refused(name, value, &error)),
            },
            _ => Err(unknown(name)),
        }
    }

    /// Checks a name alone.
    ///
    /// # Errors
    /// [`Invalid`] for a name that no switch has.
    pub fn check_name(name: &str) -> Result<(), Invalid> {
        // Each switch has one of them.
        let values = ["1", "on", Forced::Disabled.as_str(), "info"];
        let is_one = values.iter().any(|value| Self::parse(name, value).is_ok());
        if is_one { Ok(()) } else { Err(unknown(name)) }
    }

    /// The switch's name.
    pub fn name(&self) -> String {
        match self {
            Self::Weight(tier, _) => format!("tier.{tier}.weight"),
            Self::MaxShare(tier, _) => format!("tier.{tier}.max_share"),
            Self::Breaker(model, _) => format!("model.{model}.circuit_breaker"),
            Self::Degraded(model, tier, _) => format!("model.{model}.{tier}.degraded"),
            Self::Feature(feature, _) => format!("feature.{}", feature.as_str()),
            Self::LogFilter(_) => "logs.filter".to_owned(),
        }
    }

    /// Its value.
    pub fn value(&self) -> String {
        match self {
            Self::Weight(_, weight) => weight.to_string(),
            Self::MaxShare(_, share) => share.to_string(),
            Self::Breaker(_, forced) => forced.as_str().to_owned(),
            Self::Degraded(_, _, is_on) | Self::Feature(_, is_on) => {
                if *is_on { "on" } else { "off" }.to_owned()
            }
            Self::LogFilter(filter) => filter.clone(),
        }
    }

    /// The tier that it is about.
    pub fn tier(&self) -> Option<&Tier> {
        match self {
            Self::Weight(tier, _) | Self::MaxShare(tier, _) | Self::Degraded(_, tier, _) => Some(tier),
            Self::Breaker(..) | Self::Feature(..) | Self::LogFilter(_) => None,
        }
    }

    /// The model that it is about.
    pub fn model(&self) -> Option<&str> {
        match self {
            Self::Breaker(model, _) | Self::Degraded(model, ..) => Some(model),
            Self::Weight(..) | Self::MaxShare(..) | Self::Feature(..) | Self::LogFilter(_) => None,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name(), self.value())
    }
}

fn unknown(name: &str) -> Invalid {
    let (name, names) = (short(name), NAMES);
    Invalid::new(name, "no switch", format!("the switches are\n{names}"))
}

fn refused(name: &str, value: &str, remedy: &str) -> Invalid {
    Invalid::new(short(name), format!("`{}`", short(value)), remedy)
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in [
            "tier.free.weight=2",
            "tier.free.max_share=0.25",
            "model.big.circuit_breaker=forced_open",
            "model.big.circuit_breaker=disabled",
            "model.big.free.degraded=on",
            "model.big.free.degraded=off",
            "feature.packing=off",
            "feature.cache=off",
            "feature.bundles=on",
            "feature.access_log=on",
            "logs.filter=warn,millrace_worker=debug",
        ] {
            let (name, value) = text.split_once('=').unwrap();
            let setting = Setting::parse(name, value).unwrap();
            assert_eq!(setting.to_string(), text);
            assert!(setting.name() == name && setting.value() == value);
            Setting::check_name(name).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_remedy() {
        for name in ["tier.free.wieght", "model.a/b.free.degraded", "feature.cahce", "", "logs"] {
            assert!(Setting::check_name(name).is_err(), "{name}");
        }
        for (name, value, remedy) in [
            ("tier.free.weight", "0", "from 1 to 10000"),
            ("tier.free.weight", "-1", "a whole number"),
            ("tier.fr*e.weight", "1", "valid name"),
            ("tier.free.max_share", "NaN", "0.01 to 1"),
            ("tier.free.max_share", "2", "0.01 to 1"),
            ("tier.free.size", "2", "the switches are"),
            ("tier.free.weight.more", "2", "the switches are"),
            ("model.big.circuit_breaker", "open", "forced_open or disabled"),
            ("model.../x.free.degraded", "on", "the switches are"),
            ("model.a/b.free.degraded", "on", "valid name"),
            ("feature.all", "off", "the switches are"),
            ("feature.cache", "0", "on or off"),
            ("logs.filter", "a=b=c", "filter"),
            ("", "", "the switches are"),
        ] {
            let error = Setting::parse(name, value).unwrap_err().to_string();
            assert!(error.contains(remedy), "{name}={value}: {error}");
        }
    }
}
