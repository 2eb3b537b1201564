//! A hypervisor and what is plugged into its bridges, as two namespaces: one
//! has the bridges, the other one the far ends of all the cables.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use muster_firewall::groups::objects::{Listed, ListedRule, Name};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(5);

/// A port of a bridge: its name, its bridge, and the hardware address of what
/// is plugged in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port {
    pub(crate) name: &'static str,
    pub(crate) bridge: &'static str,
    pub(crate) mac: [u8; 6],
}

pub(crate) const fn mac(bridge: u8, last: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, bridge, last]
}

/// Four machines, one that nothing is known of, the way out, and a machine of
/// somebody else.
pub(crate) const PORTS: [Port; 7] = [
    Port {
        name: "mtaaa",
        bridge: "br0",
        mac: mac(0, 0x11),
    },
    Port {
        name: "mtbbb",
        bridge: "br0",
        mac: mac(0, 0x12),
    },
    Port {
        name: "mtccc",
        bridge: "br0",
        mac: mac(0, 0x13),
    },
    Port {
        name: "mtddd",
        bridge: "br1",
        mac: mac(0, 0x14),
    },
    Port {
        name: "mtxxx",
        bridge: "br0",
        mac: mac(0, 0x1f),
    },
    Port {
        name: "up0",
        bridge: "br0",
        mac: mac(0, 0x50),
    },
    Port {
        name: "vnet9",
        bridge: "br0",
        mac: mac(0, 0x59),
    },
];

/// The hypervisor's own hardware addresses, on `br0` and `br1`.
pub(crate) const HOST_MACS: [[u8; 6]; 2] = [mac(1, 1), mac(1, 2)];

pub(crate) fn port(name: &str) -> &'static Port {
    PORTS
        .iter()
        .find(|port| port.name == name)
        .expect("a port of that name")
}

/// Who got which frame: its number and the port.
pub(crate) type Got = BTreeSet<(u64, &'static str)>;

/// Stands in every frame before its number.
const MAGIC: &[u8; 6] = b"mQ7!x:";

/// Bytes that tell a frame from all others.
pub(crate) fn sign(number: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(number.to_be_bytes());
    bytes
}

fn signed(frame: &[u8]) -> Option<u64> {
    let at = frame.windows(MAGIC.len()).rposition(|w| w == MAGIC)?;
    let number = frame.get(at + MAGIC.len()..at + MAGIC.len() + 8)?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

pub(crate) struct World {
    host: String,
    far: String,
    sockets: BTreeMap<&'static str, OwnedFd>,
    /// All that came, since the beginning.
    got: Got,
    next: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        for namespace in [&self.host, &self.far] {
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// Runs it with that on its standard input; its output.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(program);
    let mut stdin = child.stdin.take().expect("its input");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let out = child.wait_with_output().expect("its output");
    let _ = writer.join();
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
    }
}

impl World {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |what| format!("mpk{}-{count}{what}", std::process::id());
        let mut world = Self {
            host: name("h"),
            far: name("g"),
            sockets: BTreeMap::new(),
            got: Got::new(),
            next: 1,
        };
        let quiet = "net.ipv6.conf.default.disable_ipv6=1";
        for namespace in [&world.host, &world.far] {
            run("ip", &["netns", "add", namespace], "").expect("a namespace");
            run(
                "ip",
                &["netns", "exec", namespace, "sysctl", "-qw", quiet],
                "",
            )
            .expect("no IPv6 of its own");
        }
        let mut lines = String::from("link set lo up\n");
        for (at, bridge) in ["br0", "br1"].iter().enumerate() {
            let mac = text(HOST_MACS[at]);
            lines += &format!(
                "link add {bridge} address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {bridge} up\n"
            );
        }
        for port in PORTS {
            let Port { name, bridge, .. } = port;
            lines += &format!(
                "link add {name} type veth peer name {name} netns {}\nlink set {name} master {bridge} up\n",
                world.far
            );
        }
        run("ip", &["-n", &world.host, "-batch", "-"], &lines).expect("bridges and cables");
        let mut lines = String::new();
        for port in PORTS {
            let mac = text(port.mac);
            lines += &format!("link set {} address {mac} up\n", port.name);
        }
        run("ip", &["-n", &world.far, "-batch", "-"], &lines).expect("far ends");
        world.sysctl(&[
            "net.bridge.bridge-nf-call-iptables=1",
            "net.bridge.bridge-nf-call-ip6tables=1",
            "net.ipv4.ip_forward=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
            "net.ipv4.conf.br0.rp_filter=0",
            "net.ipv4.conf.br1.rp_filter=0",
            "net.ipv4.conf.all.send_redirects=0",
            "net.ipv4.conf.br0.send_redirects=0",
            "net.ipv6.conf.br0.disable_ipv6=0",
            "net.ipv6.conf.br1.disable_ipv6=0",
            "net.ipv6.conf.br0.accept_dad=0",
            "net.ipv6.conf.br1.accept_dad=0",
            "net.ipv6.conf.all.forwarding=1",
        ]);
        let mut lines = String::from(
            "addr add 192.0.2.1/24 dev br0\naddr add 203.0.113.1/24 dev br1\n\
             addr add 2001:db8::1/64 dev br0 nodad\naddr add 2001:db8:1::1/64 dev br1 nodad\n",
        );
        for (last, short, bridge, v4, v6) in [
            (0x11, 11, "br0", "192.0.2.", "2001:db8::"),
            (0x12, 12, "br0", "192.0.2.", "2001:db8::"),
            (0x13, 13, "br0", "192.0.2.", "2001:db8::"),
            (0x14, 14, "br1", "203.0.113.", "2001:db8:1::"),
            (0x50, 50, "br0", "192.0.2.", "2001:db8::"),
        ] {
            let mac = text(mac(0, last));
            lines += &format!(
                "neigh replace {v4}{short} lladdr {mac} dev {bridge} nud permanent\n\
                 neigh replace {v6}{short} lladdr {mac} dev {bridge} nud permanent\n"
            );
        }
        run("ip", &["-n", &world.host, "-batch", "-"], &lines).expect("addresses");
        let mut lines = String::new();
        for port in PORTS.iter().filter(|port| port.name != "mtxxx") {
            let mac = text(port.mac);
            lines += &format!("fdb replace {mac} dev {} master static\n", port.name);
        }
        run("bridge", &["-n", &world.host, "-batch", "-"], &lines).expect("known ports");
        world.sockets = sockets(&world.far);
        world
    }

    pub(crate) fn sysctl(&self, settings: &[&str]) {
        let mut arguments = vec!["netns", "exec", &self.host, "sysctl", "-qw"];
        arguments.extend(settings);
        run("ip", &arguments, "").expect("settings");
    }

    /// `nft` on the hypervisor.
    pub(crate) fn nft(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut all = vec!["netns", "exec", &self.host, "nft"];
        all.extend(arguments);
        run("ip", &all, input)
    }

    /// Applies it, as one transaction.
    pub(crate) fn apply(&self, text: &str) {
        if let Err(e) = self.nft(&["-f", "-"], text) {
            let e: String = e.chars().take(2_000).collect();
            panic!("{e}\nof:\n{}", text.chars().take(6_000).collect::<String>());
        }
    }

    /// Runs something on the hypervisor's network.
    pub(crate) fn on_host<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        inside(&self.host, f)
    }

    /// The rules of these chains.
    pub(crate) fn listed<'a>(&self, chains: impl Iterator<Item = &'a Name>) -> Listed {
        let mut listed = Listed::new();
        for name in chains {
            let family = name.table.family();
            let text = self
                .nft(
                    &["-a", "list", "chain", family, "muster_groups", &name.name],
                    "",
                )
                .expect("a chain");
            let rules = text.lines().filter_map(|line| {
                let (rule, handle) = line.split_once("# handle ")?;
                if rule.contains("chain ") || rule.contains("table ") {
                    return None;
                }
                let comment = rule.split_once("comment \"")?.1.split_once('"')?.0;
                Some(ListedRule {
                    handle: handle.trim().parse().ok()?,
                    comment: comment.to_owned(),
                })
            });
            listed.insert(name.clone(), rules.collect());
        }
        listed
    }

    /// The next number of a frame.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn send(&mut self, from: &str, frame: &[u8]) {
        let socket = &self.sockets[from];
        let begun = Instant::now();
        loop {
            match nix::sys::socket::send(socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => break,
                Err(Errno::EAGAIN | Errno::ENOBUFS) if begun.elapsed() < PATIENCE => {
                    std::thread::yield_now();
                }
                Err(e) => panic!("{from}: {e}"),
            }
        }
        self.receive();
    }

    fn receive(&mut self) {
        let mut buffer = [0; 4096];
        for (port, socket) in &self.sockets {
            loop {
                let flags = MsgFlags::MSG_DONTWAIT;
                match nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, flags) {
                    Ok(length) => {
                        if let Some(number) = signed(&buffer[..length]) {
                            self.got.insert((number, *port));
                        }
                    }
                    Err(Errno::EINTR) => {}
                    Err(_) => break,
                }
            }
        }
    }

    /// All that has come once everything wanted is there, and once what was
    /// sent after all the rest is there, too.
    pub(crate) fn settle(&mut self, wanted: &Got) -> &Got {
        let mut wanted = wanted.clone();
        for (from, at) in [("up0", "vnet9"), ("vnet9", "up0")] {
            let number = self.number();
            let mut frame = [0xff; 6].to_vec();
            frame.extend(port(from).mac);
            // For experiments: nobody means anything by it.
            frame.extend([0x88, 0xb5]);
            frame.extend([0; 50]);
            frame.extend(sign(number));
            self.send(from, &frame);
            wanted.insert((number, at));
        }
        let begun = Instant::now();
        while !wanted.is_subset(&self.got) && begun.elapsed() < PATIENCE {
            self.receive();
            std::thread::yield_now();
        }
        self.receive();
        &self.got
    }

    /// Sends one frame, and who got it. `wanted` are those that must.
    pub(crate) fn one(
        &mut self,
        from: &str,
        number: u64,
        frame: &[u8],
        wanted: &[&'static str],
    ) -> Vec<&'static str> {
        self.send(from, frame);
        let wanted = wanted.iter().map(|port| (number, *port)).collect();
        let got = self.settle(&wanted);
        let of_it = got.iter().filter(|(n, _)| *n == number);
        of_it.map(|(_, port)| *port).collect()
    }
}

pub(crate) fn text(mac: [u8; 6]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// On a thread of its own, in that namespace.
fn inside<T: Send + 'static>(namespace: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{namespace}"))
        .or_else(|_| File::open(format!("/var/run/netns/{namespace}")))
        .expect("the namespace");
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("into the namespace");
        f()
    });
    thread.join().expect("what runs there")
}

fn sockets(namespace: &str) -> BTreeMap<&'static str, OwnedFd> {
    inside(namespace, || {
        let mut sockets = BTreeMap::new();
        for interface in nix::ifaddrs::getifaddrs().expect("interfaces") {
            let Some(port) = PORTS.iter().find(|p| p.name == interface.interface_name) else {
                continue;
            };
            let address = interface.address;
            let Some(link) = address.as_ref().and_then(|a| a.as_link_addr()) else {
                continue;
            };
            let socket = nix::sys::socket::socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .expect("a socket for frames");
            nix::sys::socket::bind(socket.as_raw_fd(), link).expect("a port");
            sockets.insert(port.name, socket);
        }
        assert_eq!(sockets.len(), PORTS.len());
        sockets
    })
}
