//! Between the socket and the client library: what a hostile publisher can put into a message's properties is made harmless
//! before the library parses it.
//!
//! The broker passes properties on as it got them. The library (lapin 4.12, amq-protocol 10.6) ends the whole connection for
//! text that is not UTF-8, and for a frame above the negotiated size, which a message becomes when the broker adds its
//! history to long headers; and it recurses into nested tables until its stack is gone. The message would then be
//! delivered to the next worker. So every content header is walked here first; one that breaks a rule is replaced by a
//! header that says so (`UNREADABLE`), and the message becomes an ordinary, hostile one.

mod frames;
mod header;
mod transport;

pub use frames::Frames;
pub(super) use transport::connect;

/// The header that stands in for properties that cannot be read; its value says why.
pub(crate) const UNREADABLE: &str = "x-millrace-unreadable";
