//! One packet each: what passes, and what does not.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use muster_firewall::groups::bare;
use muster_firewall::groups::judge::{Content, Payload, RawMac};
use serde_json::json;

use crate::capability;
use crate::frames::{frame, head};
use crate::lab::{Lab, icmpv6, ip, packet, tcp, udp};
use crate::world::{HOST_MACS, mac, port, sign};

const ALL: RawMac = [0xff; 6];
const ALL_V6: RawMac = [0x33, 0x33, 0, 0, 0, 1];
const A: &str = "192.0.2.11";
const B: &str = "192.0.2.12";
const C: &str = "192.0.2.13";
const OUT: &str = "192.0.2.50";
const A6: &str = "2001:db8::11";
const B6: &str = "2001:db8::12";
const C6: &str = "2001:db8::13";
const A_LINK: &str = "fe80::5054:ff:fe00:11";
const B_LINK: &str = "fe80::5054:ff:fe00:12";

#[test]
fn rules_allow_what_they_say_and_nothing_beside() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let l = &mut lab;
    let (yes, no): (&[&'static str], &[&'static str]) = (&["mtaaa"], &[]);
    l.only("the client", "mtbbb", "mtaaa", yes, |n| tcp(B, A, 80, n));
    l.only("over IPv6", "mtbbb", "mtaaa", yes, |n| tcp(B6, A6, 443, n));
    l.only("next port", "mtbbb", "mtaaa", no, |n| tcp(B, A, 81, n));
    l.only("no client", "mtccc", "mtaaa", no, |n| tcp(C, A, 80, n));
    l.only("nor outside", "up0", "mtaaa", no, |n| tcp(OUT, A, 80, n));
    for (port, wanted) in [
        (7999, no),
        (8000, yes),
        (8005, yes),
        (8010, yes),
        (8011, no),
    ] {
        l.only("a range", "up0", "mtaaa", wanted, |n| tcp(OUT, A, port, n));
    }
    for (port, wanted) in [
        (99, no),
        (100, yes),
        (150, yes),
        (200, yes),
        (201, yes),
        (250, yes),
        (251, no),
    ] {
        l.only("two groups", "up0", "mtaaa", wanted, |n| {
            tcp(OUT, A, port, n)
        });
    }
    l.only("UDP", "up0", "mtaaa", yes, |n| udp(OUT, A, 53, n));
    l.only("not TCP", "up0", "mtaaa", no, |n| tcp(OUT, A, 53, n));
    let echo = |kind, code| Payload::Icmp { kind, code };
    l.only("ping", "up0", "mtaaa", yes, |_| ip(OUT, A, echo(8, 0)));
    l.only("a mask", "up0", "mtaaa", no, |_| ip(OUT, A, echo(17, 0)));
    let ping6 = |code| Payload::Icmpv6 {
        kind: 128,
        code,
        about: None,
    };
    l.only("ping 6", "up0", "mtaaa", yes, |_| {
        ip("2001:db8::50", A6, ping6(0))
    });
    l.only("its code", "up0", "mtaaa", no, |_| {
        ip("2001:db8::50", A6, ping6(1))
    });
    l.only("GRE", "up0", "mtaaa", yes, |_| {
        ip(OUT, A, Payload::Other(47))
    });
    l.only("from one", "vnet9", "mtaaa", no, |_| {
        ip("192.0.2.59", A, Payload::Other(47))
    });
    l.only("a set", "up0", "mtaaa", yes, |n| {
        udp("198.51.100.9", A, 600, n)
    });
    l.only("a set 6", "up0", "mtaaa", yes, |n| {
        udp("2001:db8:f::9", A6, 600, n)
    });
    l.only("beside it", "up0", "mtaaa", no, |n| {
        udp("198.51.101.9", A, 600, n)
    });
    l.only("no groups", "up0", "mtccc", no, |n| udp(OUT, C, 53, n));
    // What goes out: all, until a group says what.
    l.only("open", "mtccc", "up0", &["up0"], |n| udp(C, OUT, 9, n));
    l.only("open 6", "mtccc", "up0", &["up0"], |n| {
        tcp(C6, "2001:db8::50", 9, n)
    });
    l.only("closed", "mtbbb", "up0", no, |n| udp(B, OUT, 9, n));
    l.only("closed 6", "mtbbb", "up0", no, |n| {
        tcp(B6, "2001:db8::50", 9, n)
    });
    l.only("but the web", "mtbbb", "up0", &["up0"], |n| {
        tcp(B6, "2001:db8::50", 80, n)
    });
    // The other bridge, by the host.
    let host = HOST_MACS[0];
    let d = "203.0.113.14";
    let got = l.send("mtaaa", host, &["mtddd"], |n| udp(A, d, 53, n));
    assert_eq!(got, ["mtddd"], "routed");
    assert_eq!(
        l.send("mtaaa", host, no, |n| udp(A, d, 54, n)),
        no,
        "routed"
    );
    assert_eq!(
        l.send("mtbbb", host, no, |n| udp(B, d, 53, n)),
        no,
        "closed"
    );
    let got = l.send("mtbbb", host, &["mtddd"], |n| tcp(B, d, 80, n));
    assert_eq!(got, ["mtddd"], "routed to the web");
    // Flooded: judged at each port, and unknown ones get nothing.
    let got = l.send("up0", ALL, &["mtaaa", "vnet9"], |n| {
        udp(OUT, "255.255.255.255", 53, n)
    });
    assert_eq!(got, ["mtaaa", "vnet9"]);
    let got = l.send("up0", mac(0, 0xee), &["vnet9"], |n| udp(OUT, A, 53, n));
    assert_eq!(got, ["vnet9"], "for another hardware address");
}

#[test]
fn nobody_says_he_is_somebody_else() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let pairs = json!([
        {"prefix": "198.51.100.64/26"}, {"prefix": "2001:db8:0:77::/64"},
        {"prefix": "192.0.2.77/32", "mac": "52:54:00:00:09:77"},
    ]);
    lab.change(|state| state["interfaces"]["mtccc"]["pairs"] = pairs);
    let l = &mut lab;
    let (up, no): (&[&'static str], &[&'static str]) = (&["up0"], &[]);
    l.only("IPv4", "mtccc", "up0", no, |n| udp(A, OUT, 9, n));
    l.only("IPv6", "mtccc", "up0", no, |n| {
        udp(A6, "2001:db8::50", 9, n)
    });
    l.only("link-local", "mtccc", "up0", no, |n| {
        udp(A_LINK, "fe80::50", 9, n)
    });
    let own = "fe80::5054:ff:fe00:13";
    l.only("its own", "mtccc", "up0", up, |n| {
        udp(own, "fe80::50", 9, n)
    });
    l.only("a pair", "mtccc", "up0", up, |n| {
        udp("198.51.100.127", OUT, 9, n)
    });
    l.only("beside", "mtccc", "up0", no, |n| {
        udp("198.51.100.128", OUT, 9, n)
    });
    l.only("a pair 6", "mtccc", "up0", up, |n| {
        udp("2001:db8:0:77::1", "2001:db8::50", 9, n)
    });
    l.only("of another MAC", "mtccc", "up0", no, |n| {
        udp("192.0.2.77", OUT, 9, n)
    });
    l.only("nobody", "mtccc", "up0", no, |n| udp("0.0.0.0", OUT, 9, n));

    let from = |l: &mut Lab, source: RawMac, wanted: &[&'static str], tagged, content: Content| {
        let number = l.world.number();
        let mut packet = packet(content);
        packet.tagged = tagged;
        let bytes = frame(&packet, source, ALL, number, 0);
        let got = l.world.one("mtccc", number, &bytes, wanted);
        got.into_iter()
            .filter(|at| *at == "up0")
            .collect::<Vec<_>>()
    };
    let own = port("mtccc").mac;
    let (pair, other) = (mac(9, 0x77), mac(0, 0x11));
    let one = |source: &str| udp(source, "255.255.255.255", 9, 1);
    assert_eq!(from(l, own, up, false, one(C)), up);
    assert_eq!(from(l, pair, up, false, one("192.0.2.77")), up);
    assert_eq!(
        from(l, pair, no, false, one(C)),
        no,
        "a pair's MAC is for the pair"
    );
    assert_eq!(from(l, other, no, false, one(C)), no, "MAC");
    assert_eq!(from(l, own, no, true, one(C)), no, "VLAN");
    for kind in [0x88cc, 0x8863, 0x88b5, 0x9000, 0x22f0] {
        assert_eq!(
            from(l, own, no, false, Content::Other(kind)),
            no,
            "{kind:x}"
        );
    }
    let asks = |operation, sender_mac: Option<RawMac>, sender: &str, target: &str| Content::Arp {
        operation,
        sender_mac,
        sender: sender.parse().expect("an address"),
        target: target.parse().expect("an address"),
    };
    let arp = |operation, sender_mac, sender: &str| asks(operation, sender_mac, sender, OUT);
    assert_eq!(from(l, own, up, false, arp(1, None, C)), up);
    assert_eq!(from(l, own, up, false, arp(2, None, C)), up);
    for (about, wanted) in [(C, up), ("198.51.100.64", up), (A, no), (OUT, no)] {
        let got = from(l, own, wanted, false, asks(1, None, "0.0.0.0", about));
        assert_eq!(got, wanted, "a probe of {about}");
    }
    assert_eq!(from(l, own, no, false, arp(2, None, "0.0.0.0")), no);
    assert_eq!(from(l, own, up, false, arp(2, None, "198.51.100.64")), up);
    assert_eq!(
        from(l, own, no, false, arp(2, None, A)),
        no,
        "another one's address"
    );
    assert_eq!(
        from(l, own, no, false, arp(2, Some(other), C)),
        no,
        "another one's MAC"
    );
    assert_eq!(
        from(l, own, up, false, arp(2, Some(pair), "192.0.2.77")),
        up
    );
    assert_eq!(from(l, own, no, false, arp(9, None, C)), no);
    let rarp = |sender_mac, target_mac| Content::Rarp {
        sender_mac,
        target_mac,
    };
    assert_eq!(from(l, own, up, false, rarp(own, own)), up);
    assert_eq!(from(l, own, no, false, rarp(other, other)), no);
    assert_eq!(from(l, own, no, false, rarp(own, other)), no);

    // An interface that nothing is known of, both ways.
    l.only("unknown", "mtxxx", "up0", no, |n| {
        udp("192.0.2.31", OUT, 9, n)
    });
    let got = l.send("vnet9", ALL, up, |_| arp(1, None, "192.0.2.59"));
    assert_eq!(got, ["mtaaa", "mtbbb", "mtccc", "up0"]);
}

#[test]
fn what_everybody_needs_always_passes() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let l = &mut lab;
    let (up, no): (&[&'static str], &[&'static str]) = (&["up0"], &[]);
    let dhcp = |source, target| Payload::Udp { source, target };
    // B may only go to the web.
    let asks = |l: &mut Lab, what: &str, wanted: &[&'static str], content: Content| {
        let got = l.send("mtbbb", ALL_V6, wanted, |_| content);
        let got: Vec<_> = got.into_iter().filter(|at| *at == "up0").collect();
        assert_eq!(got, wanted, "{what}");
    };
    asks(
        l,
        "DHCP",
        up,
        ip("0.0.0.0", "255.255.255.255", dhcp(68, 67)),
    );
    asks(l, "with one", up, ip(B, "255.255.255.255", dhcp(68, 67)));
    asks(l, "DHCPv6", up, ip(B_LINK, "ff02::1:2", dhcp(546, 547)));
    asks(l, "server", no, ip(B, "255.255.255.255", dhcp(67, 68)));
    asks(l, "server 6", no, ip(B_LINK, "fe80::9", dhcp(547, 546)));
    asks(
        l,
        "from elsewhere",
        no,
        ip(B, "255.255.255.255", dhcp(999, 68)),
    );
    let all = "ff02::1";
    asks(l, "DAD", up, icmpv6("::", all, 135, 255, Some(B6)));
    asks(l, "others' DAD", no, icmpv6("::", all, 135, 255, Some(A6)));
    asks(l, "NS", up, icmpv6(B6, all, 135, 255, Some(A6)));
    asks(l, "RS", up, icmpv6(B_LINK, all, 133, 255, None));
    asks(l, "MLD", up, icmpv6("::", all, 143, 1, None));
    asks(l, "NA", up, icmpv6(B6, all, 136, 255, Some(B6)));
    asks(
        l,
        "own link",
        up,
        icmpv6(B_LINK, all, 136, 255, Some(B_LINK)),
    );
    asks(l, "far NA", no, icmpv6(B6, all, 136, 254, Some(B6)));
    asks(l, "others' NA", no, icmpv6(B6, all, 136, 255, Some(A6)));
    asks(
        l,
        "others' link",
        no,
        icmpv6(B_LINK, all, 136, 255, Some(A_LINK)),
    );
    asks(l, "RA", no, icmpv6(B_LINK, all, 134, 255, None));
    asks(l, "redirect", no, icmpv6(B_LINK, all, 137, 255, None));
    asks(l, "querier", no, icmpv6(B_LINK, all, 130, 1, None));
    // C has no groups, so that nothing gets in otherwise.
    let gets = |l: &mut Lab, what: &str, passes: bool, content: Content| {
        let wanted: &[&'static str] = if passes { &["mtccc"] } else { &[] };
        let got = l.send("up0", port("mtccc").mac, wanted, |_| content);
        assert_eq!(got, wanted, "{what}");
    };
    gets(l, "DHCP", true, ip(OUT, C, dhcp(67, 68)));
    gets(l, "DHCPv6", true, ip("fe80::50", C6, dhcp(547, 546)));
    gets(
        l,
        "far DHCPv6",
        false,
        ip("2001:db8::50", C6, dhcp(547, 546)),
    );
    gets(l, "no DHCP", false, ip(OUT, C, dhcp(999, 68)));
    gets(l, "RA", true, icmpv6("fe80::50", C6, 134, 255, None));
    gets(
        l,
        "NS",
        true,
        icmpv6("2001:db8::50", C6, 135, 255, Some(C6)),
    );
    gets(
        l,
        "NA",
        true,
        icmpv6("2001:db8::50", C6, 136, 255, Some("2001:db8::50")),
    );
    gets(
        l,
        "far NA",
        false,
        icmpv6("2001:db8::50", C6, 136, 254, Some("2001:db8::50")),
    );
    gets(l, "query", true, icmpv6("fe80::50", C6, 130, 1, None));
    gets(l, "ping", false, icmpv6("2001:db8::50", C6, 128, 64, None));
}

/// The frame as two IPv4 packets, cut behind so many bytes of what IP carries.
fn fragments(frame: &[u8], at: usize) -> [Vec<u8>; 2] {
    let header = etherparse::Ipv4Header::from_slice(&frame[14..])
        .expect("a header")
        .0;
    let body = &frame[34..14 + usize::from(header.total_len)];
    let part = |bytes: &[u8], more: bool, offset: usize| {
        let mut header = header.clone();
        header.more_fragments = more;
        header.dont_fragment = false;
        header.identification = 77;
        let offset = u16::try_from(offset / 8).expect("short");
        header.fragment_offset = etherparse::IpFragOffset::try_new(offset).expect("short");
        header.set_payload_len(bytes.len()).expect("short");
        header.header_checksum = header.calc_header_checksum();
        let mut out = frame[..14].to_vec();
        out.extend(header.to_bytes());
        out.extend(bytes);
        out
    };
    [part(&body[..at], true, 0), part(&body[at..], false, at)]
}

/// The frame with these headers behind that of IPv6; the first of them is of
/// the kind `first`, and the last one names what follows.
fn behind(frame: &[u8], first: u8, headers: &[u8]) -> Vec<u8> {
    let mut out = frame.to_vec();
    let length =
        u16::from_be_bytes([out[18], out[19]]) + u16::try_from(headers.len()).expect("short");
    out[18..20].copy_from_slice(&length.to_be_bytes());
    out[20] = first;
    out.splice(54..54, headers.iter().copied());
    out
}

#[test]
fn fragments_and_headers_hide_nothing() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let l = &mut lab;
    for (target, wanted) in [(53, &["mtaaa"] as &[&'static str]), (54, &[])] {
        let number = l.world.number();
        let whole = packet(udp(OUT, A, target, number));
        let whole = frame(&whole, port("up0").mac, port("mtaaa").mac, number, 0);
        let [first, second] = fragments(&whole, 8);
        l.world.send("up0", &first);
        assert_eq!(
            l.world.one("up0", number, &second, wanted),
            wanted,
            "{target}"
        );
    }
    // Alone, the second half is nothing.
    let number = l.world.number();
    let whole = packet(udp(OUT, A, 53, number));
    let whole = frame(&whole, port("up0").mac, port("mtaaa").mac, number, 0);
    let [_, second] = fragments(&whole, 16);
    assert!(l.world.one("up0", number, &second, &[]).is_empty());
    // Another one's address in the second half.
    let number = l.world.number();
    let whole = packet(udp(C, OUT, 9, number));
    let whole = frame(&whole, port("mtccc").mac, port("up0").mac, number, 0);
    let [first, mut second] = fragments(&whole, 16);
    second[26..30].copy_from_slice(&[192, 0, 2, 11]);
    l.world.send("mtccc", &first);
    assert!(l.world.one("mtccc", number, &second, &[]).is_empty());

    // Hop-by-hop options, then options for the destination.
    let options = |next: u8| {
        let mut out = vec![60, 0, 1, 4, 0, 0, 0, 0];
        out.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        out
    };
    for (target, wanted) in [(8000, &["mtaaa"] as &[&'static str]), (8011, &[])] {
        let number = l.world.number();
        let plain = packet(tcp("2001:db8::50", A6, target, number));
        let plain = frame(&plain, port("up0").mac, port("mtaaa").mac, number, 0);
        let hidden = behind(&plain, 0, &options(6));
        assert_eq!(
            l.world.one("up0", number, &hidden, wanted),
            wanted,
            "{target}"
        );
    }
    // No router behind options, nor behind a fragment's header.
    for kind in [134, 137] {
        let number = l.world.number();
        let plain = packet(icmpv6("fe80::5054:ff:fe00:13", "ff02::1", kind, 255, None));
        let plain = frame(&plain, port("mtccc").mac, ALL_V6, number, 0);
        let hidden = behind(&plain, 0, &options(58));
        assert!(l.world.one("mtccc", number, &hidden, &[]).is_empty());
        // Only options in the first half; all the rest in the second one.
        let fragment = |next: u8, offset: u16, more: u16| {
            let mut out = vec![next, 0];
            out.extend(((offset << 3) | more).to_be_bytes());
            out.extend([0, 0, 0, kind]);
            out
        };
        let mut first = plain[..54].to_vec();
        first[18..20].copy_from_slice(&16_u16.to_be_bytes());
        first[20] = 44;
        first.extend(fragment(60, 0, 1));
        first.extend([58, 0, 1, 4, 0, 0, 0, 0]);
        let second = behind(&plain, 44, &fragment(60, 1, 0));
        l.world.send("mtccc", &first);
        assert!(l.world.one("mtccc", number, &second, &[]).is_empty());
    }
}

/// Bytes of a TCP packet of a connection between two.
fn segment(
    l: &mut Lab,
    from: (&str, &str, u16),
    to: (&str, &str, u16),
    flags: u8,
) -> (u64, Vec<u8>) {
    let number = l.world.number();
    let payload = Payload::Tcp {
        source: from.2,
        target: to.2,
        opens: flags == 2,
    };
    let packet = packet(ip(from.1, to.1, payload));
    (
        number,
        frame(&packet, port(from.0).mac, port(to.0).mac, number, flags),
    )
}

#[test]
fn a_flow_goes_on_until_it_is_withdrawn() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let l = &mut lab;
    let (client, server) = (("mtbbb", B, 33_000), ("mtaaa", A, 80));
    let step = |l: &mut Lab, there: bool, flags: u8, passes: bool, what: &str| {
        let (from, to) = if there {
            (client, server)
        } else {
            (server, client)
        };
        let (number, bytes) = segment(l, from, to, flags);
        let at = if there { "mtaaa" } else { "mtbbb" };
        let wanted: &[&'static str] = if passes { &[at] } else { &[] };
        assert_eq!(
            l.world.one(from.0, number, &bytes, wanted),
            wanted,
            "{what}"
        );
    };
    step(l, true, 0x10, false, "no connection yet");
    step(l, false, 0x12, false, "an answer to nothing");
    step(l, true, 0x02, true, "opens");
    step(l, false, 0x12, true, "the answer, though B lets nothing in");
    step(l, true, 0x10, true, "goes on");
    step(l, false, 0x10, true, "goes on");
    // What tells the kernel that it is withdrawn stands in another table here.
    // (Of two chains of one priority, the one that comes later runs first.)
    let mark = |l: &Lab, set: &str| {
        l.world.apply(&format!(
            "table inet t {{\n chain c {{\n type filter hook prerouting priority -199\n ct mark set ct mark {set}\n }}\n}}\n"
        ));
    };
    mark(l, "| 0x40000000");
    step(l, true, 0x10, false, "withdrawn");
    step(l, false, 0x10, false, "withdrawn");
    step(l, false, 0x02, false, "nor anew from the other side");
    l.world.apply("delete table inet t");
    step(l, true, 0x10, false, "still");
    mark(l, "& 0xbfffffff");
    step(l, true, 0x10, true, "the same connection");
    step(l, false, 0x10, true, "the same connection");

    // An error about it comes in; one about nothing does not.
    for (port_there, passes) in [(9, true), (10, false)] {
        if passes {
            l.only("asks", "mtccc", "up0", &["up0"], |_| {
                let payload = Payload::Udp {
                    source: 4_444,
                    target: port_there,
                };
                ip(C, OUT, payload)
            });
        }
        let number = l.world.number();
        let asked = Payload::Udp {
            source: 4_444,
            target: port_there,
        };
        let asked = frame(&packet(ip(C, OUT, asked)), ALL, ALL, number, 0);
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ethernet2(port("up0").mac, port("mtccc").mac)
            .ipv4([192, 0, 2, 50], [192, 0, 2, 13], 64)
            .icmpv4_raw(3, 3, [0; 4])
            .write(&mut bytes, &asked[14..])
            .expect("a packet");
        let wanted: &[&'static str] = if passes { &["mtccc"] } else { &[] };
        assert_eq!(l.world.one("up0", number, &bytes, wanted), wanted);
    }
}

#[test]
fn the_host_is_one_like_others() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let l = &mut lab;
    let says = |l: &mut Lab,
                source: &'static str,
                from: u16,
                target: &'static str,
                to: u16,
                wanted: &[&'static str]| {
        let number = l.world.number();
        l.world.on_host(move || {
            let socket = UdpSocket::bind((source, from)).expect("a socket");
            socket.set_broadcast(true).expect("may speak to all");
            // The kernel says so where a packet was dropped on its way out.
            let _ = socket.send_to(&sign(number), (target, to));
        });
        let wanted_all = wanted.iter().map(|at| (number, *at)).collect();
        let got = l.world.settle(&wanted_all);
        let got: Vec<_> = got
            .iter()
            .filter(|(n, _)| *n == number)
            .map(|(_, at)| *at)
            .collect();
        assert_eq!(got, wanted, "{source} to {target} {to}");
    };
    says(l, "192.0.2.1", 5_000, A, 53, &["mtaaa"]);
    says(l, "192.0.2.1", 5_001, A, 54, &[]);
    says(l, "2001:db8::1", 5_002, A6, 53, &["mtaaa"]);
    says(l, "2001:db8::1", 5_003, A6, 54, &[]);
    says(l, "203.0.113.1", 5_004, "203.0.113.14", 53, &["mtddd"]);
    says(l, "192.0.2.1", 5_005, C, 53, &[]);
    // To many: only who answers those that ask for an address.
    says(l, "192.0.2.1", 5_006, "192.0.2.255", 53, &["up0", "vnet9"]);
    says(
        l,
        "192.0.2.1",
        67,
        "192.0.2.255",
        68,
        &["mtaaa", "mtbbb", "mtccc", "up0", "vnet9"],
    );

    // And to it.
    let socket = l.world.on_host(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7_000)).expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("patience");
        socket
    });
    let host = HOST_MACS[0];
    l.send("mtaaa", host, &[], |n| udp(B, "192.0.2.1", 7_000, n));
    l.send("mtbbb", host, &[], |n| udp(B, "192.0.2.1", 7_000, n));
    // Past the bridge: such frames are the device's own.
    for last in [0x0e, 0x03, 0x00] {
        let reserved = [0x01, 0x80, 0xc2, 0, 0, last];
        l.send("mtccc", reserved, &[], |n| udp(OUT, "192.0.2.1", 7_000, n));
    }
    l.send("mtccc", host, &[], |n| udp(C, "192.0.2.1", 7_000, n));
    let mut buffer = [0; 100];
    let (_, from) = socket.recv_from(&mut buffer).expect("a packet");
    assert_eq!(from.ip().to_string(), C, "the only one that may");
}

#[test]
fn with_br_netfilter_off_nothing_passes() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let l = &mut lab;
    let no: &[&'static str] = &[];
    l.only("on", "up0", "mtaaa", &["mtaaa"], |n| udp(OUT, A, 53, n));
    l.world.sysctl(&[
        "net.bridge.bridge-nf-call-iptables=0",
        "net.bridge.bridge-nf-call-ip6tables=0",
    ]);
    l.only("to it", "up0", "mtaaa", no, |n| udp(OUT, A, 53, n));
    l.only("to it 6", "up0", "mtaaa", no, |n| {
        udp("2001:db8::50", A6, 53, n)
    });
    l.only("from it", "mtaaa", "up0", no, |n| udp(A, OUT, 53, n));
    l.only("from it 6", "mtaaa", "up0", no, |n| {
        udp(A6, "2001:db8::50", 53, n)
    });
    l.only("others", "vnet9", "up0", &["up0"], |n| {
        udp("192.0.2.59", OUT, 53, n)
    });
    l.world.sysctl(&[
        "net.bridge.bridge-nf-call-iptables=1",
        "net.bridge.bridge-nf-call-ip6tables=1",
    ]);
    l.only("on", "mtaaa", "up0", &["up0"], |n| udp(A, OUT, 53, n));
}

#[test]
fn what_is_not_known_passes_nothing() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let l = &mut lab;
    let no: &[&'static str] = &[];
    // The interface goes: the same name is nobody's then.
    let a = l.state["interfaces"]["mtaaa"].clone();
    l.change(|state| {
        state["interfaces"]
            .as_object_mut()
            .expect("some")
            .remove("mtaaa");
    });
    l.only("gone", "up0", "mtaaa", no, |n| udp(OUT, A, 53, n));
    l.only("gone", "mtaaa", "up0", no, |n| udp(A, OUT, 53, n));
    // It is another machine's now.
    l.change(|state| {
        state["interfaces"]["mtaaa"] = a.clone();
        state["interfaces"]["mtaaa"]["addresses"] = json!(["192.0.2.21"]);
    });
    l.only("the old one", "up0", "mtaaa", no, |n| udp(OUT, A, 53, n));
    l.only("the old one", "mtaaa", "up0", no, |n| udp(A, OUT, 53, n));
    l.only("new", "up0", "mtaaa", &["mtaaa"], |n| {
        udp(OUT, "192.0.2.21", 53, n)
    });
    // A hypervisor that has just started.
    l.world.apply(&bare());
    l.only("bare", "mtxxx", "up0", no, |n| {
        udp("192.0.2.21", OUT, 53, n)
    });
    for name in ["mtaaa", "mtbbb"] {
        l.only("bare", name, "up0", no, |n| udp("192.0.2.21", OUT, 53, n));
        l.only("bare", "up0", name, no, |n| udp(OUT, "192.0.2.21", 53, n));
    }
    l.only("others", "up0", "vnet9", &["vnet9"], |n| {
        udp(OUT, "192.0.2.59", 53, n)
    });
    let mut frame = Vec::new();
    head(&mut frame, port("vnet9").mac, ALL, 0x0806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    let number = l.world.number();
    frame.extend([0; 40]);
    frame.extend(sign(number));
    assert_eq!(l.world.one("vnet9", number, &frame, &["up0"]), ["up0"]);
}
