//! The `muster` command. See [`muster_cli`].

fn main() -> std::process::ExitCode {
    muster_cli::main()
}
