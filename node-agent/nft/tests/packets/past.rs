//! Ways past the groups that were there once: each was shown with packets
//! like these before it was closed.

use std::process::Command;

use etherparse::{IpNumber, Ipv4Header};
use muster_firewall::groups::judge::Payload;
use serde_json::json;

use crate::capability;
use crate::frames::head;
use crate::lab::{Lab, icmpv6, ip, udp};
use crate::world::{HOST_MACS, port, sign};

const A: &str = "192.0.2.11";
const B: &str = "192.0.2.12";
const C: &str = "192.0.2.13";
const OUT: &str = "192.0.2.50";

#[test]
fn marks_of_other_software_open_nothing() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    // As other software has it, at the place where marks are set.
    lab.world.apply(
        "table inet t {\n chain c {\n type filter hook prerouting priority mangle\n meta mark set 0x5\n }\n}\n",
    );
    // Who registers last runs first where priorities are the same.
    for again in [false, true] {
        let l = &mut lab;
        l.only("closed", "mtbbb", "up0", &[], |n| udp(B, OUT, 9, n));
        l.only("open", "mtccc", "up0", &["up0"], |n| udp(C, OUT, 9, n));
        l.only("in", "up0", "mtaaa", &["mtaaa"], |n| udp(OUT, A, 53, n));
        l.only("not in", "up0", "mtccc", &[], |n| udp(OUT, C, 53, n));
        if !again {
            l.apply_whole();
        }
    }
}

#[test]
fn asking_for_an_address_is_no_way_out() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let l = &mut lab;
    let dhcp = |source, target| Payload::Udp { source, target };
    // B may only go to the web. C may go anywhere, and so renews what it has.
    for (from, address, wanted) in [("mtbbb", B, &[] as &[_]), ("mtccc", C, &["up0"])] {
        l.only("unicast", from, "up0", wanted, |_| {
            ip(address, OUT, dhcp(68, 67))
        });
    }
    let (b6, link, out6) = ("2001:db8::12", "fe80::5054:ff:fe00:12", "2001:db8::50");
    l.only("far", "mtbbb", "up0", &[], |_| ip(b6, out6, dhcp(546, 547)));
    l.only("near", "mtbbb", "up0", &["up0"], |_| {
        ip(link, "fe80::50", dhcp(546, 547))
    });
    // Nor a way in: what is no answer of a neighbour is judged by the rules.
    l.only("in", "up0", "mtccc", &[], |_| {
        ip(out6, "2001:db8::13", dhcp(547, 546))
    });
    // Nor is one's own advertisement, once it has been routed.
    l.only("NA", "mtbbb", "up0", &[], |_| {
        icmpv6(b6, out6, 136, 254, Some(b6))
    });
    l.only("NA", "mtbbb", "up0", &["up0"], |_| {
        icmpv6(b6, out6, 136, 255, Some(b6))
    });
}

#[test]
fn nobody_begins_a_connection_in_the_name_of_another() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let l = &mut lab;
    let udp = |from, source, to, target| ip(from, to, Payload::Udp { source, target });
    let syn = |from, source, to, target| {
        let opens = true;
        let payload = Payload::Tcp {
            source,
            target,
            opens,
        };
        ip(from, to, payload)
    };
    // B lets nothing in. A takes what says that it comes from B, and answers.
    for what in ["as if from B", "again"] {
        l.only(what, "up0", "mtaaa", &["mtaaa"], |_| udp(B, 161, A, 53));
        l.only(what, "mtaaa", "mtbbb", &[], |_| udp(A, 53, B, 161));
    }
    l.only("TCP", "up0", "mtaaa", &["mtaaa"], |_| {
        syn(B, 33_000, A, 8_000)
    });
    for _ in 0..2 {
        l.only("at once", "mtaaa", "mtbbb", &[], |_| {
            syn(A, 8_000, B, 33_000)
        });
    }
    // Nor do two others make one up between themselves.
    l.only("one", "up0", "vnet9", &["vnet9"], |_| udp(OUT, 7, C, 22));
    l.only("other", "vnet9", "up0", &["up0"], |_| udp(C, 22, OUT, 7));
    for _ in 0..2 {
        l.only("in", "up0", "mtccc", &[], |_| udp(OUT, 7, C, 22));
    }
    // B may only go to the web.
    l.only("one", "vnet9", "up0", &["up0"], |_| udp(B, 7, OUT, 22));
    l.only("other", "up0", "vnet9", &["vnet9"], |_| udp(OUT, 22, B, 7));
    for _ in 0..2 {
        l.only("out", "mtbbb", "up0", &[], |_| udp(B, 7, OUT, 22));
    }
    l.only("one", "up0", "vnet9", &["vnet9"], |_| udp(OUT, 8, B, 23));
    for _ in 0..2 {
        l.only("as an answer", "mtbbb", "up0", &[], |_| udp(B, 23, OUT, 8));
    }

    // What is begun by who it is from goes both ways, at once and later.
    for _ in 0..2 {
        l.only("asks", "mtccc", "mtaaa", &["mtaaa"], |_| udp(C, 9, A, 53));
        l.only("is told", "mtaaa", "mtccc", &["mtccc"], |_| {
            udp(A, 53, C, 9)
        });
        l.only("asks", "mtccc", "up0", &["up0"], |_| udp(C, 10, OUT, 53));
        l.only("is told", "up0", "mtccc", &["mtccc"], |_| {
            udp(OUT, 53, C, 10)
        });
        let (d, host) = ("203.0.113.14", HOST_MACS[0]);
        let got = l.send("mtccc", host, &["mtddd"], |_| udp(C, 11, d, 53));
        assert_eq!(got, ["mtddd"], "by the host");
        let got = l.send("mtddd", HOST_MACS[1], &["mtccc"], |_| udp(d, 53, C, 11));
        assert_eq!(got, ["mtccc"], "and back");
    }
}

#[test]
fn no_machine_is_a_router_for_ipv4() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let l = &mut lab;
    let icmp = |kind| Payload::Icmp { kind, code: 1 };
    for (kind, wanted) in [(5, &[] as &[_]), (9, &[]), (13, &["up0"]), (11, &["up0"])] {
        l.only("ICMP", "mtccc", "up0", wanted, |_| ip(C, OUT, icmp(kind)));
    }
    // Who asks who listens gets all that is sent to many.
    for (kind, wanted) in [(0x11, &[] as &[_]), (0x16, &["up0"]), (0x17, &["up0"])] {
        let number = l.world.number();
        let mut igmp = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        igmp.extend(sign(number));
        let length = u16::try_from(igmp.len()).expect("short");
        let all = [224, 0, 0, 1];
        let header = Ipv4Header::new(length, 1, IpNumber(2), [192, 0, 2, 13], all);
        let mut header = header.expect("a header");
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = Vec::new();
        head(&mut bytes, port("mtccc").mac, port("up0").mac, 0x0800);
        bytes.extend(header.to_bytes());
        bytes.extend(igmp);
        assert_eq!(l.world.one("mtccc", number, &bytes, wanted), wanted);
    }
}

#[test]
fn what_the_host_routes_to_a_prefix_beside_arrives() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    // A has nearly all there is, and C a part of that.
    lab.change(|state| {
        state["interfaces"]["mtaaa"]["pairs"] =
            json!([{"prefix": "0.0.0.0/0"}, {"prefix": "2001:db8:0:77::/64"}]);
        state["interfaces"]["mtccc"]["pairs"] =
            json!([{"prefix": "198.51.100.64/26"}, {"prefix": "2001:db8:0:77:8::/80"}]);
        state["interfaces"]["mtccc"]["groups"] = json!(["web"]);
    });
    for (to, by) in [
        ("198.51.100.0/24", A),
        ("198.51.100.64/26", C),
        ("2001:db8:0:77::/64", "2001:db8::11"),
        ("2001:db8:0:77:8::/80", "2001:db8::13"),
    ] {
        let done = lab.world.on_host(move || {
            let route = ["route", "add", to, "via", by, "dev", "br0"];
            Command::new("ip").args(route).status()
        });
        assert!(done.expect("ip").success(), "{to}");
    }
    let l = &mut lab;
    let mut reaches = |from: &str, to: &str, wanted: &[&'static str]| {
        let got = l.send("up0", HOST_MACS[0], wanted, |n| udp(from, to, 53, n));
        assert_eq!(got, wanted, "{to}");
        let got = l.send("up0", HOST_MACS[0], &[], |n| udp(from, to, 54, n));
        assert_eq!(got, [""; 0], "{to}");
    };
    let out6 = "2001:db8::50";
    reaches(OUT, "198.51.100.1", &["mtaaa"]);
    reaches(OUT, "198.51.100.63", &["mtaaa"]);
    reaches(OUT, "198.51.100.64", &["mtccc"]);
    reaches(OUT, "198.51.100.127", &["mtccc"]);
    reaches(OUT, "198.51.100.128", &["mtaaa"]);
    reaches(OUT, A, &["mtaaa"]);
    reaches(out6, "2001:db8:0:77::1", &["mtaaa"]);
    reaches(out6, "2001:db8:0:77:8::1", &["mtccc"]);
    reaches(out6, "2001:db8:0:77:9::1", &["mtaaa"]);
}
