//! What this executable says about itself. See
//! [`muster_protocol::release`].

use std::hint::black_box;
use std::sync::LazyLock;

use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::release::{Build, MARKER_BYTES, Release, digit, marker};

use crate::{journal, state};

/// The marker: read by those who have this file, without running it.
#[used]
static MARKER: [u8; MARKER_BYTES] = marker(&[
    "{\"program\":\"muster-agent\",\"version\":\"",
    env!("CARGO_PKG_VERSION"),
    "\",\"protocol\":",
    digit(PROTOCOL_VERSION),
    ",\"capabilities\":[\"command\",\"shell\",\"upgrade\",\"file\",\"package\",\"service\",\"user\",\"http\",\"puppet\",\"reboot\",\"vm\"],\"build\":{\"os\":\"",
    std::env::consts::OS,
    "\",\"arch\":\"",
    std::env::consts::ARCH,
    "\",\"state\":",
    digit(state::FORMAT),
    ",\"journal\":",
    digit(journal::FORMAT),
    "}}",
]);

static ABOUT: LazyLock<Release> = LazyLock::new(|| {
    // Read from the bytes themselves, so that what is said by those who scan
    // the file and by those who run it can never differ.
    Release::read(black_box(&MARKER)).expect("this executable's marker is made of constants")
});

/// What this executable is.
#[must_use]
pub fn about() -> &'static Release {
    &ABOUT
}

/// Its version, for people.
#[must_use]
pub fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| ABOUT.version.to_string());
    &TEXT
}

/// What it was built for.
#[must_use]
pub fn build() -> &'static Build {
    &ABOUT.build
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::executor::{Builtins, Executor as _};

    #[test]
    fn the_marker_says_what_this_agent_is() {
        assert_eq!(version(), env!("CARGO_PKG_VERSION"));
        assert_eq!(about().protocol, PROTOCOL_VERSION);
        assert_eq!(
            (build().state, build().journal),
            (state::FORMAT, journal::FORMAT)
        );
        // With everything granted, it can do what the marker says.
        let mut config = Config::default();
        config.capabilities.vm = true;
        let (builtins, _) = Builtins::new(&config);
        assert_eq!(builtins.capabilities(), about().capabilities);
    }
}
