//! A release that is broken, for the tests of upgrades: it says that it would
//! do, and then it does not. The last number of its version, which a test
//! writes into its marker, says in which way.

use std::hint::black_box;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::release::{MARKER_BYTES, Release, digit, marker};

#[used]
static MARKER: [u8; MARKER_BYTES] = marker(&[
    "{\"program\":\"muster-agent\",\"version\":\"9.0.0\",\"protocol\":",
    digit(PROTOCOL_VERSION),
    ",\"capabilities\":[\"command\"],\"build\":{\"os\":\"",
    std::env::consts::OS,
    "\",\"arch\":\"",
    std::env::consts::ARCH,
    "\",\"state\":9,\"journal\":9}}",
]);

fn main() -> ExitCode {
    let Some(about) = Release::read(black_box(&MARKER)) else {
        return ExitCode::from(9);
    };
    let version = about.version.to_string();
    let way = version.rsplit('.').next().unwrap_or_default();
    if std::env::args().any(|arg| arg == "--self-test") {
        if way == "0" {
            let _ = writeln!(std::io::stderr(), "error: the weather is bad");
            return ExitCode::from(1);
        }
        let json = serde_json::to_string(&about).unwrap_or_default();
        let _ = writeln!(std::io::stdout(), "{json}");
        return ExitCode::SUCCESS;
    }
    match way {
        // Ends at once.
        "1" => ExitCode::from(3),
        // Hangs.
        _ => loop {
            std::thread::sleep(Duration::from_secs(60));
        },
    }
}
