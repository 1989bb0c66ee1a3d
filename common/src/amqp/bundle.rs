//! A bundle: several replies to one requester in one message, for requesters that take them.
//!
//! A batch answers many requests at once, and each message costs the broker far more than the bytes of a small reply. The
//! body is a JSON head, its length told as in the binary tensor extension, and the replies' bodies one after the other.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::message::{ReplyMeta, Timing, header};
use super::properties::{OddHeader, Properties};
use crate::bounded;

/// The content type of a bundle.
pub const CONTENT_TYPE: &str = "application/vnd.millrace.replies";
/// Replies in a bundle, at most.
pub const MOST_REPLIES: usize = 1024;
/// Longest name of a worker in one. Every reply has a copy of it.
const MAX_WORKER_BYTES: usize = 255;
/// What the head says of one reply takes about so many bytes.
pub const HEAD_BYTES: usize = 300;

#[derive(Debug, Serialize, Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    worker: Cow<'a, str>,
    #[serde(borrow, deserialize_with = "bounded::list::<_, _, MOST_REPLIES>")]
    replies: Vec<Entry<'a>>,
}

/// One reply: what its properties would say, and the length of its body.
#[derive(Debug, Serialize, Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    message_id: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<Cow<'a, str>>,
    bytes: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header_length: Option<usize>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    degraded: Option<Cow<'a, str>>,
    queue_us: u64,
    batch_us: u64,
    infer_us: u64,
    batch_size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model_version: Option<u64>,
    attempt: u32,
}

/// A bundle that contradicts itself.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The length of its head is missing or odd.
    #[error(transparent)]
    Header(#[from] OddHeader),
    /// Its head cannot be read.
    #[error("the head of a bundle cannot be read: {0}")]
    Head(#[from] serde_json::Error),
    /// Its parts are not what its head says.
    #[error("a bundle of {bytes} bytes is not what its head says")]
    Parts {
        /// Of the whole body.
        bytes: usize,
    },
}

/// Writes replies of one worker to one requester as one message, its `message_id` that of the first request.
pub fn write(worker: &str, replies: &[(ReplyMeta, Bytes)]) -> (Properties, Bytes) {
    let entries = replies.iter().map(|(meta, body)| Entry::of(meta, body.len()));
    let head = Head { worker: worker.into(), replies: entries.collect() };
    let bodies: usize = replies.iter().map(|(_, body)| body.len()).sum();
    let mut bytes = Vec::with_capacity(bodies + HEAD_BYTES * replies.len());
    serde_json::to_writer(&mut bytes, &head).expect("text and numbers serialize");
    let head_length = bytes.len();
    replies.iter().for_each(|(_, body)| bytes.extend_from_slice(body));
    let id = replies.first().map_or("", |(meta, _)| &meta.request_id);
    let properties = Properties::persistent()
        .with_message_id(id)
        .with_content_type(CONTENT_TYPE)
        .with_count(header::HEADER_LENGTH, head_length as u64);
    (properties, bytes.into())
}

/// Whether a message is a bundle.
pub fn is_bundle(properties: &Properties) -> bool {
    properties.content_type() == Some(CONTENT_TYPE)
}

/// Reads a bundle. The bodies are parts of `body`, not copies.
///
/// # Errors
/// [`BundleError`].
pub fn read(properties: &Properties, body: &Bytes) -> Result<Vec<(ReplyMeta, Bytes)>, BundleError> {
    let parts = || BundleError::Parts { bytes: body.len() };
    let head_length = properties.count(header::HEADER_LENGTH)?.ok_or_else(parts)?;
    let head_length = usize::try_from(head_length).map_err(|_| parts())?;
    let head: Head<'_> = serde_json::from_slice(body.get(..head_length).ok_or_else(parts)?)?;
    if head.worker.len() > MAX_WORKER_BYTES {
        return Err(parts());
    }
    let mut at = head_length;
    let mut replies = Vec::with_capacity(head.replies.len());
    for entry in &head.replies {
        let end = at.checked_add(entry.bytes).filter(|&end| end <= body.len()).ok_or_else(parts)?;
        replies.push((entry.meta(&head.worker), body.slice(at..end)));
        at = end;
    }
    if at == body.len() { Ok(replies) } else { Err(parts()) }
}

impl<'a> Entry<'a> {
    fn of(meta: &'a ReplyMeta, bytes: usize) -> Self {
        let Timing { queue_us, batch_us, infer_us, batch_size } = meta.timing;
        Self {
            message_id: meta.request_id.as_str().into(),
            correlation_id: meta.correlation_id.as_deref().map(Into::into),
            bytes,
            header_length: meta.header_length,
            status: meta.status().into(),
            retry_after_ms: meta.retry_after_ms(),
            degraded: meta.degraded.as_deref().map(Into::into),
            queue_us,
            batch_us,
            infer_us,
            batch_size,
            model_version: meta.model_version,
            attempt: meta.attempt,
        }
    }

    fn meta(&self, worker: &str) -> ReplyMeta {
        let owned = |text: &Cow<'_, str>| text.clone().into_owned();
        let &Self { queue_us, batch_us, infer_us, batch_size, .. } = self;
        ReplyMeta {
            request_id: owned(&self.message_id),
            correlation_id: self.correlation_id.as_ref().map(owned),
            header_length: self.header_length,
            failure: ReplyMeta::failure_of(Some(&self.status)),
            retry_after: self.retry_after_ms.map(Duration::from_millis),
            degraded: self.degraded.as_ref().map(owned),
            timing: Timing { queue_us, batch_us, infer_us, batch_size },
            worker: worker.to_owned(),
            model_version: self.model_version,
            attempt: self.attempt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::status::Code;

    fn replies() -> Vec<(ReplyMeta, Bytes)> {
        let meta = |id: &str, correlation_id: Option<&str>, failure: Option<Code>| ReplyMeta {
            request_id: id.into(),
            correlation_id: correlation_id.map(str::to_owned),
            header_length: failure.is_none().then_some(2),
            failure,
            retry_after: failure.map(|_| Duration::from_millis(7)),
            degraded: None,
            timing: Timing { queue_us: 1, batch_us: 2, infer_us: 3, batch_size: 4 },
            worker: "w".into(),
            model_version: Some(3),
            attempt: 1,
        };
        vec![
            (meta("a", Some("tab\t\"quoted\" é"), None), Bytes::from_static(b"{}\0\x01")),
            (meta("b", None, Some(Code::DeadlineExceeded)), Bytes::new()),
            (meta("c", Some(""), None), Bytes::from_static(b"{}")),
        ]
    }

    #[test]
    fn bundles_survive_the_wire() {
        let (properties, body) = write("w", &replies());
        assert!(is_bundle(&properties));
        assert_eq!(properties.message_id(), Some("a"));
        assert_eq!(read(&properties, &body).unwrap(), replies());
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let (properties, body) = write("w", &replies());
        assert!(read(&Properties::new(), &body).is_err());
        assert!(read(&properties.clone().with_count(header::HEADER_LENGTH, 1 << 40), &body).is_err());
        for end in 0..body.len() {
            assert!(read(&properties, &body.slice(..end)).is_err());
        }
        let long = [&body[..], b"x"].concat();
        assert!(read(&properties, &long.into()).is_err());
        let head = format!(
            r#"{{"worker":"","replies":[{{"message_id":"a","bytes":{},"status":"ok","queue_us":0,"batch_us":0,
                "infer_us":0,"batch_size":0,"attempt":0}}]}}"#,
            usize::MAX
        );
        let properties = properties.with_count(header::HEADER_LENGTH, head.len() as u64);
        assert!(read(&properties, &head.into()).is_err());
    }
}
