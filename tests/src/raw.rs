//! AMQP by hand, for messages that no client library would write.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A connection with one channel in confirm mode.
pub struct Raw {
    stream: TcpStream,
}

fn short(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("a short string")], text.as_bytes()].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).expect("a long string").to_be_bytes(), bytes].concat()
}

impl Raw {
    /// Connects as guest to the default virtual host on this machine.
    ///
    /// # Panics
    /// When the broker does not play along.
    pub fn connect(amqp_url: &str) -> Self {
        let port = amqp_url.rsplit(':').next().and_then(|rest| rest.split('/').next()).expect("a port");
        let stream = TcpStream::connect(("127.0.0.1", port.parse().expect("a port"))).expect("a broker");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut raw = Self { stream };
        raw.stream.write_all(b"AMQP\x00\x00\x09\x01").expect("written");
        raw.expect(10, 10);
        let answer = [long(&[]), short("PLAIN"), long(b"\0guest\0guest"), short("en_US")].concat();
        raw.method(0, 10, 11, &answer);
        raw.expect(10, 30);
        raw.method(0, 10, 31, &[0, 1, 0, 2, 0, 0, 0, 0]); // one channel, frames of 131,072 bytes, no heartbeat
        raw.method(0, 10, 40, &[short("/"), short(""), vec![0]].concat());
        raw.expect(10, 41);
        raw.method(1, 20, 10, &short(""));
        raw.expect(20, 11);
        raw.method(1, 85, 10, &[0]);
        raw.expect(85, 11);
        raw
    }

    /// Publishes a message of these property flags and properties, and waits until the broker has it.
    ///
    /// # Panics
    /// When the broker does not confirm it.
    pub fn publish(&mut self, exchange: &str, key: &str, flags: u16, properties: &[u8], body: &[u8]) {
        self.method(1, 60, 40, &[vec![0, 0], short(exchange), short(key), vec![0]].concat());
        let size = (body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0], &size[..], &flags.to_be_bytes(), properties].concat();
        self.frame(2, 1, &header);
        self.frame(3, 1, body);
        self.expect(60, 80);
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        self.frame(1, channel, &[&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat());
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let frame = [&[kind], &channel.to_be_bytes()[..], &long(payload), &[0xce]].concat();
        self.stream.write_all(&frame).expect("written");
    }

    fn expect(&mut self, class: u16, method: u16) {
        let mut head = [0; 7];
        self.stream.read_exact(&mut head).expect("an answer");
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        self.stream.read_exact(&mut payload).expect("a whole answer");
        let wanted = [class.to_be_bytes(), method.to_be_bytes()].concat();
        assert!(
            payload.starts_with(&wanted),
            "{class}.{method} expected: {}",
            String::from_utf8_lossy(&payload)
        );
    }
}
