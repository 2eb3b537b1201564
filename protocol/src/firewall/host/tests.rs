use serde_json::{Value, json};

use super::*;

fn order(value: Value) -> HostOrder {
    HostOrder::read(&value).expect("an order")
}

/// What is said of it.
fn said(value: Value) -> String {
    HostOrder::read(&value).expect_err("a mistake").to_string()
}

/// What is said of a rule.
fn of_rule(rule: Value) -> String {
    said(json!({"sets": {"office": ["192.0.2.0/24"]}, "rules": [{"accept": "any"}, rule]}))
}

fn whole() -> Value {
    json!({
        "policy": {"output": "drop"},
        "without": ["dhcp"],
        "sets": {"office": ["192.0.2.0/24", "2001:db8:1::/48"]},
        "rules": [
            {"accept": "tcp 22", "from": ["role:bastion", "set:office"], "comment": "the \"front\" door"},
            {"accept": "tcp 80,443", "rate": "500/second burst 1000"},
            {"reject": "tcp 25", "direction": "output", "log": "mail ", "to": "198.51.100.7"},
            {"raw": "tcp dport { 8080, 9090 } ct count over 10 drop"},
        ],
        "probe": [{"from": "role=bastion", "tcp": 22}],
        "confirm_within": "30s",
    })
}

fn addresses(value: Value) -> BTreeMap<RoleName, Members> {
    serde_json::from_value(value).expect("addresses")
}

#[test]
fn an_order_is_written_as_it_was() {
    let order = order(whole());
    assert_eq!(serde_json::to_value(&order).expect("JSON"), whole());
    let lines: Vec<String> = order
        .rules
        .rules()
        .iter()
        .map(HostRule::to_string)
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    input accept tcp 22 from role:bastion, set:office # the "front" door
    input accept tcp 80,443, 500/second burst 1000
    output reject tcp 25 to 198.51.100.7, log "mail "
    input raw: tcp dport { 8080, 9090 } ct count over 10 drop
    "#);
    assert!(order.rules.is_raw());
    assert_eq!(order.probes[0].to_string(), "role=bastion to tcp/22");
    // What was left out is what it would be.
    let short = HostOrder::read(&json!({"rules": []})).expect("an order");
    assert_eq!(short, HostOrder::default());
    assert_eq!(short.confirm_within.get().as_secs(), 60);
    assert_eq!(short.rules.policy().input, Policy::Drop);
    assert!(!short.rules.is_raw());
    let twice = json!({"rules": [{"accept": "any", "from": ["192.0.2.1", "192.0.2.1/32"]}]});
    assert_eq!(self::order(twice).rules.rules()[0].peers().count(), 1);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    insta::assert_snapshot!(said(json!([])), @"firewall: this must be a map, not a list");
    insta::assert_snapshot!(said(json!({"rule": []})), @"firewall: `rule` is not known here; there are policy, without, sets, rules, probe, confirm_within; did you mean `rules`?");
    insta::assert_snapshot!(said(json!({"rules": {}})), @"rules: this must be a list, not a map");
    insta::assert_snapshot!(said(json!({"policy": {"input": "reject"}})), @"policy.input: `reject` is no policy; there are accept, drop");
    insta::assert_snapshot!(said(json!({"without": ["loopbak"]})), @"without[0]: `loopbak` is no rule that is always there; there are loopback, established, icmp_errors, neighbours, dhcp; did you mean `loopback`?");
    insta::assert_snapshot!(said(json!({"sets": {"a": ["192.0.2.7/24"]}})), @"sets.a[0]: 192.0.2.7/24 has bits behind its prefix; the prefix is 192.0.2.0/24, the one address 192.0.2.7/32");
    insta::assert_snapshot!(said(json!({"sets": {"a": []}})), @"sets.a: this is empty, which could mean nobody or everybody; leave it out, or give it addresses");
    insta::assert_snapshot!(said(json!({"sets": {"a": ["set:b"]}})), @"sets.a[0]: a set has addresses and prefixes; sets and roles stand in rules");
    insta::assert_snapshot!(said(json!({"sets": {"a } b": ["::1"]}})), @"sets.a } b: `a } b` is not a valid address set name: ` ` is not allowed; it takes small letters, digits and `-_.`");
    insta::assert_snapshot!(said(json!({"rules": vec![json!({"accept": "any"}); 100_000]})), @"rules: 100000 rules, at most 2000 are allowed; put addresses into sets and ports into one rule");
    insta::assert_snapshot!(said(json!({"confirm_within": "1s"})), @"confirm_within: 1s is too short or too long for a change to be confirmed in; write 5s to 10m");
    insta::assert_snapshot!(said(json!({"probe": [{"from": "role=bastion", "tcp": 70000}]})), @"probe[0].tcp: `70000` is not a port; ports are 1 to 65535");
    insta::assert_snapshot!(said(json!({"probe": [{"from": "role=bastion"}]})), @r##"probe[0]: `tcp` is missing; a probe is like #{ from: "role=bastion", tcp: 22 }"##);
    assert!(said(json!({"probe": [{"from": "role=", "tcp": 22}]})).starts_with("probe[0].from: "));
    assert!(said(json!({"probe": [{"from": "*", "tcp": 0}]})).starts_with("probe[0].tcp: "));
    let wide: Vec<String> = (0..=20_000)
        .map(|n| format!("10.{}.{}.1", n / 256, n % 256))
        .collect();
    insta::assert_snapshot!(said(json!({"sets": {"a": wide}})), @"sets: 20001 addresses, at most 20000 are allowed; write prefixes");
    let side: Vec<String> = (0..64).map(|n| format!("10.0.0.{n}")).collect();
    let rule = json!({"accept": "any", "from": side, "to": side});
    insta::assert_snapshot!(said(json!({"rules": [rule, rule]})), @"rules: 32768 lines of the kernel's, at most 20000 are allowed; name one set on each side of a rule");
}

#[test]
fn what_is_wrong_with_a_rule_is_said_with_its_number() {
    insta::assert_snapshot!(of_rule(json!({})), @r#"rules[1]: a rule has one of accept, drop, reject (each with its traffic: `accept: "tcp 22"`) and raw; this one has none"#);
    insta::assert_snapshot!(of_rule(json!({"accept": "any", "drop": "any"})), @r#"rules[1]: a rule has one of accept, drop, reject (each with its traffic: `accept: "tcp 22"`) and raw; this one has several"#);
    insta::assert_snapshot!(of_rule(json!({"accept": 22})), @"rules[1].accept: this must be a text, not a number");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp 0"})), @"rules[1].accept: `0` is not a port; ports are 1 to 65535, written like 80,443,8000-8999");
    insta::assert_snapshot!(of_rule(json!({"accept": "udp 70000"})), @"rules[1].accept: `70000` is not a port; ports are 1 to 65535, written like 80,443,8000-8999");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp 90-80"})), @"rules[1].accept: the range 90-80 is the wrong way round; write 80-90");
    insta::assert_snapshot!(of_rule(json!({"accept": "any 80"})), @"rules[1].accept: any has no ports, so `80` cannot be one; only tcp and udp have them");
    insta::assert_snapshot!(of_rule(json!({"accept": "icmp", "from": "2001:db8::/32"})), @"rules[1]: icmp and 2001:db8::/32 never meet in one packet: this rule would never match");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "from": "2001:db8::/32", "to": "set:office"})), @"rules[1]: 2001:db8::/32 and set:office never meet in one packet: this rule would never match");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "from": ["192.0.2.1", "192.0.2.7/24"]})), @"rules[1].from[1]: 192.0.2.7/24 has bits behind its prefix; the prefix is 192.0.2.0/24, the one address 192.0.2.7/32");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "from": "set:ofice"})), @"rules[1].from: there is no set `ofice` in these rules; add it to sets; did you mean `office`?");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "from": "group:lb"})), @"rules[1].from: `group:` is of security groups, of machines' interfaces; here it is role:NAME");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "from": ["any", "::1"]})), @"rules[1].from[0]: `any` is everybody, so nobody else can stand beside it");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "to": []})), @"rules[1].to: this is empty, which could mean nobody or everybody; write any, or leave it out");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "from": "bastion"})), @"rules[1].from: `bastion` is nobody; write any, a prefix (192.0.2.0/24, 2001:db8::/32), an address, set:NAME or role:NAME");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "rate": "10/fortnight"})), @"rules[1].rate: `10/fortnight` is no rate; write 10/second, 500/minute burst 100 (second, minute, hour or day; 1 to 1000000)");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "rate": "1/day burst 1000000"})), @"rules[1].rate: a rate of 1/day can have a burst of at most 213503");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "log": "a\"; flush ruleset"})), @r#"rules[1].log: `a"; flush ruleset` cannot stand in front of a log line: it takes 1 to 60 ASCII characters without ", \, $ and control characters"#);
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "comment": "a\nb"})), @"rules[1].comment: a comment is one line of at most 200 characters that can be printed");
    insta::assert_snapshot!(of_rule(json!({"raw": "accept", "from": "any"})), @"rules[1]: a raw rule says all of it itself; it takes direction and comment, not `from`");
    insta::assert_snapshot!(of_rule(json!({"accept": "tcp", "direction": "in"})), @"rules[1].direction: `in` is no direction; there are input, output, forward");
}

#[test]
fn a_raw_line_cannot_leave_its_chain() {
    for good in [
        "accept",
        "tcp dport { 22, 80-90 } ct state new limit rate 3/minute accept",
        "tcp dport 22 meter seen { ip saddr limit rate 3/minute } accept",
        "udp dport 53 log prefix \"dns } \" drop",
        "ct state invalid counter drop comment \"include what is define\"",
        "iifname \"eth0\" oifname br0 drop comment \"iif\"",
        "fib saddr . iif oif missing drop",
    ] {
        assert_eq!(
            good.parse::<RawLine>().map(|l| l.to_string()),
            Ok(good.into())
        );
    }
    let said = |text: &str| text.parse::<RawLine>().expect_err(text).to_string();
    insta::assert_snapshot!(said("}"), @"the braces of a raw line must be pairs: it cannot end the chain that it stands in");
    insta::assert_snapshot!(said("accept } } table inet other { chain c {"), @"the braces of a raw line must be pairs: it cannot end the chain that it stands in");
    insta::assert_snapshot!(said("flush ruleset"), @"`flush` cannot be in a raw line: it is one rule of a chain, and nothing else");
    insta::assert_snapshot!(said("include \"/etc/shadow\""), @"`include` cannot be in a raw line: it is one rule of a chain, and nothing else");
    insta::assert_snapshot!(said("accept; flush ruleset"), @r"`;` cannot be in a raw line: it is one rule, without line ends, `;`, `#`, `$`, `\` and what is not ASCII");
    insta::assert_snapshot!(said("meta iif eth0 accept"), @"`iif` in a raw line is the number that an interface has now: rules with it cannot be loaded while there is none of that name, as when the machine starts; write iifname");
    insta::assert_snapshot!(said("oif {eth0} accept"), @"`oif` in a raw line is the number that an interface has now: rules with it cannot be loaded while there is none of that name, as when the machine starts; write oifname");
    for bad in [
        "",
        " ",
        "accept\nflush ruleset",
        "accept\rdrop",
        "accept # }",
        "accept \\",
        "ip saddr $x accept",
        "ip saddr { 1.1.1.1",
        "} {",
        "log prefix \"x",
        "\"}\" } {",
        "policy accept",
        "type filter hook input priority 0",
        "{ } include",
        "ip saddr {include}",
        "tcp dport 22 define x = 1",
        "accépt",
        &"a".repeat(1_001),
    ] {
        assert!(bad.parse::<RawLine>().is_err(), "{bad:?}");
    }
}

#[test]
fn roles_become_addresses_that_are_known() {
    let rules = order(whole()).rules;
    let known = addresses(json!({
        "bastion": ["192.0.2.8/32", "192.0.2.9/32", "2001:db8::8/128"],
        "web": ["198.51.100.1/32"],
    }));
    let resolved = rules.resolve(&known).expect("addresses");
    assert_eq!(resolved.rules(), &rules);
    assert_eq!(
        serde_json::to_value(resolved.roles()).expect("JSON"),
        json!({"bastion": ["192.0.2.8/31", "2001:db8::8/128"]})
    );
    let text = serde_json::to_string(&resolved).expect("JSON");
    let again: Resolved = serde_json::from_str(&text).expect("the same");
    assert_eq!(again, resolved);
    let said = |known: Value| {
        rules
            .resolve(&addresses(known))
            .expect_err("missing")
            .to_string()
    };
    insta::assert_snapshot!(said(json!({})), @"rules[0].from: there is no node with the role `bastion`; give it to one, or write addresses");
    insta::assert_snapshot!(said(json!({"bastion": []})), @"rules[0].from: no node with the role `bastion` has an address that an operator assigned; give its nodes the label `address`, or write addresses");
    let six = json!({"rules": [{"accept": "icmp 8", "from": "role:bastion"}]});
    let six = order(six)
        .rules
        .resolve(&addresses(json!({"bastion": ["2001:db8::8/128"]})));
    insta::assert_snapshot!(six.expect_err("never"), @"rules[0]: icmp 8 and role:bastion never meet in one packet: this rule would never match");
    // What is on a disk may have been changed there.
    let text = r#"{"rules":{"rules":[{"accept":"any","from":"role:web"}]},"roles":{}}"#;
    assert!(serde_json::from_str::<Resolved>(text).is_err());
}
