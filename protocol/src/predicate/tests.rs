//! Printing and parsing are each other's inverse on the tree itself; the language as a whole is
//! tested from outside, in `tests/`.

use proptest::prelude::*;

use super::ast::{Attribute, Expr, Expression, Leaf, Name, Order, Pattern, Place, Test};
use super::glob::Glob;
use super::value::{Literal, Scalar};
use super::{MAX_LEN, Predicate, Span};

const NOWHERE: Place = Place(Span { start: 0, end: 0 });

fn literal(text: impl Into<Box<str>>) -> Literal {
    Literal::new(text, Span::new(0, 0))
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9._:/@+%~-]{0,8}",
        proptest::sample::select(vec![
            "and",
            "or",
            "not",
            "in",
            "has",
            "name",
            "role",
            "*",
            "~",
            "a~",
            "a:b",
            "\\",
            "'",
            "\"",
            "'\"",
            "\u{202e}",
            "\u{0}",
            "\n",
            " ",
            "[",
            "os.version",
            "-1",
            "1.10",
            "é日本",
        ])
        .prop_map(str::to_owned),
        proptest::collection::vec(any::<char>(), 0..6).prop_map(String::from_iter),
    ]
}

fn glob() -> impl Strategy<Value = Pattern> {
    proptest::collection::vec(
        proptest::sample::select(vec![
            "*", "?", "[a-z]", "[!0-9]", "[^x]", "[*?]", "[-]", "a", "web", "-", ".", "0", "é",
        ]),
        1..6,
    )
    .prop_map(|parts| parts.concat())
    // A lone `*` is everything where it stands alone, and a keyword before `[` is a keyword.
    .prop_filter("a pattern", |text| {
        text.contains(['*', '?', '[']) && text != "*"
    })
    .prop_map(|text| Pattern::Glob(Glob::parse(&text).expect("made of sound parts")))
}

fn pattern() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        any_text().prop_map(|text| Pattern::Exact(literal(text))),
        glob()
    ]
}

fn name() -> impl Strategy<Value = Name> {
    any_text().prop_map(|text| Name {
        place: NOWHERE,
        attribute: Attribute::new(&text),
    })
}

fn regex() -> impl Strategy<Value = Expression> {
    // What the parser keeps: a quote never has a backslash of its own.
    proptest::collection::vec(
        proptest::sample::select(vec![
            "a",
            "(b|c)",
            "\\d+",
            "\\\\",
            "'",
            "\"",
            " ",
            "[^x]*",
            "^",
            "$",
            "\\)",
            "\\x{202e}",
            "é",
        ]),
        0..6,
    )
    .prop_map(|parts| Expression(regex::Regex::new(&parts.concat()).expect("made of sound parts")))
}

fn test() -> impl Strategy<Value = Test> {
    let order = proptest::sample::select(vec![
        Order::Less,
        Order::LessOrEqual,
        Order::Greater,
        Order::GreaterOrEqual,
    ]);
    prop_oneof![
        Just(Test::Everything),
        pattern().prop_map(Test::Node),
        name().prop_map(Test::Has),
        (name(), pattern(), any::<bool>()).prop_map(|(name, pattern, negated)| Test::Equal {
            name,
            pattern,
            negated
        }),
        (name(), order, any_text()).prop_map(|(name, order, value)| Test::Order {
            name,
            order,
            value: literal(value)
        }),
        (name(), regex()).prop_map(|(name, regex)| Test::Matches { name, regex }),
        (name(), proptest::collection::vec(pattern(), 1..4))
            .prop_map(|(name, patterns)| Test::OneOf { name, patterns }),
    ]
}

fn expr() -> impl Strategy<Value = Expr> {
    let leaf = test().prop_map(|test| {
        Expr::Leaf(Leaf {
            place: NOWHERE,
            test,
        })
    });
    leaf.prop_recursive(5, 20, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::And),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::Or),
            inner.prop_map(|expr| Expr::Not(Box::new(expr))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn what_is_printed_parses_to_the_same_tree(expr in expr()) {
        let text = expr.to_string();
        prop_assume!(text.len() <= MAX_LEN && text.matches("=~").count() <= super::MAX_REGEXES);
        prop_assert!(!text.chars().any(super::shown::is_hidden), "{text:?}");
        match Predicate::parse(&text) {
            Ok(predicate) => prop_assert_eq!(predicate.expr, expr, "{}", text),
            Err(error) => prop_assert!(false, "{}", error.render(&text)),
        }
    }
}

#[test]
fn comparing_is_an_order() {
    // Each is smaller than the next, as text of the one side and constant of the other.
    let ladders: [&[&str]; 6] = [
        &["-10", "-9.5", "-9.25", "-1", "-0.5"],
        &[
            "-1",
            "0",
            "1",
            "2",
            "10",
            "11",
            "100000000000000000000000000000000",
        ],
        &[
            "0", "0.9", "0.10", "1", "1.2~~", "1.2~rc1", "1.2", "1.2+a", "1.2-1", "1.2-1a",
            "1.2-2", "1.2-10", "1.2.0.1", "1.3", "1.10",
        ],
        &["v0.9", "v1.2-a", "v1.3", "v1.10"],
        &["", "Zürich", "a", "aa", "b", "é"],
        &["2024-11-05", "2024-11-10", "2024-12-01"],
    ];
    for ladder in ladders {
        for (i, low) in ladder.iter().enumerate() {
            for (j, high) in ladder.iter().enumerate() {
                let order = literal(*high).compare(Scalar::Text(low));
                assert_eq!(order, i.cmp(&j), "{low} against {high}");
            }
        }
    }
    for (a, b) in [
        ("1", "01"),
        ("1", "1.0"),
        ("0", "-0"),
        ("+1", "1"),
        ("1.2-01", "1.2-1"),
        ("1.10", "1.010.0"),
        ("-1.50", "-1.5"),
    ] {
        assert!(literal(b).compare(Scalar::Text(a)).is_eq(), "{a} {b}");
        assert!(literal(a).compare(Scalar::Text(b)).is_eq(), "{a} {b}");
    }
    for (a, b) in [
        ("1e5", "100000"),
        ("1.", "1"),
        (".5", "0.5"),
        ("0x10", "16"),
        ("v1.2", "1.2"),
        ("1-0", "1"),
        ("١", "1"),
        ("1..2", "1.0.2"),
        ("", "0"),
    ] {
        assert!(!literal(b).compare(Scalar::Text(a)).is_eq(), "{a} {b}");
    }
}

#[test]
fn a_number_fact_is_read_in_full() {
    for number in [f64::MIN_POSITIVE, 5e-324, f64::MAX, f64::MIN, -0.0, 0.1] {
        let json = serde_json::Number::from_f64(number).expect("finite");
        let text = format!("{number}");
        assert!(
            literal(text.as_str())
                .compare(Scalar::Number(&json))
                .is_eq()
        );
        Scalar::Number(&json).with_text(|seen| assert_eq!(seen, text));
    }
}

#[test]
fn a_pattern_of_many_stars_ends() {
    let glob = Glob::parse(&"a*".repeat(1000)).expect("sound");
    assert!(!glob.matches(&("a".repeat(999) + "b")));
    assert!(glob.matches(&("ab".repeat(1000))));
}
