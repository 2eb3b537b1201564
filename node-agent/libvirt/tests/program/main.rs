//! The program, held against libvirt: its test driver for breadth, and a real
//! libvirtd with directories and a network of its own for the rest.

use std::io::Write as _;

#[cfg(feature = "libvirt")]
mod client;
#[cfg(feature = "libvirt")]
mod daemon;
#[cfg(feature = "libvirt")]
mod machines;
#[cfg(feature = "libvirt")]
mod real;
#[cfg(feature = "libvirt")]
mod simulated;

/// Says that something was not tested; a failure where it must be.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
    let required = std::env::var("MUSTER_TESTS_REQUIRE").unwrap_or_default();
    assert!(!required.contains("libvirt"), "required here: {why}");
}

#[cfg(not(feature = "libvirt"))]
#[test]
fn the_program_is_tested_with_its_feature() {
    skip("muster-libvirt is not built: its feature `libvirt` is off");
}
