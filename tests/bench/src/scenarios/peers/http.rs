//! The client of the peer without a broker: one kept-alive HTTP/1.1 connection for each request under way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::closed_loop::{Figures, Processes, Tally};

const PATH: &str = "/inference";

/// What is sent, and where to.
pub(super) struct Client {
    address: SocketAddr,
    body: Bytes,
}

impl Client {
    pub(super) fn new(address: SocketAddr, body: Vec<u8>) -> Self {
        Self { address, body: body.into() }
    }

    /// One request's answer.
    pub(super) async fn ask(&self) -> Result<Bytes> {
        let mut sender = self.connect().await?;
        self.post(&mut sender).await
    }

    /// Keeps `in_flight` requests under way for `duration`, after a second of warm-up.
    pub(super) async fn load(
        &self,
        in_flight: usize,
        processes: Processes,
        duration: Duration,
    ) -> Result<Figures> {
        let size = self.ask().await?.len();
        let send = |mut sender: SendRequest<Full<Bytes>>| async move {
            let started = Instant::now();
            let answer = self.post(&mut sender).await?;
            ensure!(answer.len() == size, "an answer of {} bytes instead of {size}", answer.len());
            anyhow::Ok((sender, started.elapsed()))
        };
        let mut open = FuturesUnordered::new();
        for _ in 0..in_flight {
            open.push(send(self.connect().await?));
        }
        let mut tally = Tally::start(processes, duration);
        while let Some(answered) = open.next().await {
            let (sender, latency) = answered?;
            if !tally.count(latency) {
                break;
            }
            open.push(send(sender));
        }
        Ok(tally.finish())
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends when its sender is dropped.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn post(&self, sender: &mut SendRequest<Full<Bytes>>) -> Result<Bytes> {
        let request = Request::post(PATH).header(HOST, "localhost").body(Full::new(self.body.clone()))?;
        let response = sender.send_request(request).await.context("the connection is gone")?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }
}
