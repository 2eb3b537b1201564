//! The `muster-fleet-sim` command.

fn main() -> std::process::ExitCode {
    muster_agent::install_crypto();
    let args = std::env::args_os();
    muster_fleet_sim::main(args)
}
