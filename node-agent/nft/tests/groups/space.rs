//! Network namespaces of a test: one is the hypervisor, others are guests.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Whether this can be tested here at all. Says so when not, and counts it.
pub(crate) fn is_possible(test: &str) -> bool {
    let out = Command::new("unshare")
        .args(["-n", "nft", "list", "tables"])
        .output();
    if out.is_ok_and(|out| out.status.success()) {
        return true;
    }
    let required = std::env::var("MUSTER_TESTS_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|what| what == "nft"),
        "nft and network namespaces are required, and are not to be had here"
    );
    let line = format!("{test}: nft: network namespaces with nftables need root\n");
    let _ = write!(std::io::stderr(), "SKIPPED: {line}");
    if let Some(file) = std::env::var_os("MUSTER_TESTS_SKIPPED") {
        let file = OpenOptions::new().append(true).create(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
    false
}

/// A network namespace, which goes with this value.
pub(crate) struct Space(String);

impl Space {
    pub(crate) fn new(what: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let space = Self(format!("mtg-{}-{number}-{what}", std::process::id()));
        ip(&["netns", "add", &space.0]);
        space.ip(&["link", "set", "lo", "up"]);
        space
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// One with a bridge `br0`.
    pub(crate) fn hypervisor() -> Self {
        let space = Self::new("hv");
        space.ip(&["link", "add", "br0", "type", "bridge"]);
        space.ip(&["link", "set", "br0", "up"]);
        space
    }

    /// A machine on this hypervisor: its own namespace, with that tap here.
    pub(crate) fn guest(&self, tap: &str, mac: &str, address: &str) -> Self {
        let guest = Self::new("vm");
        guest.ip(&[
            "link", "add", "eth0", "address", mac, "type", "veth", "peer", "name", tap, "netns",
            &self.0,
        ]);
        self.ip(&["link", "set", tap, "master", "br0", "up"]);
        guest.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        guest.ip(&["link", "set", "eth0", "up"]);
        guest
    }

    pub(crate) fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.0], arguments].concat());
    }

    /// Runs a program here.
    pub(crate) fn exec(&self, command: &[&str]) -> Output {
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", &self.0]).args(command);
        ip.output().expect("ip can be started")
    }

    /// What `nft` says here.
    pub(crate) fn nft(&self, arguments: &[&str]) -> String {
        let out = self.exec(&[&["nft"], arguments].concat());
        assert!(out.status.success(), "nft {arguments:?}: {out:?}");
        String::from_utf8(out.stdout).expect("text")
    }

    /// Does something on a thread that is here.
    pub(crate) fn here<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let path = format!("/var/run/netns/{}", self.0);
        let space = File::open(path).expect("a namespace");
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let kind = LinkNameSpaceType::Network;
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&space), Some(kind))
                    .expect("root");
                what()
            });
            thread.join().expect("no panic")
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn ip(arguments: &[&str]) {
    let out = Command::new("ip")
        .args(arguments)
        .output()
        .expect("ip can be started");
    assert!(out.status.success(), "ip {arguments:?}: {out:?}");
}
