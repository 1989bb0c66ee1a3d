use bytes::Bytes;
use millrace_common::protocol::request::Parameter;
use millrace_common::protocol::tensor::push_bytes_element;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const BUDGET: Duration = Duration::from_secs(60);

fn request(rows: i64) -> Request {
    let data: Vec<u8> = (0..rows * 2).flat_map(|value| (value as f32).to_le_bytes()).collect();
    Request::new("m").input(Tensor::new("x", Datatype::Fp32, vec![rows, 2], data.into()).unwrap())
}

fn key_of(request: &Request) -> Key {
    traits(request, BUDGET, false).unwrap().key
}

#[test]
fn requests_that_differ_in_more_than_rows_have_other_keys() {
    let other_shape = Tensor::new("x", Datatype::Fp32, vec![1, 3], vec![0; 12].into()).unwrap();
    let other_type = Tensor::new("x", Datatype::Int32, vec![1, 2], vec![0; 8].into()).unwrap();
    let second = Tensor::new("y", Datatype::Fp32, vec![1, 2], vec![0; 8].into()).unwrap();
    let mut binary = request(1).output("y");
    binary.body.outputs[0].binary = Some(true);
    // Written without counts, an input of rank 1 would look like an output.
    let flat = Tensor::new("y", Datatype::Uint16, vec![1], vec![0; 2].into()).unwrap();
    let others = [
        request(1),
        request(1).input(flat),
        request(1).tier("free"),
        request(1).version(1),
        request(1).version(0),
        request(1).json(),
        request(1).input(second),
        request(1).output("y"),
        request(1).output("z"),
        binary,
        request(1).parameter("p", Parameter::Int(1)),
        request(1).parameter("p", Parameter::Int(2)),
        Request::new("m2").input(request(1).body.inputs.remove(0)),
        Request::new("m").input(other_shape),
        Request::new("m").input(other_type),
    ];
    let mut keys: Vec<Key> = others.iter().map(key_of).collect();
    keys.push(traits(&request(1), BUDGET * 2, false).unwrap().key);
    keys.sort();
    let count = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), count);
    let alike = [request(3), request(1).correlation_id("c")];
    assert!(alike.iter().all(|request| key_of(request) == key_of(&self::request(1))));
    let nearly = BUDGET - Duration::from_millis(1);
    assert_eq!(
        traits(&request(1), nearly, false).unwrap().key,
        traits(&request(1), nearly, false).unwrap().key
    );
}

#[test]
fn budgets_of_a_class_are_nearly_equal() {
    let mut ms = 1u64;
    while ms < 1 << 40 {
        let class = deadline_class(Duration::from_millis(ms));
        assert!(class <= ms && ms - class <= ms / 16, "{ms}: {class}");
        ms += ms / 50 + 1;
    }
}

#[test]
fn some_requests_travel_alone() {
    let scalar = Tensor::new("s", Datatype::Fp32, vec![], vec![0; 4].into()).unwrap();
    let two_rows = Tensor::new("y", Datatype::Fp32, vec![2], vec![0; 8].into()).unwrap();
    let mut torn = request(1);
    torn.body.inputs[0].data = Bytes::from_static(&[0; 3]);
    let large = Tensor::new("x", Datatype::Uint8, vec![1, 2 << 20], vec![0; 2 << 20].into()).unwrap();
    for alone in [
        request(1).urgent(),
        request(0),
        Request::new("m"),
        Request::new("m").input(scalar),
        request(1).input(two_rows),
        torn,
        Request::new("m").input(large),
    ] {
        assert!(traits(&alone, BUDGET, true).is_none(), "{alone:?}");
    }
}

fn add(lots: &mut Lots<u32>, rows: i64, most: u32, member: u32) -> (Option<Vec<u32>>, Option<u64>) {
    let Added { complete, opened } = lots.add(&traits(&request(rows), BUDGET, false).unwrap(), most, member);
    (complete, opened)
}

#[test]
fn a_lot_is_complete_when_it_is_full_and_never_larger() {
    let mut lots = Lots::default();
    let key = key_of(&request(1));
    assert_eq!(add(&mut lots, 1, 4, 0), (None, Some(1)));
    assert_eq!(add(&mut lots, 2, 4, 1), (None, None));
    assert_eq!(add(&mut lots, 1, 4, 2), (Some(vec![0, 1, 2]), None));
    assert_eq!(lots.close(&key, 1), None, "its linger ends later and finds nothing");
    assert_eq!(add(&mut lots, 3, 4, 3), (None, Some(2)));
    assert_eq!(add(&mut lots, 2, 4, 4), (Some(vec![3]), Some(3)));
    assert_eq!(lots.close(&key, 2), None);
    assert_eq!(lots.close(&key, 3), Some(vec![4]));
    assert_eq!(lots.close(&key, 3), None);
}

#[test]
fn nothing_is_kept_of_what_was_answered() {
    let mut lots = Lots::<u32>::default();
    let key = key_of(&request(1));
    assert!(!lots.wants_company(&key));
    lots.send(&key);
    lots.send(&key);
    lots.answered(&key);
    assert!(lots.wants_company(&key));
    add(&mut lots, 1, 4, 0);
    lots.answered(&key);
    assert!(!lots.wants_company(&key));
    assert_eq!(lots.close(&key, 1), Some(vec![0]));
    assert!(lots.by_key[&key].members.is_empty());
    lots.send(&key);
    lots.answered(&key);
    assert!(lots.by_key.is_empty());
}

#[test]
fn nobody_waits_where_company_never_comes() {
    let mut lots = Lots::<u32>::default();
    let key = key_of(&request(1));
    lots.send(&key);
    let mut number = 0;
    let mut alone = |lots: &mut Lots<u32>, members: u32| {
        for member in 0..members {
            add(lots, 1, 9, member);
        }
        number += 1;
        lots.close(&key_of(&request(1)), number).unwrap();
    };
    // The last of many is often by itself.
    for _ in 0..10 {
        alone(&mut lots, 1);
        alone(&mut lots, 5);
        assert!(lots.wants_company(&key));
    }
    for _ in 0..IN_VAIN {
        assert!(lots.wants_company(&key));
        alone(&mut lots, 1);
    }
    let excused = (0..50).filter(|_| !lots.wants_company(&key)).count();
    assert_eq!(excused, EXCUSED as usize);
}

#[test]
fn a_manifest_never_outgrows_an_id() {
    let mut lots = Lots::default();
    let id = |length: usize| request(1).correlation_id("\"".repeat(length));
    let mut packs = Vec::new();
    for number in 0..500 {
        let request = id(number % 256);
        let traits = traits(&request, BUDGET, true).unwrap();
        packs.extend(lots.add(&traits, 4096, request).complete);
    }
    assert!(packs.len() > 10);
    for pack in packs {
        let text = manifest(&pack.iter().collect::<Vec<_>>());
        assert!(text.len() <= MAX_ID_BYTES, "{}", text.len());
        let response = InferResponse { id: Some(text), ..InferResponse::default() };
        let ids: Vec<_> =
            members(&response).unwrap().into_iter().map(|member| member.correlation_id).collect();
        assert_eq!(ids, pack.iter().map(|request| request.correlation_id.clone()).collect::<Vec<_>>());
    }
    assert_eq!(members(&InferResponse { id: Some("mine".into()), ..InferResponse::default() }), None);
}

fn texts(rows: &[Vec<u8>]) -> Tensor {
    let mut data = Vec::new();
    rows.iter().for_each(|row| push_bytes_element(&mut data, row));
    Tensor::new("t", Datatype::Bytes, vec![rows.len() as i64, 1], data.into()).unwrap()
}

proptest! {
    #[test]
    fn what_is_joined_is_split_again(members in vec(vec(vec(any::<u8>(), 0..5), 1..5), 1..10)) {
        let requests: Vec<Request> =
            members.iter().map(|rows| request(rows.len() as i64).input(texts(rows))).collect();
        let whole = join(&requests.iter().collect::<Vec<_>>());
        for input in &whole.inputs {
            input.check().unwrap();
        }
        let rows: Vec<u32> = members.iter().map(|rows| rows.len() as u32).collect();
        let response = InferResponse { outputs: whole.inputs, ..InferResponse::default() };
        let parts = split(&response, &rows).unwrap();
        for (part, request) in parts.iter().zip(&requests) {
            prop_assert_eq!(&part.outputs, &request.body.inputs);
        }
        let other = [&rows[..], &[1]].concat();
        prop_assert_eq!(split(&response, &other), None);
    }
}
