//! Status codes: the stable words that a reply carries in `x-status` and in its body.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $http:literal;)+) => {
        /// Why a request got no result. The texts are stable; clients may match on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Code {
            $($(#[$doc])* $variant,)+
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$variant,)+];

            /// The text on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)+ }
            }

            /// The HTTP status a gateway answers with.
            pub fn http_status(self) -> u16 {
                match self { $(Code::$variant => $http,)+ }
            }
        }

        impl FromStr for Code {
            type Err = UnknownCode;
            fn from_str(text: &str) -> Result<Self, UnknownCode> {
                match text {
                    $($text => Ok(Code::$variant),)+
                    _ => Err(UnknownCode),
                }
            }
        }
    };
}

codes! {
    /// The request contradicts the protocol or the model's signature. Sending it again cannot help.
    InvalidInput = "invalid_input", 400;
    /// No worker serves a model of this name.
    UnknownModel = "unknown_model", 404;
    /// The model is served, but not in the pinned version.
    UnknownVersion = "unknown_version", 404;
    /// The deadline passed before a result existed.
    DeadlineExceeded = "deadline_exceeded", 504;
    /// The tier's queue is full; retry after the time given.
    Overloaded = "overloaded", 503;
    /// The tenant is over its rate.
    RateLimited = "rate_limited", 429;
    /// The caller cancelled it.
    Cancelled = "cancelled", 499;
    /// The request ended the process that ran it, repeatedly.
    Poison = "poison", 422;
    /// The model failed on this input, or the back end failed.
    BackendError = "backend_error", 500;
    /// The back end did not answer in time.
    BackendTimeout = "backend_timeout", 504;
    /// The message or a tensor is larger than the limits.
    TooLarge = "too_large", 413;
    /// The caller may not do this.
    Unauthorized = "unauthorized", 401;
    /// The service cannot take requests now.
    Unavailable = "unavailable", 503;
}

/// A status text that is not one of [`Code::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a known status code")]
pub struct UnknownCode;

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The body of a reply that is not a result: `{"error": text, "code": code}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Text for people.
    pub error: String,
    /// The stable code.
    pub code: Code,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_its_text() {
        for &code in Code::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
            let json = serde_json::to_string(&code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
            assert!((400..600).contains(&code.http_status()));
        }
    }
}
