//! Many requests, a bounded number in flight.

use futures_util::stream::{Stream, StreamExt};

use crate::client::Client;
use crate::error::Error;
use crate::request::Request;
use crate::response::Response;

impl Client {
    /// Sends every request of a stream, at most `in_flight` at a time, and yields the results as they come, each with the
    /// position of its request. Takes the next request only when there is room.
    ///
    /// ```no_run
    /// # use millrace_producer::{Client, Config, Request};
    /// # use futures_util::{StreamExt, stream};
    /// # async fn example(client: Client) {
    /// let requests = stream::iter((0..1000).map(|_| Request::new("digits")));
    /// let mut results = client.stream(requests, 100);
    /// while let Some((position, outcome)) = results.next().await {
    ///     println!("{position}: {}", outcome.is_ok());
    /// }
    /// # }
    /// ```
    pub fn stream<S>(
        &self,
        requests: S,
        in_flight: usize,
    ) -> impl Stream<Item = (usize, Result<Response, Error>)> + use<S>
    where
        S: Stream<Item = Request>,
    {
        let client = self.clone();
        requests
            .enumerate()
            .map(move |(position, request)| {
                let client = client.clone();
                async move { (position, client.infer(request).await) }
            })
            .buffer_unordered(in_flight.max(1))
    }
}
