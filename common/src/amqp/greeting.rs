//! What a broker says of itself before anybody logs in.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::address::Address;

const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
const METHOD_FRAME: u8 = 1;
const CONNECTION_START: [u8; 4] = [0, 10, 0, 10];
/// RabbitMQ's greeting has about 500 bytes; the specification's least frame size bounds it.
const MAX_GREETING: usize = 4096;

/// A broker's name and version, from its greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// `RabbitMQ`, usually.
    pub product: String,
    /// For example `3.10.8`.
    pub version: String,
}

/// Opens a plain TCP connection, reads the greeting and hangs up. Blocks. `None` for `amqps://` addresses.
///
/// The AMQP library does not hand the greeting out, hence these lines.
///
/// # Errors
/// When nothing listens, or what listens does not greet as AMQP 0-9-1 brokers do.
pub fn greeting(address: &Address, timeout: Duration) -> Result<Option<Greeting>> {
    if address.is_encrypted() {
        return Ok(None);
    }
    let mut stream = connect(address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(PROTOCOL_HEADER)?;
    let mut head = [0; 7];
    stream.read_exact(&mut head)?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    if head[0] != METHOD_FRAME || size > MAX_GREETING {
        return Err(not_amqp());
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload)?;
    if !payload.starts_with(&CONNECTION_START) {
        return Err(not_amqp());
    }
    let property = |name| server_property(&payload, name).unwrap_or_default();
    Ok(Some(Greeting { product: property("product"), version: property("version") }))
}

fn connect(address: &Address, timeout: Duration) -> Result<TcpStream> {
    let mut failure = Error::new(ErrorKind::NotFound, "the host name has no address");
    for socket in (address.host(), address.port()).to_socket_addrs()? {
        match TcpStream::connect_timeout(&socket, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn not_amqp() -> Error {
    Error::new(ErrorKind::InvalidData, "what listens there is not an AMQP 0-9-1 broker")
}

/// A text entry of the server-properties table: name length, name, `S`, four bytes of length, text.
fn server_property(payload: &[u8], name: &str) -> Option<String> {
    let mut entry = vec![u8::try_from(name.len()).ok()?];
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'S');
    let at = payload.windows(entry.len()).position(|window| window == entry)?;
    let (length, text) = payload[at + entry.len()..].split_first_chunk::<4>()?;
    let text = text.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
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
