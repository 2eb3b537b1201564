//! Ways past the groups that were there once: each was shown with packets
//! like these before it was closed.

use muster_firewall::groups::judge::Payload;

use crate::capability;
use crate::lab::{Lab, icmpv6, ip, udp};

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
        l.only("in", "up0", "mtaaa", &["mtaaa"], |n| {
            udp(OUT, "192.0.2.11", 53, n)
        });
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
