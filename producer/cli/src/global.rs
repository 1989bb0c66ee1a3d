//! The flags that every command has, and what follows from them: configuration, logs, connections.

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgAction, Args};
use millrace_common::amqp::address::Address;
use millrace_common::amqp::connection::Connector;
use millrace_common::telemetry::logs;
use millrace_producer::{Client, Config};

use crate::exit::usage;

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
        Ok(Client::builder(self.load()?).name("millrace").connect().await?)
    }
}

/// A way to connect without a reply queue.
pub(crate) fn connector(config: &Config) -> Result<Connector> {
    Ok(Connector::new(&config.broker, "millrace")?)
}
