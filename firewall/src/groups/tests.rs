//! The text for the kernel, and what a change touches.

use std::collections::BTreeMap;

use muster_protocol::firewall::{Holding, RuleId};
use muster_protocol::names::GroupName;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::ids::Ids;
use super::judge::{Flow, Judge, Payload, Verdict, Way, flow};
use super::objects::{Count, Listed, ListedRule, counter, counter_of};
use super::{bare, check, objects, touched, update, whole};

fn holding(json: Value) -> Holding {
    serde_json::from_value(json).expect("a holding")
}

fn interface(last: u8, groups: &[&str]) -> Value {
    json!({
        "machine": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "name": "web-03", "bridge": "br0",
        "mac": format!("52:54:00:00:00:{last:02x}"),
        "addresses": [format!("192.0.2.{last}"), format!("2001:db8::{last}")],
        "groups": groups,
    })
}

fn small() -> Value {
    json!({
        "interfaces": {"mta": interface(7, &["web"])},
        "groups": {"web": [
            {"id": 1, "direction": "ingress", "traffic": "tcp 80,443", "peer": "group:lb",
             "comment": "the \"front\" door; drop"},
            {"id": 2, "direction": "ingress", "traffic": "icmp 3/4", "peer": "any"},
            {"id": 3, "direction": "ingress", "traffic": "udp 5000-5010", "peer": "2001:db8::/32"},
            {"id": 5, "direction": "egress", "traffic": "proto 47", "peer": "0.0.0.0/0"},
            {"id": 6, "direction": "egress", "traffic": "any", "peer": "set:office"},
        ]},
        "members": {"group:lb": ["192.0.2.8/32", "2001:db8::8/128"],
                    "set:office": ["198.51.100.0/24", "192.0.2.9/32"]},
    })
}

fn ids(of: &[&Holding]) -> Ids {
    let mut ids = Ids::default();
    for holding in of {
        ids.assign_all(holding.interfaces.keys()).expect("numbers");
    }
    ids
}

/// The text of a change, with every rule listed under a handle.
fn changed(before: &Value, after: &Value) -> String {
    let (before, after) = (holding(before.clone()), holding(after.clone()));
    let ids = ids(&[&before, &after]);
    let difference = touched(&before, &after, &before.change_to(&after), &ids);
    let old = objects(&before, &ids);
    let mut listed = Listed::new();
    for name in difference.to_list() {
        let rules = old.chains[name].rules.iter().zip(10..);
        let rules = rules.map(|(rule, handle)| ListedRule {
            handle,
            comment: rule.comment(),
        });
        listed.insert(name.clone(), rules.collect());
    }
    update(&difference, &listed)
}

#[test]
fn the_text_of_a_state() {
    insta::assert_snapshot!(bare(), @r#"
        add table bridge muster_groups
        delete table bridge muster_groups
        add table inet muster_groups
        delete table inet muster_groups
        table bridge muster_groups {
          set judged {
            type ifname . mark;
          }
          set macs {
            type ifname . ether_addr;
          }
          map marks-from {
            type ifname : mark;
          }
          map marks-to {
            type ifname : mark;
          }
          set own4 {
            type ifname . ether_addr . ipv4_addr;
          }
          set own6 {
            type ifname . ether_addr . ipv6_addr;
          }
          set pairs4 {
            type ifname . ether_addr . ipv4_addr; flags interval;
          }
          set pairs6 {
            type ifname . ether_addr . ipv6_addr; flags interval;
          }
          set rarp {
            typeof iifname . @nh,64,48;
          }
          set taps {
            type ifname;
          }
          chain elsewhere {
            type filter hook forward priority -100; policy accept;
            oifname != "mt*" meta mark & 0xffff0000 == 0x00000000 ether type { ip, 0x86dd } meta mark set meta mark | 0x6d6e0000 comment "elsewhere 1 f2d4b5d3e678"
          }
          chain forward {
            type filter hook forward priority -300; policy accept;
            meta mark & 0xffff0000 == 0x6d650000 ether type ip drop comment "forward 1 db502b611dcd"
            meta mark & 0xffff0000 == 0x6d650000 ether type 0x86dd drop comment "forward 2 66068afce835"
            oifname != "mt*" accept comment "forward 3 13e6193caa4f"
            oifname != @taps drop comment "forward 4 cd657a5c5e62"
            meta mark set oifname map @marks-to comment "forward 5 5a8ef69f0a7f"
            ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 accept comment "forward 6 acc5108da090"
            ether type ip oifname . ether daddr . ip daddr @own4 accept comment "forward 7 44e5c3db6d22"
            ether type ip oifname . ether daddr . ip daddr @pairs4 accept comment "forward 8 514fa25815b9"
            ether type 0x86dd oifname . ether daddr . ip6 daddr @own6 accept comment "forward 9 c5f701e6f76a"
            ether type 0x86dd oifname . ether daddr . ip6 daddr @pairs6 accept comment "forward 10 210b72c13809"
            ether type arp oifname . ether daddr @macs accept comment "forward 11 7f285addae44"
            drop comment "forward 12 f1a2a766dcd5"
          }
          chain from-arp {
            arp htype != 1 drop comment "from-arp 1 5ff04c5f56de"
            arp ptype != ip drop comment "from-arp 2 2a350ed5a70c"
            arp hlen != 6 drop comment "from-arp 3 3fd8cf1aefde"
            arp plen != 4 drop comment "from-arp 4 cd8e05023db0"
            arp operation != { request, reply } drop comment "from-arp 5 aae364806120"
            iifname . arp saddr ether . arp saddr ip @own4 accept comment "from-arp 6 3115cbe30a5b"
            iifname . arp saddr ether . arp saddr ip @pairs4 accept comment "from-arp 7 57b77954840a"
            arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether . arp daddr ip @own4 accept comment "from-arp 8 0bc1847e40b5"
            arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether . arp daddr ip @pairs4 accept comment "from-arp 9 7ee88e5ef2cd"
            drop comment "from-arp 10 f1a2a766dcd5"
          }
          chain from-ipv4 {
            iifname . ether saddr . ip saddr @own4 accept comment "from-ipv4 1 4f80b7429fbc"
            iifname . ether saddr . ip saddr @pairs4 accept comment "from-ipv4 2 e1f67b5ee677"
            ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept comment "from-ipv4 3 6b9d200d31b4"
            drop comment "from-ipv4 4 f1a2a766dcd5"
          }
          chain from-ipv6 {
            iifname . ether saddr . ip6 saddr @own6 accept comment "from-ipv6 1 0fe734ae2f55"
            iifname . ether saddr . ip6 saddr @pairs6 accept comment "from-ipv6 2 da088b01b196"
            ip6 saddr :: icmpv6 type { 131, 132, 133, 135, 143 } accept comment "from-ipv6 3 e64e3b8b614e"
            drop comment "from-ipv6 4 f1a2a766dcd5"
          }
          chain from-rarp {
            iifname . @nh,64,48 @rarp iifname . @nh,144,48 @rarp accept comment "from-rarp 1 a75da486a75a"
            drop comment "from-rarp 2 f1a2a766dcd5"
          }
          chain input {
            type filter hook input priority -300; policy accept;
            iifname "mt*" ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop comment "input 1 198b5feb36d7"
          }
          chain postrouting {
            type filter hook postrouting priority 0; policy accept;
            oifname != "mt*" accept comment "postrouting 1 13e6193caa4f"
            oifname != @taps drop comment "postrouting 2 cd657a5c5e62"
            ether type vmap { ip : goto to-tap, 0x86dd : goto to-tap, arp : accept } comment "postrouting 3 94100acb2c31"
            drop comment "postrouting 4 f1a2a766dcd5"
          }
          chain prerouting {
            type filter hook prerouting priority -300; policy accept;
            iifname != "mt*" accept comment "prerouting 1 722c07eb7835"
            ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop comment "prerouting 2 8fb131e2f33f"
            iifname . ether saddr != @macs drop comment "prerouting 3 fcd9e6c89f95"
            meta mark set iifname map @marks-from comment "prerouting 4 4e70855abbbe"
            ether type vmap { ip : goto from-ipv4, 0x86dd : goto from-ipv6, arp : goto from-arp, 0x8035 : goto from-rarp } comment "prerouting 5 dddc2225a3bd"
            drop comment "prerouting 6 f1a2a766dcd5"
          }
          chain to-tap {
            oifname . meta mark @judged accept comment "to-tap 1 0ef5421f1ade"
            ether type ip udp sport 67 udp dport 68 accept comment "to-tap 2 9eeb6c503aa3"
            ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept comment "to-tap 3 8d2a9bb6e38f"
            ip6 hoplimit 255 icmpv6 type { 134, 135, 136, 137 } accept comment "to-tap 4 137ac81283f3"
            ip6 hoplimit 1 icmpv6 type { 130, 131, 132, 143 } accept comment "to-tap 5 8a4cc916b98c"
            drop comment "to-tap 6 f1a2a766dcd5"
          }
        }
        table inet muster_groups {
          map from-mark {
            type mark : verdict;
          }
          set neighbor {
            typeof meta mark . @th,64,128;
          }
          set neighbor-pairs {
            typeof meta mark . @th,64,128; flags interval;
          }
          map routed-pairs4 {
            type ifname . ipv4_addr : mark; flags interval;
          }
          map routed-pairs6 {
            type ifname . ipv6_addr : mark; flags interval;
          }
          map routed4 {
            type ifname . ipv4_addr : mark;
          }
          map routed6 {
            type ifname . ipv6_addr : mark;
          }
          map to-mark {
            type mark : verdict;
          }
          chain forward {
            type filter hook forward priority -150; policy accept;
            meta mark & 0xffff0000 != 0x6d690000 accept comment "forward 1 0f7c20719e1c"
            goto ingress comment "forward 2 ce51a6b63a61"
          }
          chain ingress {
            meta mark set meta mark | 0x00020000 comment "ingress 1 35cc8f62b3a2"
            ct mark & 0x40000000 == 0x40000000 drop comment "ingress 2 1ad95ffb73d9"
            meta nfproto ipv4 udp sport 67 udp dport 68 accept comment "ingress 3 03ec79ad5656"
            ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept comment "ingress 4 8d2a9bb6e38f"
            ip6 hoplimit 255 icmpv6 type { 134, 135, 136, 137 } accept comment "ingress 5 137ac81283f3"
            ip6 hoplimit 1 icmpv6 type { 130, 131, 132, 143 } accept comment "ingress 6 8a4cc916b98c"
            ct direction original ct mark & 0x10000000 == 0x10000000 ct state established,related accept comment "ingress 7 eff922e630ba"
            ct direction reply ct mark & 0x20000000 == 0x20000000 ct state established,related accept comment "ingress 8 569a2ce47df3"
            ct direction original ct state related meta l4proto != { icmp, ipv6-icmp } accept comment "ingress 9 29fda15734dc"
            tcp flags & (fin | syn | rst | ack) != syn drop comment "ingress 10 f3cb82c7f6bf"
            meta mark vmap @to-mark comment "ingress 11 be4f40ab34b9"
            drop comment "ingress 12 f1a2a766dcd5"
          }
          chain let-in {
            type filter hook forward priority -149; policy accept;
            meta mark & 0xffff0000 == 0x6d6b0000 ct direction original ct mark & 0x10000000 != 0x10000000 ct mark set ct mark | 0x10000000 comment "let-in 1 933581dcf85c"
          }
          chain let-in-by-host {
            type filter hook postrouting priority 151; policy accept;
            meta mark & 0xffff0000 == 0x6d6b0000 ct direction original ct mark & 0x10000000 != 0x10000000 ct mark set ct mark | 0x10000000 comment "let-in-by-host 1 933581dcf85c"
          }
          chain postrouting {
            type filter hook postrouting priority 150; policy accept;
            oifname "mt*" drop comment "postrouting 1 5a595b29fb9e"
            meta mark & 0xffff0000 == 0x6d6e0000 meta mark set meta mark & 0x0000ffff accept comment "postrouting 2 95b787757c12"
            meta mark & 0xffff0000 == 0x6d6b0000 accept comment "postrouting 3 c3f6cc7b0608"
            meta mark set oifname . ip daddr map @routed-pairs4 comment "postrouting 4 e9340c727729"
            meta mark set oifname . ip6 daddr map @routed-pairs6 comment "postrouting 5 23b8e439bc1c"
            meta mark set oifname . ip daddr map @routed4 comment "postrouting 6 3fe6b8963e6f"
            meta mark set oifname . ip6 daddr map @routed6 comment "postrouting 7 54a30ef64f35"
            meta mark & 0xffff0000 != 0x6d690000 accept comment "postrouting 8 0f7c20719e1c"
            goto ingress comment "postrouting 9 ce51a6b63a61"
          }
          chain prerouting {
            type filter hook prerouting priority -199; policy accept;
            iifname "mt*" drop comment "prerouting 1 96ff9f09b8b3"
            meta mark & 0xffff0000 != 0x6d650000 accept comment "prerouting 2 7466d9610660"
            meta mark set meta mark | 0x00020000 comment "prerouting 3 35cc8f62b3a2"
            meta nfproto ipv4 udp dport 68 drop comment "prerouting 4 de2a84daed6a"
            meta nfproto ipv6 udp dport 546 drop comment "prerouting 5 a17abee3b631"
            ip6 hoplimit 255 icmpv6 type 136 meta mark . @th,64,128 @neighbor accept comment "prerouting 6 cf1625288919"
            ip6 hoplimit 255 icmpv6 type 136 meta mark . @th,64,128 @neighbor-pairs accept comment "prerouting 7 c312bd8c9b6d"
            meta nfproto ipv4 icmp type 5 drop comment "prerouting 8 dbc95228ce4b"
            meta nfproto ipv4 icmp type 9 drop comment "prerouting 9 39ee61f7eabc"
            ip protocol igmp @th,0,8 0x11 drop comment "prerouting 10 12bac9f3e962"
            icmpv6 type 130 drop comment "prerouting 11 32a8654519ac"
            icmpv6 type 134 drop comment "prerouting 12 7eb9c6cfc990"
            icmpv6 type 136 drop comment "prerouting 13 81b383c12f1b"
            icmpv6 type 137 drop comment "prerouting 14 92347e35760b"
            ct mark & 0x40000000 == 0x40000000 drop comment "prerouting 15 1ad95ffb73d9"
            ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept comment "prerouting 16 343702227767"
            ip6 daddr { fe80::/10, ff02::/16 } udp sport 546 udp dport 547 accept comment "prerouting 17 91d820609602"
            ip6 saddr :: ip6 hoplimit 255 icmpv6 type 135 meta mark . @th,64,128 @neighbor accept comment "prerouting 18 ac7bb0dbd5c8"
            ip6 saddr :: ip6 hoplimit 255 icmpv6 type 135 meta mark . @th,64,128 @neighbor-pairs accept comment "prerouting 19 04fb9bbba974"
            ip6 saddr :: icmpv6 type 135 drop comment "prerouting 20 610fbbe40bb3"
            ip6 hoplimit 255 icmpv6 type { 133, 135 } accept comment "prerouting 21 bf63cb1e7799"
            ip6 hoplimit 1 icmpv6 type { 131, 132, 143 } accept comment "prerouting 22 d2126c77ac5f"
            ct direction original ct mark & 0x20000000 == 0x20000000 ct state established,related accept comment "prerouting 23 83f89faaa243"
            ct direction reply ct mark & 0x10000000 == 0x10000000 ct state established,related accept comment "prerouting 24 4c3e42ce80e9"
            ct direction original ct state related meta l4proto != { icmp, ipv6-icmp } accept comment "prerouting 25 29fda15734dc"
            tcp flags & (fin | syn | rst | ack) != syn drop comment "prerouting 26 f3cb82c7f6bf"
            meta mark vmap @from-mark comment "prerouting 27 3ace0ae5aca3"
            drop comment "prerouting 28 f1a2a766dcd5"
          }
          chain seen {
            type filter hook prerouting priority -198; policy accept;
            meta mark & 0xffff0000 != 0x6d670000 accept comment "seen 1 96df574f25e7"
            ct direction original ct mark & 0x20000000 != 0x20000000 ct mark set ct mark | 0x20000000 comment "seen 2 8c3fed68b377"
            meta mark set 0x00000000 comment "seen 3 05f0459ddd96"
          }
        }
        "#);
    let holding = holding(small());
    let ids = ids(&[&holding]);
    let counts = BTreeMap::from([(
        counter(&"web".parse().expect("a name"), RuleId(1)),
        Count {
            packets: 12,
            bytes: 3456,
        },
    )]);
    // Beside what is always there.
    let bare = bare();
    let always: Vec<&str> = bare.lines().collect();
    let text = whole(&objects(&holding, &ids), &counts);
    let text: Vec<&str> = text.lines().filter(|line| !always.contains(line)).collect();
    insta::assert_snapshot!(text.join("\n"), @r#"
          elements = { "mta" . 0x6d6b0001 };
          elements = { "mta" . 52:54:00:00:00:07 };
          elements = { "mta" : 0x6d650001 };
          elements = { "mta" : 0x6d690001 };
          elements = { "mta" . 52:54:00:00:00:07 . 192.0.2.7 };
          elements = { "mta" . 52:54:00:00:00:07 . 2001:db8::7, "mta" . 52:54:00:00:00:07 . fe80::5054:ff:fe00:7 };
          elements = { "mta" . 0x525400000007 };
          elements = { "mta" };
        counter n-web-1 { packets 12 bytes 3456; }
        counter n-web-2 { packets 0 bytes 0; }
        counter n-web-3 { packets 0 bytes 0; }
        counter n-web-5 { packets 0 bytes 0; }
        counter n-web-6 { packets 0 bytes 0; }
          elements = { 0x6d670001 : goto from-mta };
        set g4-lb {
          type ipv4_addr;
          elements = { 192.0.2.8 };
        set g4p-lb {
          type ipv4_addr; flags interval;
        set g6-lb {
          type ipv6_addr;
          elements = { 2001:db8::8 };
        set g6p-lb {
          type ipv6_addr; flags interval;
          elements = { 0x6d670001 . 0x20010db8000000000000000000000007, 0x6d670001 . 0xfe80000000000000505400fffe000007 };
          elements = { "br0" . 192.0.2.7 : 0x6d690001 };
          elements = { "br0" . 2001:db8::7 : 0x6d690001, "br0" . fe80::5054:ff:fe00:7 : 0x6d690001 };
        set s4-office {
          type ipv4_addr;
          elements = { 192.0.2.9 };
        set s4p-office {
          type ipv4_addr; flags interval;
          elements = { 198.51.100.0/24 };
        set s6-office {
          type ipv6_addr;
        set s6p-office {
          type ipv6_addr; flags interval;
          elements = { 0x6d6b0001 : goto to-mta };
        chain from-mta {
          jump out-web comment "1 e04c7173946c"
          drop comment "2 f1a2a766dcd5"
        chain in-web {
          ip saddr @g4-lb tcp dport 80 counter name n-web-1 accept comment "1/4 71319c415262"
          ip saddr @g4-lb tcp dport 443 counter name n-web-1 accept comment "1/4+1 c1c4c09ff2ad"
          ip6 saddr @g6-lb tcp dport 80 counter name n-web-1 accept comment "1/6 831c0ec63a3b"
          ip6 saddr @g6-lb tcp dport 443 counter name n-web-1 accept comment "1/6+1 a134a79847f4"
          meta nfproto ipv4 meta l4proto icmp icmp type 3 icmp code 4 counter name n-web-2 accept comment "2 bf6ba4603834"
          ip6 saddr 2001:db8::/32 udp dport 5000-5010 counter name n-web-3 accept comment "3 a3c5efe2baeb"
        chain out-web {
          meta nfproto ipv4 meta l4proto 47 counter name n-web-5 accept comment "5 16ba308b6537"
          ip daddr @s4-office counter name n-web-6 accept comment "6/4 5139b437d823"
          ip6 daddr @s6-office counter name n-web-6 accept comment "6/6 88316c9c57b0"
          ip daddr @s4p-office counter name n-web-6 accept comment "6/4p 866c7c38e8ae"
          ip6 daddr @s6p-office counter name n-web-6 accept comment "6/6p 3a9a41a83d88"
        chain to-mta {
          jump in-web comment "1 3e78cbd6c51d"
          drop comment "2 f1a2a766dcd5"
        "#);
    assert!(!text.join("\n").contains("front"), "what people write");
}

#[test]
fn one_rule_that_changes_is_one_rule() {
    let mut after = small();
    after["groups"]["web"][1]["traffic"] = "icmp 3/3".into();
    insta::assert_snapshot!(changed(&small(), &after), @r#"
        add rule inet muster_groups in-web meta nfproto ipv4 meta l4proto icmp icmp type 3 icmp code 3 counter name n-web-2 accept comment "2 3073ec709954"
        delete rule inet muster_groups in-web handle 14
        "#);
    let mut after = small();
    after["groups"]["web"]
        .as_array_mut()
        .expect("rules")
        .remove(2);
    insta::assert_snapshot!(changed(&small(), &after), @r#"
        delete rule inet muster_groups in-web handle 15
        delete counter inet muster_groups n-web-3
        "#);
    // A comment is nothing to the kernel.
    let mut after = small();
    after["groups"]["web"][1]["comment"] = "other".into();
    assert_eq!(changed(&small(), &after), "");
    assert_eq!(changed(&small(), &small()), "");
}

#[test]
fn one_member_is_one_element() {
    let mut after = small();
    after["members"]["group:lb"] = json!(["192.0.2.8/32", "192.0.2.9/32"]);
    insta::assert_snapshot!(changed(&small(), &after), @r#"
        delete element inet muster_groups g6-lb { 2001:db8::8 }
        add element inet muster_groups g4-lb { 192.0.2.9 }
        "#);
    // The first prefix: its set is asked from now on.
    let mut after = small();
    after["members"]["group:lb"] = json!(["192.0.2.8/32", "2001:db8::8/128", "10.0.0.0/8"]);
    insta::assert_snapshot!(changed(&small(), &after), @r#"
        add element inet muster_groups g4p-lb { 10.0.0.0/8 }
        add rule inet muster_groups in-web ip saddr @g4p-lb tcp dport 80 counter name n-web-1 accept comment "1/4p d9addac9b9ff"
        add rule inet muster_groups in-web ip saddr @g4p-lb tcp dport 443 counter name n-web-1 accept comment "1/4p+1 5ccb69c358c3"
        add rule inet muster_groups in-web ip6 saddr @g6p-lb tcp dport 80 counter name n-web-1 accept comment "1/6p 5f7d2878fc5a"
        add rule inet muster_groups in-web ip6 saddr @g6p-lb tcp dport 443 counter name n-web-1 accept comment "1/6p+1 066207e1b44a"
        "#);
}

#[test]
fn an_interface_that_comes_is_its_elements_and_two_chains() {
    let mut after = small();
    after["interfaces"]["mtb"] = interface(8, &["web"]);
    insta::assert_snapshot!(changed(&small(), &after), @r#"
        add chain inet muster_groups from-mtb
        add chain inet muster_groups to-mtb
        add rule inet muster_groups from-mtb jump out-web comment "1 e04c7173946c"
        add rule inet muster_groups from-mtb drop comment "2 f1a2a766dcd5"
        add rule inet muster_groups to-mtb jump in-web comment "1 3e78cbd6c51d"
        add rule inet muster_groups to-mtb drop comment "2 f1a2a766dcd5"
        add element bridge muster_groups judged { "mtb" . 0x6d6b0002 }
        add element bridge muster_groups macs { "mtb" . 52:54:00:00:00:08 }
        add element bridge muster_groups marks-from { "mtb" : 0x6d650002 }
        add element bridge muster_groups marks-to { "mtb" : 0x6d690002 }
        add element bridge muster_groups own4 { "mtb" . 52:54:00:00:00:08 . 192.0.2.8 }
        add element bridge muster_groups own6 { "mtb" . 52:54:00:00:00:08 . 2001:db8::8, "mtb" . 52:54:00:00:00:08 . fe80::5054:ff:fe00:8 }
        add element bridge muster_groups rarp { "mtb" . 0x525400000008 }
        add element bridge muster_groups taps { "mtb" }
        add element inet muster_groups from-mark { 0x6d670002 : goto from-mtb }
        add element inet muster_groups neighbor { 0x6d670002 . 0x20010db8000000000000000000000008, 0x6d670002 . 0xfe80000000000000505400fffe000008 }
        add element inet muster_groups routed4 { "br0" . 192.0.2.8 : 0x6d690002 }
        add element inet muster_groups routed6 { "br0" . 2001:db8::8 : 0x6d690002, "br0" . fe80::5054:ff:fe00:8 : 0x6d690002 }
        add element inet muster_groups to-mark { 0x6d6b0002 : goto to-mtb }
        "#);
    insta::assert_snapshot!(changed(&after, &small()), @r#"
        delete element bridge muster_groups judged { "mtb" . 0x6d6b0002 }
        delete element bridge muster_groups macs { "mtb" . 52:54:00:00:00:08 }
        delete element bridge muster_groups marks-from { "mtb" }
        delete element bridge muster_groups marks-to { "mtb" }
        delete element bridge muster_groups own4 { "mtb" . 52:54:00:00:00:08 . 192.0.2.8 }
        delete element bridge muster_groups own6 { "mtb" . 52:54:00:00:00:08 . 2001:db8::8, "mtb" . 52:54:00:00:00:08 . fe80::5054:ff:fe00:8 }
        delete element bridge muster_groups rarp { "mtb" . 0x525400000008 }
        delete element bridge muster_groups taps { "mtb" }
        delete element inet muster_groups from-mark { 0x6d670002 }
        delete element inet muster_groups neighbor { 0x6d670002 . 0x20010db8000000000000000000000008, 0x6d670002 . 0xfe80000000000000505400fffe000008 }
        delete element inet muster_groups routed4 { "br0" . 192.0.2.8 }
        delete element inet muster_groups routed6 { "br0" . 2001:db8::8, "br0" . fe80::5054:ff:fe00:8 }
        delete element inet muster_groups to-mark { 0x6d6b0002 }
        flush chain inet muster_groups from-mtb
        flush chain inet muster_groups to-mtb
        delete chain inet muster_groups from-mtb
        delete chain inet muster_groups to-mtb
        "#);
}

#[test]
fn without_rules_for_what_goes_out_all_goes_out() {
    let mut open = small();
    open["groups"]["web"]
        .as_array_mut()
        .expect("rules")
        .truncate(3);
    // The chains of the interfaces in it turn, too.
    insta::assert_snapshot!(changed(&open, &small()), @r#"
        add counter inet muster_groups n-web-5
        add counter inet muster_groups n-web-6
        flush chain inet muster_groups from-mta
        add rule inet muster_groups from-mta jump out-web comment "1 e04c7173946c"
        add rule inet muster_groups from-mta drop comment "2 f1a2a766dcd5"
        add rule inet muster_groups out-web meta nfproto ipv4 meta l4proto 47 counter name n-web-5 accept comment "5 16ba308b6537"
        add rule inet muster_groups out-web ip daddr @s4-office counter name n-web-6 accept comment "6/4 5139b437d823"
        add rule inet muster_groups out-web ip6 daddr @s6-office counter name n-web-6 accept comment "6/6 88316c9c57b0"
        add rule inet muster_groups out-web ip daddr @s4p-office counter name n-web-6 accept comment "6/4p 866c7c38e8ae"
        add rule inet muster_groups out-web ip6 daddr @s6p-office counter name n-web-6 accept comment "6/6p 3a9a41a83d88"
        "#);
}

#[test]
fn names_do_not_run_into_each_other() {
    let long = "a".repeat(63);
    let (web, web1): (GroupName, GroupName) = (
        "web".parse().expect("a name"),
        "web-1".parse().expect("a name"),
    );
    let long: GroupName = long.parse().expect("a name");
    for group in [&web, &web1, &long] {
        for rule in [RuleId(1), RuleId(11), RuleId(u32::MAX)] {
            let name = counter(group, rule);
            assert_eq!(counter_of(&name.name), Some((group.clone(), rule)));
        }
    }
    assert_eq!(counter_of("n-web"), None);
    let state = json!({
        "interfaces": {"mtaaaaaaaaaaaaa": interface(7, &[long.as_str()])},
        "groups": {long.as_str(): [
            {"id": u32::MAX, "direction": "ingress", "traffic": "any", "peer": format!("set:{long}")},
        ]},
        "members": {format!("set:{long}"): ["10.0.0.0/8"]},
    });
    let holding = holding(state);
    let ids = ids(&[&holding]);
    for (name, chain) in objects(&holding, &ids).chains {
        // The kernel's limits.
        assert!(name.name.len() < 128);
        for rule in chain.rules {
            assert!(rule.comment().len() < 127, "{}", rule.comment());
        }
    }
}

#[test]
fn what_cannot_be_put_in_force_is_refused() {
    let said = |f: &dyn Fn(&mut Value)| {
        let mut state = small();
        f(&mut state);
        let holding = holding(state);
        check(&holding, None).map_or_else(|e| e.to_string(), |()| "fine".to_owned())
    };
    assert_eq!(said(&|_| {}), "fine");
    insta::assert_snapshot!(said(&|s| s["interfaces"]["eth0"] = interface(9, &[])), @"`eth0` is no interface of a machine: their names begin with `mt`");
    insta::assert_snapshot!(said(&|s| s["interfaces"]["mta"]["groups"] = json!(["db"])), @"interface mta is in the group `db`, of which nothing is known");
    insta::assert_snapshot!(said(&|s| s["interfaces"]["mta"]["addresses"] = json!(["224.0.0.1"])), @"224.0.0.1 of the interface mta is not the address of one interface");
    insta::assert_snapshot!(said(&|s| s["groups"]["web"][0]["peer"] = "group:db".into()), @"a rule of the group `web` names group:db, of which nothing is known");
    insta::assert_snapshot!(said(&|s| s["groups"]["web"][0]["id"] = 2.into()), @"the group `web` has two rules with the number 2");
    insta::assert_snapshot!(said(&|s| {
        s["groups"]["web"][0]["traffic"] = "icmp".into();
        s["groups"]["web"][0]["peer"] = "2001:db8::/32".into();
    }), @"rule 1 of the group `web`: icmp is IPv4 only, and 2001:db8::/32 is not: this rule would never match");
    insta::assert_snapshot!(said(&|s| s["members"]["group:lb"] = json!(["10.0.0.0/8", "10.1.0.0/16"])), @"10.1.0.0/16 of group:lb has bits behind its prefix, or is a part of 10.0.0.0/8");
    insta::assert_snapshot!(said(&|s| s["members"]["group:lb"] = json!(["10.1.0.0/8"])), @"10.1.0.0/8 of group:lb has bits behind its prefix, or is a part of 10.1.0.0/8");
    insta::assert_snapshot!(said(&|s| {
        let rule = s["groups"]["web"][1].clone();
        let rules = (1..=100_000).map(|id| {
            let mut rule = rule.clone();
            rule["id"] = id.into();
            rule
        });
        s["groups"]["web"] = rules.collect();
    }), @"the group `web` has 100000 rules; a group takes 1000");
    // Groups may name each other: nothing is nested in anything.
    let cycle = said(&|s| {
        s["groups"]["lb"] = json!([
            {"id": 1, "direction": "ingress", "traffic": "any", "peer": "group:web"},
        ]);
        s["groups"]["web"][0]["peer"] = "group:lb".into();
        s["members"]["group:web"] = json!([]);
    });
    assert_eq!(cycle, "fine");
}

#[test]
fn an_interface_without_a_number_is_not_there() {
    let holding = holding(small());
    let text = whole(&objects(&holding, &Ids::default()), &BTreeMap::new());
    assert!(!text.contains("\"mta\""));
}

#[test]
fn a_flow_goes_on_as_long_as_it_could_begin() {
    let mut state = small();
    state["interfaces"]["mtlb"] = interface(8, &[]);
    let ask = |state: &Value, source: &str, target: &str, port: u16| {
        let way = Way {
            source: source.parse().expect("an address"),
            target: target.parse().expect("an address"),
            payload: Payload::Tcp {
                source: 40_000,
                target: port,
                opens: true,
            },
        };
        let held = holding(state.clone());
        let judged = flow(
            &held,
            &Flow {
                sent: way.clone(),
                arrives: way,
            },
        );
        (judged.verdict == Verdict::Pass, judged.why().to_string())
    };
    let (lb, web, far) = ("192.0.2.8", "192.0.2.7", "198.51.100.9");
    assert_eq!(ask(&state, lb, web, 443), (true, "rule 1 of web".into()));
    assert!(!ask(&state, lb, web, 444).0);
    assert!(!ask(&state, far, web, 443).0);
    // From one that has rules for what goes out.
    assert_eq!(ask(&state, web, far, 25), (true, "rule 6 of web".into()));
    assert!(!ask(&state, web, "203.0.113.1", 25).0);
    // None of ours.
    assert!(ask(&state, far, "203.0.113.1", 25).0);
    // A rule goes, and a member.
    let mut less = state.clone();
    less["groups"]["web"]
        .as_array_mut()
        .expect("rules")
        .remove(0);
    assert!(!ask(&less, lb, web, 443).0);
    let mut less = state.clone();
    less["members"]["group:lb"] = json!([]);
    assert!(!ask(&less, lb, web, 443).0);
    // The longest prefix beside own addresses says whose an address is.
    state["interfaces"]["mta"]["pairs"] = json!([{"prefix": "10.0.0.0/8"}]);
    state["interfaces"]["mtlb"]["pairs"] = json!([{"prefix": "10.1.0.0/16"}]);
    let held = holding(state);
    let judge = Judge::new(&held);
    let who = |address: &str| -> Vec<String> {
        let taps = judge.who_has(address.parse().expect("an address"));
        taps.iter().map(ToString::to_string).collect()
    };
    assert_eq!(who("10.1.2.3"), ["mtlb"]);
    assert_eq!(who("10.2.2.3"), ["mta"]);
    assert_eq!(who("192.0.2.8"), ["mtlb"]);
    assert_eq!(who("192.0.2.99"), [""; 0]);
}

/// Some state: the numbers say what is in it.
fn state(numbers: &[u8]) -> Holding {
    let mut numbers = numbers.iter().copied().cycle();
    let mut next = |end: u8| numbers.next().unwrap_or(0) % end;
    let names = ["web", "db", "web-db"];
    let mut groups = serde_json::Map::new();
    for name in names {
        let rules: Vec<Value> = (0..next(4))
            .map(|id| {
                let traffic = ["any", "tcp 80", "udp"][usize::from(next(3))];
                let peers = ["any", "group:web", "group:db", "set:office", "10.0.0.0/8"];
                json!({
                    "id": u32::from(id) + u32::from(next(2)) * 10,
                    "direction": if next(3) == 0 { "egress" } else { "ingress" },
                    "traffic": traffic,
                    "peer": peers[usize::from(next(5))],
                })
            })
            .collect();
        groups.insert(name.to_owned(), rules.into());
    }
    let mut interfaces = serde_json::Map::new();
    for tap in 0..4_u8 {
        if next(4) == 0 {
            continue;
        }
        let of: Vec<&str> = names.into_iter().filter(|_| next(2) == 0).collect();
        // Two may have one address.
        let mut one = interface(1 + next(3) + tap, &of);
        if next(3) == 0 {
            let inner = ["10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9", "10.200.0.0/16"];
            let inner = inner[usize::from(next(4))];
            one["pairs"] = json!([{"prefix": inner}, {"prefix": "192.0.2.3/32"},
                {"prefix": "2001:db8:5::/64", "mac": "52:54:00:00:00:99"}]);
        }
        interfaces.insert(format!("mt{tap}"), one);
    }
    let mut members = serde_json::Map::new();
    for of in ["group:web", "group:db", "set:office"] {
        let pool = [
            "192.0.2.1/32",
            "192.0.2.2/32",
            "2001:db8::1/128",
            "10.0.0.0/8",
        ];
        let some: Vec<&str> = pool.into_iter().filter(|_| next(2) == 0).collect();
        members.insert(of.to_owned(), json!(some));
    }
    let mut state = holding(json!({
        "interfaces": interfaces, "groups": groups, "members": members,
    }));
    // What nobody is in, and nobody names, goes.
    if next(2) == 0 {
        let used = |name: &GroupName| state.interfaces.values().any(|i| i.groups.contains(name));
        let unused: Vec<GroupName> = state.groups.keys().filter(|n| !used(n)).cloned().collect();
        for name in unused {
            state.groups.remove(&name);
        }
        let named: Vec<_> = state
            .groups
            .values()
            .flatten()
            .filter_map(|rule| muster_protocol::firewall::MembersOf::of(&rule.peer))
            .collect();
        state.members.retain(|of, _| named.contains(of));
    }
    state
}

proptest! {
    #[test]
    fn what_a_change_touches_is_all_that_differs(
        one in prop::collection::vec(any::<u8>(), 60),
        two in prop::collection::vec(any::<u8>(), 60),
        same in 0_usize..60,
    ) {
        let before = state(&one);
        // Some states differ in little.
        let mut close = one.clone();
        close[same] = two[same];
        for after in [state(&two), state(&close)] {
            let ids = ids(&[&before, &after]);
            let difference = touched(&before, &after, &before.change_to(&after), &ids);
            let mut done = objects(&before, &ids);
            done.apply(&difference);
            let wanted = objects(&after, &ids);
            prop_assert_eq!(&done, &wanted);
            // And nothing in it does not differ.
            let least = objects(&before, &ids).difference(&wanted);
            prop_assert_eq!(difference, least);
        }
    }
}
