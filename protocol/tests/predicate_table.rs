//! Every operator and every corner of the language, as a table of texts and answers.

use std::collections::BTreeMap;

use muster_protocol::predicate::{Attributes, Predicate, fact_at};
use serde_json::{Value, json};

struct Node {
    name: &'static str,
    roles: Vec<&'static str>,
    labels: BTreeMap<&'static str, &'static str>,
    facts: Value,
}

impl Attributes for Node {
    fn name(&self) -> &str {
        self.name
    }

    fn any_role(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.roles.iter().any(|role| test(role))
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).copied()
    }

    fn fact(&self, path: &str) -> Option<&Value> {
        fact_at(&self.facts, path)
    }
}

fn node() -> Node {
    Node {
        name: "web-07",
        roles: vec!["web", "cache"],
        labels: BTreeMap::from([
            ("zone", "gva2"),
            ("rack", "007"),
            ("release", "1.10"),
            ("tag", "v1.10"),
            ("offset", "-1.5"),
            ("star", "a*b"),
            ("word", "and"),
            ("empty", ""),
            ("disk of /var", "big one"),
            ("quotes", "a'b\"c\\d\n"),
            ("since", "2024-11-05"),
            ("package", "1.2.3~rc1+deb12u1"),
            ("big", "18446744073709551617"),
            ("capital", "Web"),
            ("accent", "é日本"),
        ]),
        facts: json!({
            "zone": "a lie",
            "os": {"name": "debian", "version": "12.4", "kernel": "6.1.112-1-amd64"},
            "os.family": "linux",
            "cpus": 8,
            "memory": 16_777_216_u64,
            "huge": u64::MAX,
            "below": i64::MIN,
            "load": 1.25,
            "tiny": 1e-7,
            "wide": 1e21,
            "virtual": true,
            "nothing": null,
            "none": [],
            "map": {},
            "addresses": ["192.0.2.7", "2001:db8::7"],
            "ports": [22, 443],
            "mixed": [null, {"a": 1}, [5], "x"],
            "name": "someone else",
            "role": "root",
        }),
    }
}

fn check(rows: &[(&str, bool)]) {
    let node = node();
    for (source, expected) in rows {
        let predicate = match Predicate::parse(source) {
            Ok(predicate) => predicate,
            Err(error) => panic!("{}", error.render(source)),
        };
        assert_eq!(predicate.matches(&node), *expected, "{source}");
        let again = Predicate::parse(predicate.text()).expect("the canonical form parses");
        assert_eq!(again, predicate, "{source}");
        assert_eq!(again.text(), predicate.text(), "{source}");
        assert_eq!(again.matches(&node), *expected, "{source}");
        assert_eq!(predicate.explain(&node).matches, *expected, "{source}");
    }
}

#[test]
fn joining() {
    check(&[
        ("*", true),
        ("not *", false),
        ("not not *", true),
        ("not(not(*))", true),
        ("* and not *", false),
        ("* or not *", true),
        // `not` before `and` before `or`.
        ("not * and not *", false),
        ("not * or *", true),
        ("* or * and not *", true),
        ("(* or *) and not *", false),
        ("not (* and not *)", true),
        ("role=web and zone=gva2 and not name=web-0*", false),
        (" \t\n(role=web\r\n)and(zone=gva2)", true),
    ]);
}

#[test]
fn nodes_and_globs() {
    check(&[
        ("web-07", true),
        ("\"web-07\"", true),
        ("'web-07'", true),
        ("web-0", false),
        ("web-0*", true),
        ("*-07", true),
        ("*eb*0*", true),
        ("**", true),
        ("web-*8", false),
        ("web-0?", true),
        ("web-07?", false),
        ("web-07*", true),
        ("web-[0-3][5-9]", true),
        ("web-[!1]7", true),
        ("web-[^0]7", false),
        ("[a-z]eb-[089]7", true),
        ("web-[0-]7", true),
        ("WEB-07", false),
        ("name=web-07", true),
        ("name=web-0*", true),
        ("name=\"web-0*\"", false),
        ("name!=web-0*", false),
        ("name=*", true),
        ("zone=gva*", true),
        ("zone=*", true),
        ("nowhere=*", false),
        ("star=a*b", true),
        ("star=\"a*b\"", true),
        ("star=a[*]b", true),
        ("star=a[*]?", true),
        ("zone=gva[*]", false),
        ("empty=*", true),
        ("empty=?", false),
        ("accent=é??", true),
        ("accent=[à-ü]*", true),
        ("cpus=*", true),
        ("cpus=[0-9]", true),
        ("virtual=t*", true),
        ("wide=1000*", true),
        ("wide=*e*", false),
    ]);
}

#[test]
fn equality_and_absence() {
    check(&[
        ("zone=gva2", true),
        ("zone = gva2", true),
        ("zone=\"gva2\"", true),
        ("zone=dk2", false),
        ("zone!=dk2", true),
        ("zone!=gva2", false),
        // The label wins over the fact of the same name.
        ("zone='a lie'", false),
        // Absent: false, and `!=` is `not =`.
        ("nowhere=x", false),
        ("nowhere!=x", true),
        ("not nowhere=x", true),
        ("not nowhere!=x", false),
        ("nowhere<x", false),
        ("nowhere>=x", false),
        ("nowhere=~''", false),
        ("nowhere in [x]", false),
        ("nothing=null", false),
        ("nothing!=null", true),
        ("map=x", false),
        ("os=debian", false),
        // Reserved names reach no fact.
        ("name='someone else'", false),
        ("role=root", false),
        // Quoted names and values.
        ("'disk of /var'='big one'", true),
        ("\"disk of /var\" = big*", true),
        ("word=\"and\"", true),
        ("empty=\"\"", true),
        ("empty!=''", false),
        ("quotes='a\\'b\"c\\\\d\\n'", true),
        ("quotes=\"a'b\\\"c\\\\d\\u{a}\"", true),
        ("capital=web", false),
        ("capital=Web", true),
        ("accent=é日本", true),
        ("virtual=true", true),
        ("virtual!=false", true),
    ]);
}

#[test]
fn having() {
    check(&[
        ("has zone", true),
        ("has empty", true),
        ("has nowhere", false),
        ("not has nowhere", true),
        ("has os", true),
        ("has os.version", true),
        ("has os.family", true),
        ("has os.nothing", false),
        ("has nothing", false),
        ("has none", false),
        ("has map", true),
        ("has virtual", true),
        ("has role", true),
        ("has name", true),
        ("has 'disk of /var'", true),
        ("has ports.0", false),
    ]);
    let bare = Node {
        name: "n",
        roles: vec![],
        labels: BTreeMap::new(),
        facts: Value::Null,
    };
    let holds = |text| Predicate::parse(text).expect("right").matches(&bare);
    assert!(!holds("has role"));
    assert!(!holds("role=*"));
    assert!(holds("role!=web"));
    assert!(holds("has name"));
}

#[test]
fn several_values() {
    check(&[
        ("role=web", true),
        ("role=cache", true),
        ("role=web and role=cache", true),
        ("role=db", false),
        ("role!=web", false),
        ("role!=db", true),
        ("role=c*", true),
        ("role=~ch", true),
        ("role in [db, cache]", true),
        ("role in [db, lb]", false),
        ("role > v", true),
        ("role > x", false),
        ("addresses=192.0.2.*", true),
        ("addresses=192.0.2.7", true),
        ("addresses=2001:db8::7", true),
        ("addresses!=192.0.2.7", false),
        ("ports=443", true),
        ("ports > 400", true),
        ("ports > 500", false),
        ("ports < 30 and ports > 400", true),
        ("mixed=x", true),
        ("mixed=5", false),
        ("none=x", false),
        ("none!=x", true),
    ]);
}

#[test]
fn lists() {
    check(&[
        ("zone in [gva2, dk2]", true),
        ("zone in [gva2]", true),
        ("zone in[dk2,zrh]", false),
        ("zone in [ dk2 , gv* ]", true),
        ("zone in [dk2, \"gv*\"]", false),
        ("zone in [dk[0-9], gva[0-9]]", true),
        ("not zone in [gva2, dk2]", false),
        ("cpus in [4, 8.0]", true),
        ("word in [\"and\", \"or\"]", true),
        ("empty in [\"\"]", true),
        ("name in [web-06, web-07]", true),
    ]);
}

#[test]
fn numbers() {
    check(&[
        ("cpus=8", true),
        ("cpus=8.0", true),
        ("cpus=08", true),
        ("cpus=+8", true),
        ("cpus=\"8\"", true),
        ("cpus > 10", false),
        ("cpus < 10", true),
        ("cpus >= 8 and cpus <= 8", true),
        ("cpus > 8 or cpus < 8", false),
        ("cpus > -1", true),
        ("memory > 9000000", true),
        ("load < 1.5", true),
        ("load < 1.3", true),
        ("load > 1.249999999999999999999", true),
        ("load=1.250", true),
        ("tiny=0.0000001", true),
        ("tiny > 0", true),
        ("wide=1000000000000000000000", true),
        ("wide > 999999999999999999999", true),
        // Beyond what a double can tell apart.
        ("huge=18446744073709551615", true),
        ("huge=18446744073709551616", false),
        ("huge > 18446744073709551614", true),
        ("big > 18446744073709551616", true),
        ("big=18446744073709551617", true),
        ("below=-9223372036854775808", true),
        ("below < -9223372036854775807", true),
        // Text that is a number.
        ("rack=7", true),
        ("rack < 10", true),
        ("offset < -1.25", true),
        ("offset > -1.75", true),
        ("offset=-1.50", true),
        ("offset < 0", true),
        // No exponents, no units: text.
        ("cpus=8e0", false),
        ("cpus=.8", false),
        ("cpus < lots", true),
    ]);
}

#[test]
fn versions() {
    check(&[
        ("release > 1.9", true),
        ("release > 1.09", true),
        ("release < 1.11", true),
        ("release=1.10", true),
        ("release=1.1", false),
        ("release=1.10.0", true),
        ("release < 1.10.1", true),
        ("release > 1", true),
        ("release < 2", true),
        ("os.version >= 12", true),
        ("os.version >= 12.10", false),
        ("os.version=12.4.0.0", true),
        ("os.kernel >= 6.1.90", true),
        ("os.kernel < 6.2", true),
        ("os.kernel > 6.1.112", true),
        ("os.kernel=6.1.112-1-amd64", true),
        ("os.kernel < 6.1.112-10-amd64", true),
        ("package < 1.2.3", true),
        ("package > 1.2.3~rc1", true),
        ("package > 1.2.3~beta9", true),
        ("package > 1.2.2", true),
        ("tag=v1.10", true),
        ("tag > v1.9", true),
        // Without the `v` it is another kind of thing: text.
        ("tag=1.10", false),
        ("addresses < 192.0.2.10", true),
        // A JSON number against a version.
        ("load > 1.3.0", true),
        ("load > 1.24.9", true),
        // Names are never versions or numbers.
        ("name=web-7", false),
    ]);
}

#[test]
fn text() {
    check(&[
        ("zone > gva1", true),
        ("zone < gva10", false),
        ("zone >= gva2", true),
        ("since >= 2024-11-01", true),
        ("since < 2024-12-01", true),
        ("since > 2024", true),
        ("capital < a", true),
        ("empty < a", true),
        ("virtual > false", true),
    ]);
}

#[test]
fn regular_expressions() {
    check(&[
        ("name =~ ^web-[0-9]+$", true),
        ("name =~ \"^web-\\d+$\"", true),
        ("name =~ '07'", true),
        ("name=~07", true),
        ("name =~ ^7", false),
        ("name =~ (web|db)-0", true),
        ("(name =~ (web|db)-0)", true),
        ("(name =~ ^web) and role=web", true),
        ("name =~ WEB", false),
        ("name =~ (?i)WEB", true),
        ("not name =~ db", true),
        ("zone =~ \"\"", true),
        ("cpus =~ ^8$", true),
        ("ports =~ ^44", true),
        ("virtual =~ ue", true),
        ("quotes =~ '\\'b\"'", true),
        ("quotes =~ \"'b\\\"c\\\\d\"", true),
        ("quotes =~ a'b\\\"c", true),
        ("'disk of /var' =~ 'big one'", true),
        ("accent =~ ^é日.$", true),
        // Would never end with a backtracking engine.
        ("name =~ \"^(([a-z])+.)+[A-Z]([a-z])+$\"", false),
    ]);
}

#[test]
fn keywords_are_words_elsewhere() {
    check(&[
        ("\"not\"=x", false),
        ("has \"has\"", false),
        ("\"in\" in [\"in\"]", false),
        (
            "android=x or notable=x or inn=x or hash=x or order=x",
            false,
        ),
        ("and*", false),
        ("[a]nd", false),
        ("AND", false),
    ]);
}

#[test]
fn canonical_form() {
    for (source, text) in [
        ("  role = web ", "role=web"),
        ("((role=web))", "role=web"),
        ("a=1 and(b=2 or c=3)", "a=1 and (b=2 or c=3)"),
        ("(a=1 and b=2)or c=3", "a=1 and b=2 or c=3"),
        ("(a and b) and c", "(a and b) and c"),
        ("not(a or b)", "not (a or b)"),
        ("not(not(a))", "not not a"),
        ("a in[b,\"c\",'d e']", "a in [b, c, \"d e\"]"),
        ("'a'=\"b\"", "a=b"),
        ("a='x*'", "a=\"x*\""),
        ("a='\"'", "a='\"'"),
        ("a='\\'\"'", "a=\"'\\\"\""),
        ("a='\\t\\u{202E}\\u{a0}'", "a=\"\\t\\u{202e}\\u{a0}\""),
        ("a<1", "a < 1"),
        ("name=~^web", "name =~ \"^web\""),
        ("name=~'\"'", "name =~ '\"'"),
        ("'role:web'", "\"role:web\""),
        ("'and'", "\"and\""),
        ("''", "\"\""),
        ("'a~'=b~c", "\"a~\"=b~c"),
    ] {
        let predicate = Predicate::parse(source).expect("right");
        assert_eq!(predicate.text(), text);
        assert_eq!(predicate.to_string(), text);
        assert_eq!(predicate.source(), source);
        assert_eq!(Predicate::parse(text).expect("right"), predicate);
    }
    assert_eq!(Predicate::all(), Predicate::parse("*").expect("right"));
    assert_ne!(
        Predicate::parse("a=x*").expect("right"),
        Predicate::parse("a='x*'").expect("right")
    );
}

#[test]
fn json_is_a_string() {
    let predicate: Predicate = serde_json::from_str("\"role = web\"").expect("right");
    assert_eq!(
        serde_json::to_string(&predicate).expect("a string"),
        "\"role=web\""
    );
    assert!(serde_json::from_str::<Predicate>("\"(\"").is_err());
    assert!(serde_json::from_str::<Predicate>("7").is_err());
}

#[test]
fn names_and_literals() {
    let predicate = Predicate::parse(
        "web-01 and has rack and zone=x or not (\"a b\" in [1] or name=web-02 or name!=web-03) \
         or name in [web-04, web-1*] and not web-05 or 'web-06' or role=~x",
    )
    .expect("right");
    let names: Vec<&str> = predicate.names().map(|(name, _)| name).collect();
    assert_eq!(names, ["zone", "a b", "name", "name", "name", "role"]);
    let written: Vec<&str> = predicate
        .names()
        .map(|(_, span)| &predicate.source()[span.start..span.end])
        .collect();
    assert_eq!(written, ["zone", "\"a b\"", "name", "name", "name", "role"]);
    let literal: Vec<&str> = predicate.literal_names().collect();
    assert_eq!(literal, ["web-01", "web-03", "web-04", "web-06"]);
}

#[test]
fn dotted_facts() {
    let facts =
        json!({"a": {"b": {"c": 1}, "b.c": 2, "d.e": {"f": 3}}, "a.b": {"x": 4}, "a.b.c": 5});
    for (path, expected) in [
        ("a.b.c", Some(5)),
        ("a.b.x", Some(4)),
        ("a.d.e.f", Some(3)),
        ("a.b.y", None),
        ("a..b", None),
        ("", None),
        (".", None),
    ] {
        let found = fact_at(&facts, path).and_then(Value::as_i64);
        assert_eq!(found, expected, "{path}");
    }
}
