//! What people read when a predicate is wrong, and why a node is in a set or is not.

use std::fmt::Write as _;

use muster_protocol::predicate::{
    Attributes, MAX_DEPTH, MAX_LEN, Predicate, PredicateError, PredicateErrorKind, Span, render,
};
use serde_json::{Value, json};

fn error(source: &str) -> PredicateError {
    match Predicate::parse(source) {
        Ok(predicate) => panic!("{source:?} parses as {predicate}"),
        Err(error) => error,
    }
}

/// Every source with the error it gives, as a terminal shows it.
fn gallery(sources: &[&str]) -> String {
    sources.iter().fold(String::new(), |mut out, source| {
        writeln!(out, "{}\n", error(source).render(source)).expect("a String takes all");
        out
    })
}

#[test]
fn structure() {
    insta::assert_snapshot!(gallery(&[
        "",
        "  \n ",
        "role=web and (zone=gva2",
        "(",
        "role=web)",
        "()",
        "a=1 and ( )",
        "role=web and",
        "(a=1 and)",
        "role=web or or a=1",
        "and a=1",
        "not",
        "not and a=1",
        "role web",
        "role=web zone=x",
        "role=web 'x'",
        "role=web (a=1)",
        "a=b=c",
        "1<a<3",
        "* *",
    ]));
}

#[test]
fn habits_from_elsewhere() {
    insta::assert_snapshot!(gallery(&[
        "role==web",
        "a=>1",
        "a=<1",
        "a<>1",
        "a!~b",
        "a=!b",
        "a<=>b",
        "a~=b",
        "!role=web",
        "a=1 && b=2",
        "a=1 || b=2",
        "a=1 & b=2",
        "a=1, b=2",
        "role=web AND zone=x",
        "NOT role=web",
        "role=web and Not a=1",
        "role IN [a]",
        "HAS zone",
        "zone not in [a, b]",
        "role:web",
        "not name~web and x",
        "name=“web”",
        "a=web—01",
        "name=web-{01..40}",
        "path=C:\\x",
    ]));
}

#[test]
fn values_and_names() {
    insta::assert_snapshot!(gallery(&[
        "=web",
        "!= web",
        "role=",
        "(role=)",
        "role= and zone=x",
        "has",
        "has and",
        "has *",
        "ro*=web",
        "cpus > web-*",
        "a='x",
        "a=\"x\\",
        "a='\\d'",
        "a='\\u{110000}'",
        "a='\\u12'",
        "a='x\ny'",
        "zone in",
        "zone in a",
        "zone in []",
        "zone in [a b]",
        "zone in [a,]",
        "zone in [,a]",
        "zone in [a",
        "zone in [a, b and x=1",
        "(zone in [a)",
        "zone=[a, b]",
        "name=web-[]",
        "name=web-[9-0]",
        "name=web-[!]",
    ]));
}

#[test]
fn regular_expressions() {
    let many = vec!["a=~x"; 17].join(" or ");
    insta::assert_snapshot!(gallery(&[
        "name=~",
        "name =~ (",
        "name =~ \"(a\"",
        "name =~ \"a**\\\"(\"",
        "name =~ \"[z-a]\"",
        "name =~ (a b)",
        "name =~ '\\w{1000}'",
        "name =~ '(((((x{99}){99}){99}){99}){99})'",
        &many,
    ]));
}

#[test]
fn hidden_and_wide_characters() {
    insta::assert_snapshot!(gallery(&[
        "name=web\u{202e}01",
        "name=\"a\u{200b}\"",
        "a=1\u{a0}and b=2",
        "a=\u{1b}[31m",
        "日本 == x",
        "zone=\"日本\" e\u{301}",
        "a=1 and\n  b==2 and\n  c=3",
        "\ta==1",
    ]));
}

#[test]
fn limits() {
    let deep = format!("{}a{}", "(".repeat(65), ")".repeat(65));
    let nots = format!("{}a", "not ".repeat(65));
    let long = format!("role=web and {}", "x".repeat(5000));
    let grows = format!("a in [{}b]", "b,".repeat(2000));
    insta::assert_snapshot!(gallery(&[&deep, &nots, &long, &grows]));

    let fits = format!("{}a{}", "(".repeat(MAX_DEPTH), ")".repeat(MAX_DEPTH));
    assert_eq!(Predicate::parse(&fits).expect("64 levels").text(), "a");
    let fits = format!("{}a", "not (".repeat(32)) + &")".repeat(32);
    assert!(Predicate::parse(&fits).is_ok());
    let fits = "x".repeat(MAX_LEN);
    assert!(Predicate::parse(&fits).is_ok());
    // Depth is of nesting alone: a chain may be as long as the text.
    let chain = vec!["a"; 800].join(" or ");
    assert!(Predicate::parse(&chain).is_ok());

    for unit in [
        "(", "not ", "not(", "((a or ", "has ", "[", "'", "a in [", "a=~(",
    ] {
        let text = unit.repeat(1_000_000 / unit.len());
        assert!(matches!(
            error(&text).kind(),
            PredicateErrorKind::TooLong { .. }
        ));
        let text = unit.repeat(MAX_LEN / unit.len());
        error(&text).render(&text);
    }
}

#[test]
fn an_error_is_data() {
    let source = "role==web";
    insta::assert_snapshot!(
        serde_json::to_string_pretty(&error(source)).expect("an error is plain data")
    );
    assert_eq!(
        error(source).to_string(),
        "there is no operator `==` (at byte 4): write `=`"
    );
    let json = serde_json::from_str::<Predicate>("\"role==web\"").expect_err("refused");
    assert!(json.to_string().contains("there is no operator `==`"));
}

#[test]
fn any_source_renders() {
    for source in ["", "é", "日本語\n\u{1b}[2J", &"x".repeat(10_000)] {
        for start in [0, 1, 2, 5, 9_999, usize::MAX] {
            for end in [0, 1, 3, 10_000, usize::MAX] {
                let out = render("m", source, Span { start, end }, Some("h\u{7}"));
                assert!(!out.contains(['\u{1b}', '\u{7}']), "{out:?}");
                assert!(out.lines().all(|line| line.chars().count() < 250));
            }
        }
    }
}

fn unknown(source: &str, there_are: &[&str]) -> String {
    let candidates: Vec<String> = there_are.iter().map(|name| (*name).to_owned()).collect();
    let predicate = Predicate::parse(source).expect("the predicate is right");
    match predicate.check_known(&|name| there_are.contains(&name), &candidates) {
        Ok(()) => "all known".to_owned(),
        Err(error) => error.render(),
    }
}

#[test]
fn unknown_names() {
    let there_are = ["zone", "rack", "os.version", "os.name", "memory"];
    let sources = [
        "role=web and zoen=gva2",
        "not zoen=zrh",
        "Zone=gva2",
        "version > 12",
        "rloe=web",
        "\"zone \"=x",
        "colour=blue",
        "\"col\\u{202e}our\"=blue",
        "has zoen and has nothing",
        "role=web and name=x and zone in [a] and os.version>1 and memory=~x",
        "a=1 or os.nmae=debian",
    ];
    let out: Vec<String> = sources
        .iter()
        .map(|source| unknown(source, &there_are))
        .collect();
    insta::assert_snapshot!(out.join("\n\n"));
}

#[test]
fn unknown_nodes() {
    let nodes = ["web-01", "web-02", "db-01"];
    let shown = |source: &str| {
        let predicate = Predicate::parse(source).expect("the predicate is right");
        match predicate.check_nodes(&|name| nodes.contains(&name), || nodes.into_iter()) {
            Ok(()) => "all known".to_owned(),
            Err(error) => error.render(),
        }
    };
    let out: Vec<String> = [
        "not web-0l",
        "role=web and not name=web-03",
        "name!=\"wbe-01\"",
        "web-01 or name in [web-01, web-0]",
        "router",
        "web-01 and not (web-9* or name=lb-* or name in [db-01, x*]) and name =~ nobody",
        "zone=web-03 and has web-03",
    ]
    .iter()
    .map(|source| shown(source))
    .collect();
    insta::assert_snapshot!(out.join("\n\n"));
}

struct Web07;

impl Attributes for Web07 {
    fn name(&self) -> &str {
        "web-07"
    }

    fn any_role(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        ["web", "cache"].into_iter().any(test)
    }

    fn label(&self, key: &str) -> Option<&str> {
        match key {
            "zone" => Some("gva2"),
            "odd" => Some("a\u{1b}[31mb"),
            _ => None,
        }
    }

    fn fact(&self, path: &str) -> Option<&Value> {
        static FACTS: std::sync::LazyLock<Value> = std::sync::LazyLock::new(
            || json!({"zone": "a lie", "cpus": 8, "addresses": ["192.0.2.7", "2001:db8::7"], "os": {"name": "debian"}}),
        );
        muster_protocol::predicate::fact_at(&FACTS, path)
    }
}

#[test]
fn explanations() {
    let sources = [
        "role=web and zone=gva2 and cpus >= 4",
        "role=db and zone=gva2 and cpus > 16",
        "role=db or zone=gva2 or cpus=8 or web-*",
        "role=db or rack=r1",
        "not (zone=gva2 and rack=r1)",
        "not (role=db or zone!=gva2)",
        "* and os=debian and addresses in [192.0.2.*]",
        "has rack or os.name=~'^deb' and odd=x",
    ];
    let out: Vec<String> = sources
        .iter()
        .map(|source| {
            let predicate = Predicate::parse(source).expect("the predicate is right");
            let explanation = predicate.explain(&Web07);
            assert_eq!(explanation.matches, predicate.matches(&Web07));
            explanation.to_string()
        })
        .collect();
    insta::assert_snapshot!(out.join("\n\n"));

    let explanation = Predicate::parse("zone=x or role=web")
        .expect("the predicate is right")
        .explain(&Web07);
    let json = serde_json::to_string_pretty(&explanation).expect("plain data");
    let back = serde_json::from_str(&json).expect("it reads what it writes");
    assert_eq!(explanation, back);
    insta::assert_snapshot!("explanation_as_json", json);
}
