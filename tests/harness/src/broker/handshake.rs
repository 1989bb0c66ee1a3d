//! Asks a port whether a broker is ready to serve, as a client would: a command line tool takes over a second to answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
const METHOD_FRAME: u8 = 1;
const CONNECTION_START: [u8; 4] = [0, 10, 0, 10];
/// Brokers that are still booting accept, and may then say nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Opens an AMQP 0-9-1 connection up to the broker's `Connection.Start` and returns the version it names.
pub(super) fn version_at(port: u16) -> Result<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(PROTOCOL_HEADER)?;
    let mut head = [0; 7];
    stream.read_exact(&mut head)?;
    ensure!(head[0] == METHOD_FRAME, "no AMQP 0-9-1 method frame");
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    // A connection's first frame is under 4,096 bytes by the specification (section 4.2.3, frame-min-size).
    ensure!(size <= 4096, "a frame of {size} bytes is no Connection.Start");
    let mut payload = vec![0; size as usize];
    stream.read_exact(&mut payload)?;
    ensure!(payload.starts_with(&CONNECTION_START), "the first frame is no Connection.Start");
    server_property(&payload, "version").context("Connection.Start names no version")
}

/// The management API serves later than AMQP: RabbitMQ 4.3 answers 500 until its boot is complete.
pub(super) fn management_answers(url: &str) -> Result<()> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
    agent.get(format!("{url}/api/overview")).call()?;
    Ok(())
}

/// A long-string entry of the server-properties table: name length, name, `S`, four bytes of length, text.
fn server_property(payload: &[u8], name: &str) -> Option<String> {
    let mut entry = vec![u8::try_from(name.len()).ok()?];
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'S');
    let at = payload.windows(entry.len()).position(|window| window == entry)?;
    let (length, text) = payload[at + entry.len()..].split_first_chunk::<4>()?;
    let text = text.get(..u32::from_be_bytes(*length) as usize)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_is_found_and_a_cut_table_is_not_read_past_its_end() {
        let table = b"\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x063.10.8";
        assert_eq!(server_property(table, "version").as_deref(), Some("3.10.8"));
        assert_eq!(server_property(&table[..table.len() - 1], "version"), None);
        assert_eq!(server_property(table, "platform"), None);
    }
}
