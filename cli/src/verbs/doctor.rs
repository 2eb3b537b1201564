//! `muster doctor`

use clap::Args;

use crate::Context;
use crate::failure::Failure;

/// Arguments of `muster doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Checks the installation.
///
/// # Errors
/// [`Failure`].
pub async fn run(_context: &Context, _args: &DoctorArgs) -> Result<u8, Failure> {
    Ok(0)
}
