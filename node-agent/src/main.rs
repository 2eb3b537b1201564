//! The `muster-agent` command.

fn main() -> std::process::ExitCode {
    muster_agent::install_crypto();
    let args = std::env::args_os();
    muster_agent::main(args)
}
