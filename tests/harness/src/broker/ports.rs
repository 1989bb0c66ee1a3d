//! Port numbers for one broker.

use std::fs;
use std::net::TcpListener;
use std::ops::RangeInclusive;

use anyhow::{Context, Result};

/// Ports a broker takes, in one aligned block, so that two brokers' blocks never overlap in part.
const BLOCK: u16 = 16;
const LOWEST: u16 = 10_000;

#[derive(Debug, Clone)]
pub(super) struct Ports {
    pub(super) amqp: u16,
    pub(super) management: u16,
    pub(super) prometheus: u16,
    pub(super) epmd: u16,
    pub(super) distribution: u16,
    pub(super) tls: u16,
    /// One for each command line tool that runs at the same time.
    pub(super) tools: RangeInclusive<u16>,
}

impl Ports {
    /// Free ports; `amqp` fixes that one only.
    ///
    /// None lies in the range from which the kernel takes the ports of outgoing connections: there a client that
    /// reconnects to a killed broker can be given the broker's own port, connect to itself and keep the port from it.
    pub(super) fn pick(amqp: Option<u16>) -> Result<Self> {
        let highest = first_outgoing_port().max(LOWEST + 100 * BLOCK);
        let blocks = (highest - LOWEST) / BLOCK;
        for _ in 0..100 {
            let base = LOWEST + rand::random_range(0..blocks) * BLOCK;
            let ports = Self {
                amqp: amqp.unwrap_or(base),
                management: base + 1,
                prometheus: base + 2,
                epmd: base + 3,
                distribution: base + 4,
                tls: base + 5,
                tools: base + 6..=base + BLOCK - 1,
            };
            if (base + 1..base + BLOCK).all(is_free) && (amqp.is_some() || is_free(base)) {
                return Ok(ports);
            }
        }
        Err(anyhow::anyhow!("no free ports below {highest}"))
            .context("a private broker needs 16 neighbouring free ports; stop brokers left running")
    }
}

pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

fn first_outgoing_port() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_stay_out_of_the_outgoing_range() {
        let ports = Ports::pick(None).unwrap();
        let all = [
            ports.amqp,
            ports.management,
            ports.prometheus,
            ports.epmd,
            ports.distribution,
            ports.tls,
            *ports.tools.start(),
        ];
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
        assert!(*ports.tools.end() < first_outgoing_port());
        assert_eq!(Ports::pick(Some(5672)).unwrap().amqp, 5672);
    }
}
