use std::collections::BTreeMap;

use muster_protocol::firewall::Members;
use muster_protocol::firewall::host::{HostRules, Resolved};
use muster_protocol::names::RoleName;
use serde_json::{Value, json};

use super::*;

fn resolved(value: Value) -> Resolved {
    let rules = HostRules::read(&value).expect("rules");
    let roles: BTreeMap<RoleName, Members> = serde_json::from_value(json!({
        "bastion": ["192.0.2.8/32", "2001:db8::8/128"],
        "four-only": ["198.51.100.0/28"],
    }))
    .expect("roles");
    rules.resolve(&roles).expect("addresses")
}

fn whole() -> Value {
    json!({
        "policy": {"output": "drop", "forward": "drop"},
        "sets": {"office": ["192.0.2.0/24", "2001:db8:1::/48"]},
        "rules": [
            {"accept": "tcp 22", "from": ["role:bastion", "set:office", "203.0.113.9"], "comment": "the \"front\" } door"},
            {"accept": "tcp 80,443,8000-8080", "rate": "500/second burst 1000"},
            {"accept": "icmp 8", "rate": "5/second", "log": "ping "},
            {"accept": "icmpv6 3/4"},
            {"accept": "udp", "from": "role:four-only", "to": "0.0.0.0/0"},
            {"accept": "udp 53", "to": ["::/0", "0.0.0.0/0"]},
            {"drop": "proto 47", "from": ["10.0.0.0/8", "10.1.0.0/16", "172.16.0.0/12"], "log": "gre "},
            {"reject": "tcp 25", "direction": "output"},
            {"reject": "any", "direction": "forward", "to": "set:office", "log": "no "},
            {"raw": "tcp dport { 8080 } ct count over 10 drop"},
            {"accept": "any", "direction": "output"},
        ],
    })
}

#[test]
fn rules_are_the_text_that_nft_takes() {
    insta::assert_snapshot!(render(&resolved(whole())), @r#"
    table inet muster_host {
    	counter r418ace4ebed79864 { packets 0 bytes 0 }
    	counter r4be8b42fd078fd27 { packets 0 bytes 0 }
    	counter r51037dcf84d6a679 { packets 0 bytes 0 }
    	counter r6c60c02557c1995c { packets 0 bytes 0 }
    	counter r7d39f6e08ea51d4b { packets 0 bytes 0 }
    	counter r96209a1da12eb2f4 { packets 0 bytes 0 }
    	counter r9c64c5865d0b1e86 { packets 0 bytes 0 }
    	counter ra21171f23b6c191b { packets 0 bytes 0 }
    	counter rb9263d75afe2b867 { packets 0 bytes 0 }
    	counter re4705f1f46b702e3 { packets 0 bytes 0 }
    	limit rb9263d75afe2b867 { rate 500/second burst 1000 packets }
    	limit r6c60c02557c1995c { rate 5/second burst 5 packets }
    	set set-office-v4 {
    		type ipv4_addr
    		flags interval
    		elements = { 192.0.2.0/24 }
    	}
    	set set-office-v6 {
    		type ipv6_addr
    		flags interval
    		elements = { 2001:db8:1::/48 }
    	}
    	set role-bastion-v4 {
    		type ipv4_addr
    		flags interval
    		elements = { 192.0.2.8 }
    	}
    	set role-bastion-v6 {
    		type ipv6_addr
    		flags interval
    		elements = { 2001:db8::8 }
    	}
    	set role-four-only-v4 {
    		type ipv4_addr
    		flags interval
    		elements = { 198.51.100.0/28 }
    	}
    	chain log-r6c60c02557c1995c {
    		limit rate 10/second burst 20 packets log prefix "ping "
    		counter name "r6c60c02557c1995c" accept
    	}
    	chain input {
    		type filter hook input priority filter; policy drop;
    		iifname "lo" accept
    		ct state established,related accept
    		icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
    		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
    		ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
    		ip6 saddr fe80::/10 icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept
    		ip6 saddr :: icmpv6 type { mld-listener-report, mld2-listener-report } accept
    		meta nfproto ipv4 udp sport 67 udp dport 68 accept
    		ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
    		ip saddr @role-bastion-v4 tcp dport 22 counter name "r7d39f6e08ea51d4b" accept
    		ip saddr @set-office-v4 tcp dport 22 counter name "r7d39f6e08ea51d4b" accept
    		ip saddr 203.0.113.9 tcp dport 22 counter name "r7d39f6e08ea51d4b" accept
    		ip6 saddr @role-bastion-v6 tcp dport 22 counter name "r7d39f6e08ea51d4b" accept
    		ip6 saddr @set-office-v6 tcp dport 22 counter name "r7d39f6e08ea51d4b" accept
    		tcp dport { 80, 443, 8000-8080 } limit name "rb9263d75afe2b867" counter name "rb9263d75afe2b867" accept
    		meta nfproto ipv4 meta l4proto icmp icmp type 8 limit name "r6c60c02557c1995c" goto log-r6c60c02557c1995c
    		meta nfproto ipv6 meta l4proto ipv6-icmp icmpv6 type 3 icmpv6 code 4 counter name "r96209a1da12eb2f4" accept
    		ip saddr @role-four-only-v4 meta nfproto ipv4 meta l4proto udp counter name "r4be8b42fd078fd27" accept
    		meta nfproto ipv4 udp dport 53 counter name "ra21171f23b6c191b" accept
    		meta nfproto ipv6 udp dport 53 counter name "ra21171f23b6c191b" accept
    		ip saddr { 10.0.0.0/8, 172.16.0.0/12 } meta l4proto 47 limit rate 10/second burst 20 packets log prefix "gre "
    		ip saddr { 10.0.0.0/8, 172.16.0.0/12 } meta l4proto 47 counter name "r418ace4ebed79864" drop
    		tcp dport { 8080 } ct count over 10 drop
    	}
    	chain output {
    		type filter hook output priority filter; policy drop;
    		oifname "lo" accept
    		ct state established,related accept
    		icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
    		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
    		ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
    		ip6 saddr fe80::/10 icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept
    		ip6 saddr :: icmpv6 type { mld-listener-report, mld2-listener-report } accept
    		meta nfproto ipv4 udp sport 68 udp dport 67 accept
    		ip6 saddr fe80::/10 udp sport 546 udp dport 547 accept
    		tcp dport 25 counter name "r51037dcf84d6a679" reject with tcp reset
    		counter name "r9c64c5865d0b1e86" accept
    	}
    	chain forward {
    		type filter hook forward priority filter; policy drop;
    		meta mark & 0xffff0000 == { 0x6d6b0000, 0x6d6e0000 } accept
    		ct state established,related accept
    		icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
    		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
    		ip daddr @set-office-v4 meta l4proto tcp limit rate 10/second burst 20 packets log prefix "no "
    		ip daddr @set-office-v4 meta l4proto tcp counter name "re4705f1f46b702e3" reject with tcp reset
    		ip daddr @set-office-v4 limit rate 10/second burst 20 packets log prefix "no "
    		ip daddr @set-office-v4 counter name "re4705f1f46b702e3" reject
    		ip6 daddr @set-office-v6 meta l4proto tcp limit rate 10/second burst 20 packets log prefix "no "
    		ip6 daddr @set-office-v6 meta l4proto tcp counter name "re4705f1f46b702e3" reject with tcp reset
    		ip6 daddr @set-office-v6 limit rate 10/second burst 20 packets log prefix "no "
    		ip6 daddr @set-office-v6 counter name "re4705f1f46b702e3" reject
    	}
    }
    "#);
}

#[test]
fn without_any_rules_what_a_machine_needs_is_there() {
    insta::assert_snapshot!(render(&resolved(json!({}))), @r#"
    table inet muster_host {
    	chain input {
    		type filter hook input priority filter; policy drop;
    		iifname "lo" accept
    		ct state established,related accept
    		icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
    		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
    		ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
    		ip6 saddr fe80::/10 icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept
    		ip6 saddr :: icmpv6 type { mld-listener-report, mld2-listener-report } accept
    		meta nfproto ipv4 udp sport 67 udp dport 68 accept
    		ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
    	}
    	chain output {
    		type filter hook output priority filter; policy accept;
    		oifname "lo" accept
    		ct state established,related accept
    		icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
    		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
    		ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
    		ip6 saddr fe80::/10 icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept
    		ip6 saddr :: icmpv6 type { mld-listener-report, mld2-listener-report } accept
    		meta nfproto ipv4 udp sport 68 udp dport 67 accept
    		ip6 saddr fe80::/10 udp sport 546 udp dport 547 accept
    	}
    	chain forward {
    		type filter hook forward priority filter; policy accept;
    		meta mark & 0xffff0000 == { 0x6d6b0000, 0x6d6e0000 } accept
    		ct state established,related accept
    		icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
    		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
    	}
    }
    "#);
    let bare = json!({"without": ["loopback", "established", "icmp_errors", "neighbours", "dhcp"]});
    insta::assert_snapshot!(render(&resolved(bare)), @"
    table inet muster_host {
    	chain input {
    		type filter hook input priority filter; policy drop;
    	}
    	chain output {
    		type filter hook output priority filter; policy accept;
    	}
    	chain forward {
    		type filter hook forward priority filter; policy accept;
    		meta mark & 0xffff0000 == { 0x6d6b0000, 0x6d6e0000 } accept
    	}
    }
    ");
}

#[test]
fn counters_go_with_their_rules() {
    let one = resolved(
        json!({"rules": [{"accept": "tcp 22"}, {"accept": "tcp 80"}, {"accept": "tcp 22"}]}),
    );
    let other = json!({"rules": [{"accept": "tcp 443"}, {"accept": "tcp 22", "comment": "ssh"}]});
    let other = resolved(other);
    let (first, second) = (counter_names(&one), counter_names(&other));
    assert_eq!(first[0], second[1]);
    assert_eq!(first[2], format!("{}-2", first[0]));
    assert!(!first.contains(&second[0]));
    let count = Count {
        packets: 7,
        bytes: 420,
    };
    let text = render_with(&other, &Counters::from([(first[0].clone(), count)]));
    assert!(text.contains(&format!("counter {} {{ packets 7 bytes 420 }}", first[0])));
    assert!(text.contains(&format!("counter {} {{ packets 0 bytes 0 }}", second[0])));
}

#[test]
fn the_difference_is_told_rule_by_rule() {
    let old = resolved(whole());
    assert!(difference(Some(&old), &old).is_empty());
    let mut new = whole();
    new["policy"] = json!({"forward": "drop"});
    new["without"] = json!(["dhcp"]);
    new["sets"]["office"] = json!(["192.0.2.0/25", "2001:db8:1::/48"]);
    let rules = new["rules"].as_array_mut().expect("rules");
    let first = rules.remove(0);
    rules.insert(2, first);
    rules.remove(4);
    rules.insert(0, json!({"accept": "tcp 2222"}));
    insta::assert_snapshot!(difference(Some(&old), &resolved(new)).join("\n"), @r#"
    - output policy drop
    + output policy accept
    - always accept dhcp
    - set:office 192.0.2.0/24
    + set:office 192.0.2.0/25
    - role:four-only 198.51.100.0/28
    ~ rules[0] is rules[3]: input accept tcp 22 from role:bastion, set:office, 203.0.113.9 # the "front" } door
    - rules[4]: input accept udp from role:four-only to 0.0.0.0/0
    + rules[0]: input accept tcp 2222
    "#);
    let small = resolved(json!({"rules": [{"accept": "tcp 22", "from": "role:bastion"}]}));
    insta::assert_snapshot!(difference(None, &small).join("\n"), @"
    + the table inet muster_host
    + input policy drop
    + output policy accept
    + forward policy accept
    + role:bastion 192.0.2.8/32 2001:db8::8/128
    + rules[0]: input accept tcp 22 from role:bastion
    ");
}
