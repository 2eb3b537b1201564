//! Connections that a change ends, and that go on when it is taken back.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::space::{Space, is_possible};
use crate::world::{Engine, holding, mac, mark, wait_for, web};

/// How long a packet may take that is let pass.
const PASSES: Duration = Duration::from_secs(10);
/// And how long one is waited for that is not.
const STUCK: Duration = Duration::from_millis(700);

struct Net {
    hypervisor: Space,
    one: Space,
    two: Space,
}

fn net() -> Net {
    let hypervisor = Space::hypervisor();
    let one = hypervisor.guest("mt1", &mac(1), "10.7.0.1");
    let two = hypervisor.guest("mt2", &mac(2), "10.7.0.2");
    for (guest, address) in [(&one, "fd07::1/64"), (&two, "fd07::2/64")] {
        guest.ip(&["addr", "add", address, "dev", "eth0", "nodad"]);
    }
    Net {
        hypervisor,
        one,
        two,
    }
}

/// A connection from `two` to a port of `one`: both ends.
fn connection(net: &Net, port: u16) -> (TcpStream, TcpStream) {
    connection_to(net, ([10, 7, 0, 1], port).into())
}

/// A program that another test starts just now may have the one before it
/// still open, for a moment.
fn listener(at: SocketAddr) -> TcpListener {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(at) {
            Err(e) if e.kind() == ErrorKind::AddrInUse && begun.elapsed() < PASSES => {
                std::thread::yield_now();
            }
            bound => return bound.expect("binds"),
        }
    }
}

fn connection_to(net: &Net, at: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = net.one.here(|| listener(at));
    let client = net
        .two
        .here(|| TcpStream::connect_timeout(&at, PASSES).expect("connects"));
    let (server, _) = listener.accept().expect("accepts");
    for end in [&client, &server] {
        end.set_nodelay(true).expect("an option");
    }
    (client, server)
}

fn says(from: &mut TcpStream, to: &mut TcpStream, within: Duration) -> bool {
    to.set_read_timeout(Some(within)).expect("an option");
    from.write_all(b"x").expect("the socket takes it");
    to.read(&mut [0; 1]).is_ok_and(|length| length == 1)
}

#[test]
fn a_rule_that_is_withdrawn_ends_the_connection_and_given_back_it_goes_on() {
    if !is_possible("a_rule_that_is_withdrawn_ends_the_connection_and_given_back_it_goes_on") {
        return;
    }
    let (net, dir) = (net(), tempfile::tempdir().expect("a directory"));
    let mut engine = Engine::start(&net.hypervisor, dir.path());
    let closed = holding(
        &[(1, &["web"]), (2, &[])],
        &[("web", &[])],
        &[("group:lb", &[])],
    );
    let others = web(&["10.7.0.9/32"]);
    let by_rule = holding(
        &[(1, &["web"]), (2, &[])],
        &[("web", &[(2, "ingress", "tcp 80", "10.7.0.0/24")])],
        &[("group:lb", &[])],
    );
    let without = holding(
        &[(1, &[]), (2, &[])],
        &[("web", &[(1, "ingress", "tcp 80", "group:lb")])],
        &[("group:lb", &["10.7.0.2/32"])],
    );
    let open = web(&["10.7.0.2/32"]);
    let answer = engine.hold(&open);
    assert_eq!(answer.in_force, Some(mark(1)), "{answer:?}");
    let (mut client, mut server) = connection(&net, 80);
    assert!(says(&mut client, &mut server, PASSES));
    assert!(says(&mut server, &mut client, PASSES));
    // The rule, the member, or the machine's place in the group goes.
    for (name, other) in [("rule", closed), ("member", others), ("group", without)] {
        let answer = engine.hold(&other);
        assert_eq!(answer.in_force, answer.held, "{name}: {answer:?}");
        wait_for("the connection is withdrawn", || {
            withdrawn(&net.hypervisor) == 1
        });
        assert!(!says(&mut client, &mut server, STUCK), "{name}: it goes on");
        assert!(
            !says(&mut server, &mut client, STUCK),
            "{name}: the other way, too"
        );
        // Another rule that allows it is as good as the first one.
        let back = if name == "member" { &by_rule } else { &open };
        engine.hold(back);
        wait_for("the connection is not withdrawn", || {
            withdrawn(&net.hypervisor) == 0
        });
        // What was not let through is sent again by TCP.
        for (to, what) in [(&mut server, "up"), (&mut client, "down")] {
            to.set_read_timeout(Some(PASSES)).expect("an option");
            let read = to.read(&mut [0; 1]);
            assert!(read.is_ok_and(|length| length == 1), "{name}: {what}");
        }
        assert!(says(&mut client, &mut server, PASSES), "{name}");
        assert!(says(&mut server, &mut client, PASSES), "{name}");
    }
    engine.end();
}

/// How many connections have the bit.
fn withdrawn(space: &Space) -> usize {
    use muster_firewall::groups::objects::WITHDRAWN;
    use muster_nft::conntrack::Connections;
    let marked = || Connections::open()?.marked(WITHDRAWN, |_| true);
    space.here(|| marked().expect("connections").len())
}

fn followed(space: &Space, address: &str) -> usize {
    use muster_nft::conntrack::Connections;
    let address: std::net::IpAddr = address.parse().expect("an address");
    let all = || Connections::open()?.all(|one| one.ends().any(|end| end == address));
    space.here(|| all().expect("connections").len())
}

#[test]
fn connections_of_a_machine_that_goes_are_forgotten() {
    if !is_possible("connections_of_a_machine_that_goes_are_forgotten") {
        return;
    }
    let (net, dir) = (net(), tempfile::tempdir().expect("a directory"));
    let mut engine = Engine::start(&net.hypervisor, dir.path());
    engine.hold(&web(&["10.7.0.2/32"]));
    let (mut client, mut server) = connection(&net, 80);
    assert!(says(&mut client, &mut server, PASSES));
    assert_eq!(followed(&net.hypervisor, "10.7.0.2"), 1);
    // Its tap is another machine's at once, with another address.
    let mut next = web(&["10.7.0.2/32"]);
    let taps: Vec<_> = next.interfaces.keys().cloned().collect();
    let other = next.interfaces.get_mut(&taps[1]).expect("mt2");
    other.addresses = vec!["10.7.0.77".parse().expect("an address")];
    engine.hold(&next);
    wait_for("its connections are forgotten", || {
        followed(&net.hypervisor, "10.7.0.2") == 0
    });
    // And what it still says from its old address passes nowhere.
    assert!(!says(&mut client, &mut server, STUCK));
    assert_eq!(followed(&net.hypervisor, "10.7.0.2"), 0);
    engine.end();
}

#[test]
fn many_connections_end_and_those_of_others_do_not() {
    if !is_possible("many_connections_end_and_those_of_others_do_not") {
        return;
    }
    let (net, dir) = (net(), tempfile::tempdir().expect("a directory"));
    let mut engine = Engine::start(&net.hypervisor, dir.path());
    let rules: &[_] = &[
        (1, "ingress", "tcp 80", "group:lb"),
        (2, "ingress", "tcp 81", "any"),
    ];
    let both = |lb: &[&str]| {
        holding(
            &[(1, &["web"]), (2, &[])],
            &[("web", rules)],
            &[("group:lb", lb)],
        )
    };
    engine.hold(&both(&["10.7.0.2/32"]));
    let mut ended: Vec<_> = (0..40).map(|_| connection(&net, 80)).collect();
    let (mut client, mut server) = connection(&net, 81);
    let begun = Instant::now();
    engine.hold(&both(&[]));
    wait_for("all of port 80 are withdrawn", || {
        withdrawn(&net.hypervisor) == 40
    });
    eprintln!(
        "40 connections were withdrawn {:?} after the change was told",
        begun.elapsed()
    );
    assert!(says(&mut client, &mut server, PASSES));
    let (client, server) = &mut ended[7];
    assert!(!says(client, server, STUCK));
    engine.end();
}

#[test]
fn connections_by_ipv6_end_and_go_on_and_do_not_open_from_the_other_side() {
    if !is_possible("connections_by_ipv6_end_and_go_on") {
        return;
    }
    let (net, dir) = (net(), tempfile::tempdir().expect("a directory"));
    let mut engine = Engine::start(&net.hypervisor, dir.path());
    let (both, none) = (["10.7.0.2/32", "fd07::2/128"], ["10.7.0.2/32"]);
    engine.hold(&web(&both));
    let at: SocketAddr = "[fd07::1]:80".parse().expect("an address");
    let (mut client, mut server) = connection_to(&net, at);
    assert!(says(&mut client, &mut server, PASSES));
    engine.hold(&web(&none));
    wait_for("it is withdrawn", || withdrawn(&net.hypervisor) == 1);
    assert!(!says(&mut client, &mut server, STUCK));
    // The machine that may not be spoken to may speak to whom it likes, but
    // not by what was begun by the other one.
    assert!(!says(&mut server, &mut client, STUCK));
    // A process that begins anew in this state leaves it so.
    engine.end();
    let mut engine = Engine::start(&net.hypervisor, dir.path());
    assert_eq!(withdrawn(&net.hypervisor), 1);
    assert!(!says(&mut server, &mut client, STUCK));
    engine.hold(&web(&both));
    wait_for("it is not withdrawn", || withdrawn(&net.hypervisor) == 0);
    for to in [&mut server, &mut client] {
        to.set_read_timeout(Some(PASSES)).expect("an option");
        assert!(to.read(&mut [0; 1]).is_ok_and(|length| length == 1));
    }
    engine.end();
}

#[test]
fn connections_that_began_before_there_were_groups_go_on() {
    if !is_possible("connections_that_began_before_there_were_groups_go_on") {
        return;
    }
    let (net, dir) = (net(), tempfile::tempdir().expect("a directory"));
    // The kernel follows them, as for anybody's rules.
    let filter = "net.bridge.bridge-nf-call-iptables=1";
    net.hypervisor.exec(&["sysctl", "-qw", filter]);
    net.hypervisor.nft(&[
        "add table inet other; add chain inet other c { type filter hook forward priority 0; }; add rule inet other c ct state established accept",
    ]);
    let (mut client, mut server) = connection(&net, 80);
    let (mut other_client, mut other_server) = connection(&net, 81);
    assert!(says(&mut client, &mut server, PASSES));
    assert!(followed(&net.hypervisor, "10.7.0.2") >= 2);
    let mut engine = Engine::start(&net.hypervisor, dir.path());
    let answer = engine.hold(&web(&["10.7.0.2/32"]));
    assert_eq!(answer.in_force, Some(mark(1)), "{answer:?}");
    assert!(says(&mut client, &mut server, PASSES));
    assert!(says(&mut server, &mut client, PASSES));
    // Those that could not begin now end.
    assert!(!says(&mut other_client, &mut other_server, STUCK));
    assert!(!says(&mut other_server, &mut other_client, STUCK));
    engine.end();
}

/// Withdraws those from or to that address, as the engine does it.
fn withdraw(space: &Space, address: &str) -> usize {
    use muster_firewall::groups::objects::WITHDRAWN;
    use muster_nft::conntrack::Connections;
    let address: std::net::IpAddr = address.parse().expect("an address");
    space.here(|| {
        let kernel = Connections::open().expect("connections");
        let all = kernel.all(|one| one.ends().any(|end| end == address));
        let all = all.expect("connections");
        let marked = all.iter().map(|one| kernel.mark(one, WITHDRAWN, WITHDRAWN));
        marked.filter(|done| matches!(done, Ok(true))).count()
    })
}

#[test]
fn the_bit_of_others_stays_and_a_stale_one_goes() {
    if !is_possible("the_bit_of_others_stays_and_a_stale_one_goes") {
        return;
    }
    let (net, dir) = (net(), tempfile::tempdir().expect("a directory"));
    net.hypervisor.ip(&["link", "set", "lo", "up"]);
    let mut engine = Engine::start(&net.hypervisor, dir.path());
    engine.hold(&web(&["10.7.0.2/32"]));
    let (mut client, mut server) = connection(&net, 80);
    // No machine's: other software means something of its own by it.
    let own = net.hypervisor.here(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let at = listener.local_addr().expect("an address");
        (TcpStream::connect(at).expect("connects"), listener)
    });
    assert_eq!(withdraw(&net.hypervisor, "127.0.0.1"), 1);
    engine.hold(&web(&["10.7.0.2/32", "10.7.0.9/32"]));
    // Whoever saves and restores marks brings it back where it was taken away.
    // (The change is looked at twice, so it may be gone once.)
    wait_for("it is withdrawn by somebody", || {
        assert_eq!(withdraw(&net.hypervisor, "10.7.0.2"), 1);
        !says(&mut client, &mut server, STUCK)
    });
    wait_for("it is looked at again", || withdrawn(&net.hypervisor) == 1);
    assert!(says(&mut server, &mut client, PASSES));
    engine.end();
    assert_eq!(withdrawn(&net.hypervisor), 1);
    drop(own);
}
