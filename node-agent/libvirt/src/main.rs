//! Asked on its standard input, a line of JSON at a time; see the library.

mod domains;
mod failed;
mod host;
mod input;
mod kernel;
mod out;
mod program;
mod sys;
mod volumes;

use std::process::ExitCode;

fn main() -> ExitCode {
    program::run(std::env::args_os().skip(1))
}
