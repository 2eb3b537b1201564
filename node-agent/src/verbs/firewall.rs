//! `muster-agent firewall-guard` and `muster-agent firewall-restore`.

use std::path::PathBuf;

use muster_nft::host::{Restored, Setting, guard};
use muster_nft::nft::{self, Nft};
use muster_nft::{Booted, Guests, boot};
use tracing::{info, warn};

use crate::cli::Failure;
use crate::config::{BOOT_ID, Config, DEFAULT_STATE};
use crate::host::groups;
use crate::logging::{self, LogFormat};

/// Where the host firewall's changes are kept, in the state directory.
pub const HOST_DIR: &str = "firewall/host";

/// Arguments of `firewall-guard`.
#[derive(Debug, clap::Args)]
pub struct GuardArgs {
    /// Where changes are kept
    #[arg(long)]
    dir: PathBuf,
    /// The program that sets rules
    #[arg(long)]
    nft: PathBuf,
    /// Which change
    #[arg(long)]
    token: String,
    /// This program
    #[arg(long)]
    program: PathBuf,
    /// Watch, in place of starting the one that does
    #[arg(long)]
    watch: bool,
}

/// Stands guard over a change of the firewall, and takes it back when nobody
/// confirms it.
///
/// # Errors
/// [`Failure`].
pub fn guard(args: &GuardArgs) -> Result<(), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::new(1, e);
    crate::host::close_inherited();
    logging::init(LogFormat::default()).map_err(|e| fail(&e))?;
    guard::main(&guard::Args {
        dir: args.dir.clone(),
        nft: args.nft.clone(),
        token: args.token.clone(),
        program: args.program.clone(),
        watch: args.watch,
    })
    .map_err(|e| fail(&e))
}

/// Arguments of `firewall-restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The state directory; wins over the configuration
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The configuration; without this and without --state, the system's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The program that sets rules; without this, the one that the agent takes
    #[arg(long, value_name = "FILE")]
    nft: Option<PathBuf>,
    /// The file with the machine's boot id
    #[arg(long, value_name = "FILE", default_value = BOOT_ID, hide = true)]
    boot_id: PathBuf,
}

/// Before the network of a machine that starts, and before its agent: a
/// change that nobody confirmed is taken back, and the confirmed rules are
/// put in force; machines say and hear what their groups allow, and nothing
/// else.
///
/// # Errors
/// [`Failure`].
pub fn restore_all(args: &RestoreArgs) -> Result<(), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::new(1, e);
    logging::init(LogFormat::default()).map_err(|e| fail(&e))?;
    let state = match Config::load(args.config.as_deref(), args.state.as_deref()) {
        Ok(config) => config.state,
        // A mistake in the configuration must not leave the machine open.
        Err(e) => {
            warn!("{e}; the state is taken to be in {DEFAULT_STATE}");
            PathBuf::from(DEFAULT_STATE)
        }
    };
    let nft = args.nft.clone().unwrap_or_else(nft::find);
    let setting = Setting {
        dir: state.join(HOST_DIR),
        nft: Nft::new(&nft),
        // Nobody is set to stand guard here.
        program: PathBuf::new(),
        boot_id: args.boot_id.clone(),
    };
    let booted = boot(&setting, &state.join(groups::DIRECTORY));
    told(&booted);
    booted.failed().map_or(Ok(()), |failed| Err(fail(&failed)))
}

fn told(booted: &Booted) {
    if let Ok(restored) = &booted.host {
        host_told(restored);
    }
    match booted.groups {
        Ok(Guests::Closed) => info!("the security groups that were last held are in force"),
        Ok(Guests::Busy) => info!("the security groups are left to the agent that runs"),
        Ok(Guests::None) | Err(_) => {}
    }
}

fn host_told(restored: &Restored) {
    if let Some((change, ended)) = &restored.rolled_back {
        warn!(%change, "a change of the host firewall was not confirmed: {ended}");
    }
    if let Some(change) = &restored.loaded {
        info!(%change, "the confirmed rules of the host firewall are in force");
    }
    if restored.busy {
        info!("a change of the host firewall is being made; it was left alone");
    }
}
