//! Properties, frames and bundles.

use bytes::Bytes;
use lapin::protocol::basic::{AMQPProperties, parse_properties};
use millrace_common::amqp::bundle;
use millrace_common::amqp::guard::Frames;
use millrace_common::amqp::message::{ReplyKey, ReplyMeta, RequestMeta, header};
use millrace_common::amqp::properties::Properties;
use millrace_worker::inbound::hostility::hostility;

use crate::memory::metered;
use crate::{first, length, split};

const HEAD: usize = 7;
const CONTENT_HEADER: u8 = 2;
const CLASS_WEIGHT_AND_SIZE: usize = 12;

/// A request's routing key, after a byte that says how long it is, and its properties from their flags on.
pub fn envelope(input: &[u8]) {
    let (key_length, rest) = first(input);
    let (routing_key, properties) = split(rest, key_length.into());
    let routing_key = String::from_utf8_lossy(routing_key);
    let payload = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], properties].concat();
    let size = u32::try_from(payload.len()).expect("inputs are short").to_be_bytes();
    let frame = [&[CONTENT_HEADER, 0, 1], &size[..], &payload, &[0xce]].concat();
    let guarded = metered(frame.len(), || through_guard(&frame, frame.len()));
    let properties = Properties::from_lapin(readable(&guarded[HEAD..guarded.len() - 1]));

    let (meta, is_hostile, again) = metered(input.len(), || {
        let reply_to = properties.reply_to().map(ReplyKey::parse).transpose().map_err(|e| e.to_string());
        let hostile = hostility("m.premium", &routing_key, &properties, reply_to.as_ref().err());
        (RequestMeta::read(&properties), hostile.is_some(), properties.for_republishing())
    });
    for dropped in ["CC", "BCC", "x-death"] {
        assert!(!again.has_header(dropped), "{dropped} is published again");
    }
    assert_eq!((again.user_id(), again.expiration()), (None, None));
    if let (Ok(meta), false) = (&meta, is_hostile) {
        let expected = RequestMeta { user_id: None, has_expiration: false, ..meta.clone() };
        assert_eq!(
            RequestMeta::read(&again).as_ref(),
            Ok(&expected),
            "it means the same when it is passed on"
        );
    }
    let _ = metered(input.len(), || ReplyMeta::read(&properties));
}

/// Bytes of a broker, after one that says in what pieces they come.
pub fn headers(input: &[u8]) {
    let (piece, stream) = first(input);
    let out = metered(stream.len(), || through_guard(stream, usize::from(piece) + 1));
    assert_eq!(out, through_guard(stream, stream.len().max(1)), "how the bytes are cut makes no difference");
    let mut rest = &out[..];
    while let Some((head, more)) = rest.split_first_chunk::<HEAD>() {
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let Some((payload, more)) = more.split_at_checked(size) else { break };
        match head[0] {
            CONTENT_HEADER => drop(readable(payload)),
            b'A' => break,
            _ => {}
        }
        rest = more.get(1..).unwrap_or_default();
    }
}

fn through_guard(stream: &[u8], piece: usize) -> Vec<u8> {
    let (mut frames, mut out) = (Frames::default(), Vec::new());
    stream.chunks(piece).for_each(|piece| frames.push(piece, &mut out));
    out
}

/// What the client library makes of a content header that has passed the guard.
fn readable(payload: &[u8]) -> AMQPProperties {
    let (rest, properties) =
        parse_properties(&payload[CLASS_WEIGHT_AND_SIZE..]).expect("what passes the guard is readable");
    assert!(rest.is_empty(), "the library would look for the next frame in {rest:?}");
    properties
}

/// A bundle's body, after two bytes that say how long its head is.
pub fn bundle(input: &[u8]) {
    let (head_length, body) = length(input);
    let body = Bytes::copy_from_slice(body);
    let properties = Properties::new()
        .with_content_type(bundle::CONTENT_TYPE)
        .with_count(header::HEADER_LENGTH, head_length as u64);
    let Ok(replies) = metered(body.len(), || bundle::read(&properties, &body)) else { return };
    let worker = replies.first().map_or("", |(meta, _)| &meta.worker);
    let (properties, again) = bundle::write(worker, &replies);
    assert_eq!(bundle::read(&properties, &again).expect("what is written is read"), replies);
}
