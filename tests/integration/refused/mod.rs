//! A hostile client: each of its messages is refused with its documented code or kept for people, as docs/wire.md says, and its
//! neighbours on the same worker get their results meanwhile.

mod addresses;
mod bodies;
mod headers;
mod odd;
mod unreadable;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::types::AMQPValue;
use lapin::{BasicProperties, Confirmation};
use millrace_harness::models;
use millrace_producer::{Client, Datatype, Request, Tensor};
use millrace_tests::foreign::{Foreign, rows, text_header, with_header};
use millrace_tests::raw::Raw;
use millrace_tests::stack::{ONE_INSTANCE, Stack, eventually};

const PATIENCE: Duration = Duration::from_secs(20);
const TIERS: [&str; 3] = ["premium", "enterprise", "free"];
/// What the suite must not shrink below.
const LEAST_CASES: usize = 150;
const MAX_BODY_BYTES: usize = 4096;

/// How a message ends.
#[derive(Clone, Debug)]
enum End {
    /// With a reply of this code, whose text contains that.
    Answered(&'static str, &'static str),
    /// In `<p>.dead` with this reason, unanswered.
    Kept(&'static str),
    /// Back at its sender: nobody serves that.
    Returned,
}

/// One hostile message.
struct Case {
    name: String,
    /// The model, in a tier that changes from case to case; or the whole routing key.
    to: Result<&'static str, String>,
    body: Vec<u8>,
    edit: Box<dyn Fn(BasicProperties) -> BasicProperties>,
    end: End,
}

impl Case {
    fn new(name: impl Into<String>, body: impl Into<Vec<u8>>, end: End) -> Self {
        let edit = Box::new(|properties| properties);
        Self { name: name.into(), to: Ok("four"), body: body.into(), edit, end }
    }

    /// A good request in bad properties.
    fn of(
        name: impl Into<String>,
        end: End,
        edit: impl Fn(BasicProperties) -> BasicProperties + 'static,
    ) -> Self {
        Self { edit: Box::new(edit), ..Self::new(name, rows(&[[1.0; 4]]), end) }
    }

    fn header(self, name: &'static str, value: AMQPValue) -> Self {
        Self { edit: Box::new(move |properties| with_header(properties, name, value.clone())), ..self }
    }

    fn routing_key(&self, number: usize) -> String {
        match &self.to {
            Ok(model) => format!("{model}.{}", TIERS[number % TIERS.len()]),
            Err(key) => key.clone(),
        }
    }

    /// Sends it; what else becomes of it than should, if so.
    async fn complaint(&self, number: usize, foreign: &mut Foreign) -> Option<String> {
        let properties = (self.edit)(foreign.properties());
        let id = properties.message_id().clone().map_or_else(String::new, |id| id.to_string());
        let confirm = foreign.publish(&self.routing_key(number), properties, &self.body).await;
        match (&self.end, confirm) {
            (End::Answered(code, text), Confirmation::Ack(None)) => {
                let Some(answer) = foreign.reply(PATIENCE).await else { return Some("no answer".to_owned()) };
                let error = answer.body["error"].as_str().unwrap_or_default();
                let is_right = answer.id == id
                    && answer.status == *code
                    && answer.body["code"] == *code
                    && error.contains(text);
                (!is_right).then(|| format!("{answer:?} instead of {code}, `{text}`"))
            }
            (End::Kept(reason), Confirmation::Ack(None)) => {
                let kept = kept(foreign, &self.name, &self.body).await;
                (kept != *reason).then(|| format!("kept for {kept} instead of {reason}"))
            }
            (End::Returned, Confirmation::Ack(Some(_))) => None,
            (end, confirm) => Some(format!("{confirm:?} instead of {end:?}")),
        }
    }
}

/// Why the only message in `<p>.dead` is there.
async fn kept(foreign: &Foreign, name: &str, body: &[u8]) -> String {
    eventually(name, PATIENCE, async || foreign.depth("dead").await == 1).await;
    let kept = foreign.get("dead").await.expect("just seen");
    assert!(!text_header(&kept, "x-dead-detail").is_empty(), "{name}: no detail");
    assert_eq!(kept.data, body, "{name}");
    text_header(&kept, "x-dead-reason")
}

fn stack() -> Stack {
    let mut stack = Stack::new()
        .config("four", &format!("max_batch_size = 8\n{ONE_INSTANCE}"))
        .model("four", &models::scale(1.0));
    for datatype in ["BOOL", "BYTES", "FP32"] {
        stack = stack
            .config(datatype, ONE_INSTANCE)
            .model(datatype, &models::identity(datatype).expect("a datatype"));
    }
    stack.set("LIMITS__MAX_BODY_BYTES", &MAX_BODY_BYTES.to_string())
}

/// Sends good requests to the same queues until told to stop; each must have its result.
async fn neighbour(client: Client, stop: Arc<AtomicBool>) -> usize {
    let mut served = 0;
    while !stop.load(Ordering::Relaxed) {
        for (model, shape) in [("four", vec![1, 4]), ("FP32", vec![2, 2])] {
            let tensor = Tensor::new("x", Datatype::Fp32, shape, vec![1; 16].into()).unwrap();
            let response =
                client.infer(Request::new(model).tier("premium").input(tensor.clone())).await.unwrap();
            assert_eq!(response.tensor("y").unwrap().data, tensor.data);
            served += 1;
        }
    }
    served
}

#[tokio::test]
async fn a_hostile_client_is_refused_and_harms_no_neighbour() {
    let stack = stack();
    let mut worker = stack.worker();
    let client = stack.client().await;
    let stop = Arc::new(AtomicBool::new(false));
    let neighbour = tokio::spawn(neighbour(client.clone(), Arc::clone(&stop)));
    let mut foreign = Foreign::connect(stack.amqp_url(), stack.prefix()).await;

    let tables = [
        bodies::malformed(),
        bodies::documents(),
        bodies::values(),
        bodies::misfits(),
        headers::cases(),
        addresses::cases(),
    ];
    let cases: Vec<Case> = tables.into_iter().flatten().collect();
    let mut complaints = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let complaint = case.complaint(number, &mut foreign).await;
        complaints.extend(complaint.map(|complaint| format!("{}: {complaint}", case.name)));
    }
    let unreadable = unreadable::cases();
    let mut raw = Raw::connect(stack.amqp_url());
    for case in &unreadable {
        let body = rows(&[[1.0; 4]]);
        raw.publish(&format!("{}.request", stack.prefix()), "four.free", case.flags, &case.properties, &body);
        let reason = kept(&foreign, case.name, &body).await;
        let is_right = reason == case.reason;
        complaints.extend((!is_right).then(|| format!("{}: kept for {reason}", case.name)));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    let refused = cases.len() + unreadable.len();
    odd::allowed(&mut foreign).await;
    odd::through_the_library(&client).await;

    stop.store(true, Ordering::Relaxed);
    let served = neighbour.await.expect("every good request was served");
    println!("{refused} hostile messages were refused while {served} good ones were served");
    assert!(refused >= LEAST_CASES, "only {refused} cases");
    assert!(served >= refused / 10, "the neighbour was hardly there: {served}");
    assert!(foreign.leftovers().await.is_empty(), "nothing was answered twice");
    assert_eq!(foreign.depth("dead").await, 0, "nothing else was kept");
    client.close().await;
    worker.terminate();
    assert_eq!(worker.wait(PATIENCE).unwrap().code(), Some(0));
    assert!(!worker.stderr().contains("connection to the broker lost"), "{}", worker.stderr());
}
