use super::*;

fn size<F: Future>(_: fn(&'static Client, Request) -> F) -> usize {
    size_of::<F>()
}

/// Callers hold thousands; each is moved into a set. Before the futures of a lone request and of the cache were boxed one had 7,624 bytes.
#[test]
fn the_futures_of_packed_requests_are_small() {
    assert!(size(Client::infer) <= 800, "{}", size(Client::infer));
    assert!(size(Client::submit) <= 1100, "{}", size(Client::submit));
}
