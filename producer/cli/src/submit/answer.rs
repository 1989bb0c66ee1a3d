//! A line of the output.

use std::time::Duration;

use millrace_common::protocol::codec::{Encoding, ResponseHead, TensorView, encode_response};
use millrace_producer::{Code, Error, Response};
use serde::{Deserialize, Serialize};

use super::request::Invalid;

/// A line's answer, ready to be written.
#[derive(Debug)]
pub(super) struct Answer {
    /// The input line that it answers.
    pub(super) line: u64,
    /// Why there is no result.
    pub(super) failure: Option<Code>,
    /// Who answered.
    pub(super) worker: Option<String>,
    /// From sending to receiving, where this process saw both.
    pub(super) latency: Option<Duration>,
    /// The output line, with its end.
    pub(super) text: Vec<u8>,
}

#[derive(Serialize)]
struct ErrorText<'a> {
    code: Code,
    message: &'a str,
}

#[derive(Serialize)]
struct TimingText {
    queue_us: u64,
    batch_us: u64,
    infer_us: u64,
    batch_size: u64,
}

/// What the fields of one line are.
struct Fields<'a> {
    custom_id: Option<&'a str>,
    line: u64,
    error: Option<ErrorText<'a>>,
    response: Option<&'a [u8]>,
    worker: Option<&'a str>,
    attempt: Option<u32>,
    degraded: Option<&'a str>,
    timing: Option<TimingText>,
    latency: Option<Duration>,
}

impl Answer {
    /// The answer to a line that was sent.
    pub(super) fn new(
        line: u64,
        custom_id: &str,
        outcome: &Result<Response, Error>,
        latency: Option<Duration>,
    ) -> Self {
        let failed = |code, message: &str, worker: Option<&str>| {
            let error = Some(ErrorText { code, message });
            let fields = Fields { error, worker, latency, ..Fields::new(line, Some(custom_id)) };
            fields.answer()
        };
        let response = match outcome {
            Ok(response) => response,
            Err(error) => {
                let worker = match error {
                    Error::Failed { worker, .. } => Some(worker.as_str()),
                    _ => None,
                };
                return failed(error.code(), &message(error), worker);
            }
        };
        match body(response) {
            Ok(body) => {
                let timing = response.meta.timing;
                let fields = Fields {
                    response: Some(&body),
                    worker: Some(response.worker()),
                    attempt: Some(response.meta.attempt),
                    degraded: response.degraded(),
                    timing: Some(TimingText {
                        queue_us: timing.queue_us,
                        batch_us: timing.batch_us,
                        infer_us: timing.infer_us,
                        batch_size: timing.batch_size,
                    }),
                    latency,
                    ..Fields::new(line, Some(custom_id))
                };
                fields.answer()
            }
            Err(reason) => failed(Code::BackendError, &reason, Some(response.worker())),
        }
    }

    /// The answer to a line that was not sent.
    pub(super) fn invalid(line: u64, invalid: &Invalid) -> Self {
        let error = Some(ErrorText { code: invalid.code, message: &invalid.message });
        Fields { error, ..Fields::new(line, invalid.custom_id.as_deref()) }.answer()
    }
}

/// The code stands beside it already.
fn message(error: &Error) -> String {
    match error {
        Error::Failed { message, .. } | Error::Refused { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// The response as JSON, whatever it travelled as.
pub(crate) fn body(response: &Response) -> Result<Vec<u8>, String> {
    let head = ResponseHead {
        model_name: &response.body.model_name,
        model_version: response.body.model_version.as_deref(),
        id: response.body.id.as_deref(),
    };
    let outputs: Vec<TensorView<'_>> =
        response.body.outputs.iter().map(|output| output.view(Encoding::Json)).collect();
    match encode_response(head, &outputs) {
        Ok(body) => Ok(body.bytes.into()),
        Err(error) => Err(format!("the result cannot be written as JSON: {error}")),
    }
}

impl<'a> Fields<'a> {
    fn new(line: u64, custom_id: Option<&'a str>) -> Self {
        Self {
            custom_id,
            line,
            error: None,
            response: None,
            worker: None,
            attempt: None,
            degraded: None,
            timing: None,
            latency: None,
        }
    }

    /// By hand, since the response is JSON already.
    fn answer(self) -> Answer {
        let mut text = Vec::with_capacity(256 + self.response.map_or(0, <[u8]>::len));
        let status = self.error.as_ref().map_or("ok", |error| error.code.as_str());
        member(&mut text, b"{\"custom_id\":", &self.custom_id);
        member(&mut text, b",\"line\":", &self.line);
        member(&mut text, b",\"status\":", &status);
        text.extend_from_slice(b",\"response\":");
        text.extend_from_slice(self.response.unwrap_or(b"null"));
        member(&mut text, b",\"error\":", &self.error);
        member(&mut text, b",\"worker\":", &self.worker);
        member(&mut text, b",\"attempt\":", &self.attempt);
        member(&mut text, b",\"degraded\":", &self.degraded);
        member(&mut text, b",\"timing\":", &self.timing);
        let latency_us = self.latency.map(|latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        member(&mut text, b",\"latency_us\":", &latency_us);
        text.extend_from_slice(b"}\n");
        Answer {
            line: self.line,
            failure: self.error.map(|error| error.code),
            worker: self.worker.map(str::to_owned),
            latency: self.latency,
            text,
        }
    }
}

fn member<T: Serialize>(text: &mut Vec<u8>, name: &[u8], value: &T) {
    text.extend_from_slice(name);
    serde_json::to_writer(text, value).expect("these values serialize, and memory takes them");
}

/// What is read back of an output line.
#[derive(Debug, Deserialize)]
pub(super) struct Written {
    /// The input line that it answers.
    pub(super) line: u64,
    /// `ok`, or the code.
    pub(super) status: String,
}

impl Written {
    /// Reads an output line; `None` for anything else.
    pub(super) fn read(text: &[u8]) -> Option<(u64, Option<Code>)> {
        let written: Self = serde_json::from_slice(text).ok()?;
        match written.status.as_str() {
            "ok" => Some((written.line, None)),
            code => Some((written.line, Some(code.parse().ok()?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use millrace_common::amqp::message::ReplyMeta;
    use millrace_producer::{Datatype, InferResponse, Tensor};

    fn response(datatype: Datatype, data: &'static [u8]) -> Response {
        let tensor = Tensor::new("y", datatype, vec![1], Bytes::from_static(data)).unwrap();
        let body =
            InferResponse { model_name: "m".into(), model_version: None, id: None, outputs: vec![tensor] };
        Response { body, meta: ReplyMeta { worker: "w\"1".into(), ..ReplyMeta::default() } }
    }

    #[test]
    fn every_kind_of_answer_is_one_line_of_json_that_reads_back() {
        let good = Ok(response(Datatype::Uint8, &[7]));
        let not_text = Ok(response(Datatype::Bytes, &[1, 0, 0, 0, 0xff]));
        let failed = Err(Error::Failed {
            code: Code::Poison,
            message: "a\nb".into(),
            retry_after: None,
            worker: "w".into(),
        });
        let invalid = Invalid { custom_id: None, code: Code::InvalidInput, message: "no".into() };
        for (answer, code) in [
            (Answer::new(3, "a\n", &good, Some(Duration::from_millis(2))), None),
            (Answer::new(3, "a", &not_text, None), Some(Code::BackendError)),
            (Answer::new(3, "a", &failed, None), Some(Code::Poison)),
            (Answer::invalid(3, &invalid), Some(Code::InvalidInput)),
        ] {
            let text = String::from_utf8(answer.text.clone()).unwrap();
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["response"].is_null(), code.is_some(), "{text}");
            assert_eq!(value["error"].is_null(), code.is_none(), "{text}");
            assert_eq!(Written::read(&answer.text), Some((3, code)), "{text}");
        }
        let text = Answer::new(3, "a", &good, None).text;
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["response"]["outputs"][0]["data"][0], 7);
        assert_eq!(value["worker"], "w\"1");
    }

    #[test]
    fn other_text_is_no_answer() {
        for text in
            ["", "{}", r#"{"line":1}"#, r#"{"line":-1,"status":"ok"}"#, r#"{"line":1,"status":"odd"}"#]
        {
            assert!(Written::read(text.as_bytes()).is_none(), "{text}");
        }
    }
}
