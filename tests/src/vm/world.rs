//! The network between the test, its broker and its hypervisors: a network
//! namespace with a bridge.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::namespace::{Left, Namespace};
use crate::Said;

/// Where the test, a broker and NATS are.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

const SETUP: &str = "
ip link set lo up
ip link add lan type bridge
ip addr add 10.77.0.1/16 dev lan
ip addr add fd77::1/64 dev lan nodad
ip link set lan up
mount -t sysfs sys /sys
";

/// It. Everything in it has an address of `10.77.0.0/16` and may have one of
/// `fd77::/64`: `.0.N` is hypervisor N, `.1.0` and above are guests.
#[derive(Debug)]
pub struct World {
    inside: Option<Namespace>,
    /// The network that the thread came from.
    before: File,
}

impl World {
    /// A new one, and the thread that calls is in its network from now on,
    /// with everything that it starts.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn enter() -> Result<Self> {
        let before = File::open("/proc/thread-self/ns/net")?;
        let inside = Namespace::new(SETUP, Path::new("/"))?;
        inside.enter_network()?;
        Ok(Self {
            inside: Some(inside),
            before,
        })
    }

    fn inside(&self) -> &Namespace {
        self.inside.as_ref().expect("it is there until it is ended")
    }

    /// The address to listen on, for hypervisors and guests to reach.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        HERE.into()
    }

    /// Runs a command in its network.
    #[must_use]
    pub fn run(&self, argv: &[&str]) -> Said {
        self.inside().run(argv)
    }

    /// The same for one that must do well; what it printed.
    ///
    /// # Errors
    /// When it does not.
    pub fn done(&self, argv: &[&str]) -> Result<String> {
        self.inside().done(argv)
    }

    /// Lays a cable to a namespace, where it is called `uplink`; here it is
    /// called `name`.
    pub(super) fn cable(&self, name: &str, to: &Namespace) -> Result<()> {
        let pid = to.pid().to_string();
        // Not within this world's processes, where the number means another.
        let mut ip = std::process::Command::new("nsenter");
        ip.args(["--target", &self.inside().pid().to_string(), "--net", "--"])
            .args(["ip", "link", "add", "name", name, "type", "veth"])
            .args(["peer", "name", "uplink", "netns", &pid]);
        let said = crate::finish(ip);
        anyhow::ensure!(said.code == 0, "no cable {name}: {}", said.err);
        self.done(&["ip", "link", "set", name, "master", "lan", "up"])?;
        Ok(())
    }

    /// Cuts the cable of a hypervisor, or mends it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn cut(&self, name: &str, cut: bool) -> Result<()> {
        let state = if cut { "down" } else { "up" };
        self.done(&["ip", "link", "set", name, state]).map(|_| ())
    }

    /// Ends it; what is to be asked afterwards. The thread that calls is back
    /// where it came from.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(mut self) -> Result<Left> {
        let inside = self
            .inside
            .take()
            .context("it is there until it is ended")?;
        self.leave()?;
        inside.end()
    }

    fn leave(&self) -> Result<()> {
        let network = Some(LinkNameSpaceType::Network);
        Ok(move_into_link_name_space(self.before.as_fd(), network)?)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The thread may run another test after this one.
        let _ = self.leave();
    }
}
