//! The flags that every command has, and what follows from them: configuration, logs, connections.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{ArgAction, Args};
use millrace_common::amqp::address::Address;
use millrace_common::amqp::connection::Connector;
use millrace_common::amqp::inspect::missing;
use millrace_common::telemetry::logs;
use millrace_producer::{Client, Config};

use crate::exit::usage;
use crate::topology::only_exchanges;

/// Flags of every command.
#[derive(Args)]
pub(crate) struct Global {
    /// Configuration file (TOML); only the keys that differ from the defaults
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MILLRACE_CONFIG",
        help_heading = "Global options"
    )]
    pub(crate) config: Option<PathBuf>,

    /// Broker address; goes before configuration and MILLRACE_AMQP_URL. Others on this machine can read command lines: a
    /// password is safer in the variable
    // Text, and parsed later: the argument parser would repeat a bad address, password included.
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    amqp: Option<String>,

    /// Say more on standard error: timings, connections; twice for debugging
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,
}

impl Global {
    /// The configuration; logging starts with it.
    pub(crate) fn load(&self) -> Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(addresses) = &self.amqp {
            let parsed = addresses.split(',').map(str::parse::<Address>).collect::<Result<_, _>>();
            config.broker.addresses = parsed.map_err(|error| usage(format!("--amqp: {error}")))?;
        }
        match self.verbose {
            0 => {}
            1 => config.logs.filter = "info".to_owned(),
            _ => config.logs.filter = "debug".to_owned(),
        }
        logs::init(&config.logs);
        Ok(config)
    }

    /// A client with a reply queue of its own.
    pub(crate) async fn connect(&self) -> Result<Client> {
        let config = self.load()?;
        reach(&config).await?;
        Ok(Client::builder(config).name("millrace").connect().await?)
    }
}

/// Fails at once and with one line where no address answers, or the topology is not there. The library tries again for a
/// while, and logs each attempt.
pub(crate) async fn reach(config: &Config) -> Result<()> {
    if config.topology.declare {
        return Ok(()); // the client's first step, declaring the topology, finds out
    }
    let names = config.topology.names();
    let needed = only_exchanges(config, &[names.request_exchange(), names.reply_exchange()]);
    let missing = missing(&connector(config)?, &needed).await?;
    if !missing.is_empty() {
        bail!(
            "{} missing on the broker: let an operator run `millrace topology apply`; or check topology.prefix and the \
             virtual host",
            missing.join(", ")
        );
    }
    Ok(())
}

/// A way to connect without a reply queue.
pub(crate) fn connector(config: &Config) -> Result<Connector> {
    Ok(Connector::new(&config.broker, "millrace")?)
}
