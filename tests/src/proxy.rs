//! A network that fails as it is told: a TCP proxy before a broker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Bytes taken at a time.
const CHUNK: usize = 64 << 10;
/// Chunks that are late at a time.
const MOST_LATE: usize = 1_000;

/// How the network carries bytes one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// At once.
    Open,
    /// Nothing arrives, and nobody is told.
    BlackHole,
    /// Late, and in slices of this many bytes.
    Slow {
        /// How late.
        latency: Duration,
        /// Bytes written at a time.
        slice: usize,
    },
    /// So much later, as over a long line: what follows need not wait for it.
    Late(Duration),
    /// The connection is reset after so many bytes more.
    CutAfter(usize),
    /// The connection is reset for whoever made it; the broker is not told.
    Forgotten,
}

/// Both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// From whoever connects to the broker.
    pub there: Way,
    /// From the broker.
    pub back: Way,
}

impl Weather {
    /// Nothing is wrong.
    pub const FAIR: Self = Self { there: Way::Open, back: Way::Open };
}

/// A proxy before one broker; ends with its value, and its connections with it.
pub struct Proxy {
    amqp_url: String,
    weather: Arc<watch::Sender<Weather>>,
    accepting: AbortHandle,
}

impl Proxy {
    /// Stands before the broker of this address.
    ///
    /// # Panics
    /// When there is no port to listen at.
    pub async fn before(amqp_url: &str) -> Self {
        let (credentials, rest) = amqp_url.split_once('@').expect("an address with user and password");
        let (target, virtual_host) = rest.split_once('/').expect("an address with a virtual host");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it listens").port();
        let weather = Arc::new(watch::Sender::new(Weather::FAIR));
        let task = tokio::spawn(accept(listener, target.to_owned(), Arc::clone(&weather)));
        let amqp_url = format!("{credentials}@127.0.0.1:{port}/{virtual_host}");
        Self { amqp_url, weather, accepting: task.abort_handle() }
    }

    /// The proxy's own address.
    pub fn amqp_url(&self) -> &str {
        &self.amqp_url
    }

    /// From now on, for connections that stand too.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: String, weather: Arc<watch::Sender<Weather>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (target, weather) = (target.clone(), Arc::clone(&weather));
        connections.spawn(async move {
            // A broker that is away refuses: so does its proxy.
            let Ok(broker) = TcpStream::connect(&target).await else { return };
            carry(client, broker, &weather).await;
        });
    }
}

/// Carries until one side ends or the weather cuts the connection. Then both are reset, as by a machine that is gone, unless the broker is
/// not to know: what was under way is lost.
async fn carry(client: TcpStream, broker: TcpStream, weather: &watch::Sender<Weather>) {
    for stream in [&client, &broker] {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_zero_linger();
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    let ending = tokio::select! {
        ending = one_way(&mut from_client, &mut to_broker, weather.subscribe(), |weather| weather.there) => ending,
        ending = one_way(&mut from_broker, &mut to_client, weather.subscribe(), |weather| weather.back) => ending,
    };
    if ending == Ending::Forgotten {
        drop((from_client, to_client));
        // Ends with the proxy.
        std::future::pending::<()>().await;
    }
}

#[derive(PartialEq, Eq)]
enum Ending {
    Reset,
    Forgotten,
}

async fn one_way(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    choose: fn(Weather) -> Way,
) -> Ending {
    enum Event {
        Read(std::io::Result<usize>),
        Changed(bool),
        Due,
    }
    let mut buffer = vec![0; CHUNK];
    // Bytes until the cut; counted from when the weather changed.
    let mut left = usize::MAX;
    let mut known = Way::Open;
    let mut late: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    loop {
        let way = choose(*weather.borrow_and_update());
        if way != known {
            known = way;
            left = if let Way::CutAfter(bytes) = way { bytes } else { usize::MAX };
        }
        let due = late.front().map(|(due, _)| *due);
        if way == Way::Forgotten {
            return Ending::Forgotten;
        }
        // Nothing overtakes what is late, whatever the weather has become; and only so much is under way.
        let reads = way != Way::BlackHole
            && (late.is_empty() || (matches!(way, Way::Late(_)) && late.len() < MOST_LATE));
        let event = tokio::select! {
            read = from.read(&mut buffer), if reads => Event::Read(read),
            changed = weather.changed() => Event::Changed(changed.is_ok()),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Event::Due,
        };
        let length = match event {
            Event::Changed(true) => continue,
            Event::Due => {
                let Some((_, bytes)) = late.pop_front() else { continue };
                match to.write_all(&bytes).await {
                    Ok(()) => continue,
                    Err(_) => return Ending::Reset,
                }
            }
            Event::Read(Ok(length @ 1..)) => length,
            Event::Read(_) | Event::Changed(false) => return Ending::Reset,
        };
        let bytes = &buffer[..length.min(left)];
        let written = match way {
            Way::Late(latency) => {
                late.push_back((Instant::now() + latency, bytes.to_vec()));
                Ok(())
            }
            Way::Slow { latency, slice } => {
                tokio::time::sleep(latency).await;
                in_slices(to, bytes, slice).await
            }
            _ => to.write_all(bytes).await,
        };
        if left != usize::MAX {
            left -= bytes.len();
        }
        if written.is_err() || left == 0 {
            return Ending::Reset;
        }
    }
}

async fn in_slices(to: &mut OwnedWriteHalf, bytes: &[u8], slice: usize) -> std::io::Result<()> {
    for slice in bytes.chunks(slice.max(1)) {
        to.write_all(slice).await?;
        to.flush().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A server that gives back what it gets, and a connection to it through a proxy.
    async fn echo() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("amqp://a:b@{}/x", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut from, mut to) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
            }
        });
        let proxy = Proxy::before(&url).await;
        let address = proxy.amqp_url().strip_prefix("amqp://a:b@").unwrap().strip_suffix("/x").unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        (proxy, stream)
    }

    async fn round_trip(stream: &mut TcpStream) -> std::io::Result<[u8; 5]> {
        stream.write_all(b"hello").await?;
        let mut got = [0; 5];
        stream.read_exact(&mut got).await?;
        Ok(got)
    }

    #[tokio::test]
    async fn bytes_arrive_late_or_not_at_all_and_are_not_lost() {
        let (proxy, mut stream) = echo().await;
        assert_eq!(round_trip(&mut stream).await.unwrap(), *b"hello");
        let slow = Way::Slow { latency: Duration::from_millis(60), slice: 1 };
        proxy.set(Weather { there: slow, back: slow });
        let started = Instant::now();
        assert_eq!(round_trip(&mut stream).await.unwrap(), *b"hello");
        assert!(started.elapsed() >= Duration::from_millis(120));
        // Ten one after the other arrive together.
        let late = Way::Late(Duration::from_millis(100));
        proxy.set(Weather { there: late, back: late });
        let started = Instant::now();
        for _ in 0..10 {
            stream.write_all(b"h").await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut got = [0; 10];
        stream.read_exact(&mut got).await.unwrap();
        let took = started.elapsed();
        assert!((Duration::from_millis(200)..Duration::from_millis(900)).contains(&took), "{took:?}");
        for hole in [(Way::BlackHole, Way::Open), (Way::Open, Way::BlackHole)] {
            proxy.set(Weather { there: hole.0, back: hole.1 });
            let waiting = round_trip(&mut stream);
            tokio::pin!(waiting);
            let short = Duration::from_millis(100);
            assert!(tokio::time::timeout(short, &mut waiting).await.is_err(), "{hole:?}");
            proxy.set(Weather::FAIR);
            assert_eq!(waiting.await.unwrap(), *b"hello", "{hole:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_cut_in_the_middle() {
        let (proxy, mut stream) = echo().await;
        proxy.set(Weather { there: Way::Open, back: Way::CutAfter(3) });
        stream.write_all(b"hello").await.unwrap();
        let mut got = Vec::new();
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte).await {
            got.push(byte[0]);
        }
        // A reset may take with it what had arrived.
        assert!(got.len() <= 3, "{got:?}");
        assert!(round_trip(&mut stream).await.is_err());
    }

    #[tokio::test]
    async fn a_connection_is_forgotten_on_one_side_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::before(&format!("amqp://a:b@{}/x", listener.local_addr().unwrap())).await;
        let address = proxy.amqp_url().strip_prefix("amqp://a:b@").unwrap().strip_suffix("/x").unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut broker, _) = listener.accept().await.unwrap();
        client.write_all(b"h").await.unwrap();
        assert_eq!(broker.read_u8().await.unwrap(), b'h');
        proxy.set(Weather { there: Way::Forgotten, back: Way::Forgotten });
        assert!(client.read_u8().await.is_err());
        proxy.set(Weather::FAIR);
        let silence = tokio::time::timeout(Duration::from_millis(200), broker.read_u8()).await;
        assert!(silence.is_err(), "{silence:?}");
    }
}
