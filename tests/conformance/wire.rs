//! One case through broker and worker.

use millrace_producer::{Client, Code, Datatype, Error, Request, Tensor};

use crate::case::{Case, DataSet, Value};
use crate::reference::{Expected, Prepared};
use crate::skip_list::Kind;
use crate::tolerance::{difference, is_same_in_json};
use crate::verdict::Verdict;

/// Sends a case and judges what comes back.
pub(crate) async fn judge(client: &Client, prepared: &Prepared) -> Verdict {
    let case = &prepared.case;
    let judged = match &prepared.expected {
        Expected::Refused(reason) => Ok(Verdict::Excused(Kind::Refused, reason.clone())),
        Expected::Unsupported(kind) => must_be_refused(client, case, kind).await,
        Expected::RunFails(reason) => must_fail(client, case, reason).await,
        Expected::Outputs(outputs) => must_match(client, case, outputs).await,
    };
    judged.unwrap_or_else(Verdict::Broken)
}

async fn must_be_refused(client: &Client, case: &Case, kind: &str) -> Result<Verdict, String> {
    for set in &case.sets {
        match client.infer(request(case, set)).await {
            Err(Error::Failed { code: Code::InvalidInput, message, .. })
                if message.contains("which the protocol cannot carry") => {}
            other => return Err(format!("not refused as unsupported: {other:?}")),
        }
    }
    Ok(Verdict::Unsupported(kind.to_owned()))
}

async fn must_fail(client: &Client, case: &Case, reason: &str) -> Result<Verdict, String> {
    for set in &case.sets {
        match client.infer(request(case, set)).await {
            Err(Error::Failed { code: Code::BackendError, .. }) => {}
            other => return Err(format!("a direct run fails ({reason}), but: {other:?}")),
        }
    }
    Ok(Verdict::Excused(Kind::RunFails, reason.to_owned()))
}

async fn must_match(client: &Client, case: &Case, expected: &[Vec<Tensor>]) -> Result<Verdict, String> {
    let mut in_json = true;
    for (set, wanted) in case.sets.iter().zip(expected) {
        let given = ask(client, request(case, set)).await?;
        if given != *wanted {
            return Err(format!("not bit-identical: {given:?} instead of {wanted:?}"));
        }
        let stored: Vec<&Tensor> = set.outputs.iter().filter_map(Value::tensor).collect();
        if given.len() != stored.len() {
            return Err(format!("{} outputs, {} are stored", given.len(), stored.len()));
        }
        for (given, stored) in given.iter().zip(stored) {
            if let Some(difference) = difference(given, stored) {
                return Ok(Verdict::Excused(Kind::Differs, format!("`{}` {difference}", given.name)));
            }
        }
        in_json &= is_text(set);
    }
    // The model's second run. Those that draw random numbers would draw others now, but they differ above already.
    for (set, wanted) in case.sets.iter().zip(expected).filter(|_| in_json) {
        let given = ask(client, request(case, set).json()).await?;
        if given.len() != wanted.len() || !given.iter().zip(wanted).all(|(a, b)| is_same_in_json(a, b)) {
            return Err(format!("in JSON: {given:?} instead of {wanted:?}"));
        }
    }
    Ok(Verdict::Passed { in_json })
}

async fn ask(client: &Client, request: Request) -> Result<Vec<Tensor>, String> {
    let response = client.infer(request).await.map_err(|error| error.to_string())?;
    Ok(response.body.outputs)
}

fn request(case: &Case, set: &DataSet) -> Request {
    let inputs = set.inputs.iter().map(|value| match value {
        Value::Tensor(tensor) => tensor.clone(),
        // No request can hold the real value; whatever is sent in its place must be refused.
        Value::Foreign { name, .. } => {
            Tensor::new(name.clone(), Datatype::Uint8, vec![], vec![0].into()).unwrap()
        }
    });
    inputs.fold(Request::new(case.model.clone()), Request::input)
}

/// Whether JSON can carry the inputs: BYTES must be UTF-8.
fn is_text(set: &DataSet) -> bool {
    let tensors = set.inputs.iter().chain(&set.outputs).filter_map(Value::tensor);
    tensors
        .filter(|tensor| tensor.datatype == Datatype::Bytes)
        .all(|tensor| tensor.bytes_elements().all(|element| std::str::from_utf8(element.unwrap()).is_ok()))
}
