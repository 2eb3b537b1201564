//! Ways past the groups that were there once: each was shown with packets
//! like these before it was closed.

use crate::capability;
use crate::lab::{Lab, udp};

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
