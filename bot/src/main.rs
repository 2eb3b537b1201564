//! The `muster-bot` command. See [`muster_bot`].

fn main() -> std::process::ExitCode {
    muster_bot::main()
}
