//! Evaluation against a second, naive evaluator that shares nothing with the first, and texts that
//! no one would write.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use muster_protocol::predicate::{Attributes, Predicate, fact_at};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

// ---- nodes -------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct Node {
    name: String,
    roles: Vec<String>,
    labels: BTreeMap<String, String>,
    facts: Value,
}

impl Attributes for Node {
    fn name(&self) -> &str {
        &self.name
    }

    fn any_role(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.roles.iter().any(|role| test(role))
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    fn fact(&self, path: &str) -> Option<&Value> {
        fact_at(&self.facts, path)
    }
}

const TEXTS: [&str; 34] = [
    "web",
    "web-01",
    "web-02",
    "gva2",
    "dk2",
    "1",
    "01",
    "10",
    "9",
    "-3",
    "-2.5",
    "+1",
    "1.10",
    "1.9",
    "1.9.0",
    "1.5",
    "0.30",
    "1.2-1",
    "1.2~rc1",
    "1.2",
    "v1.2",
    "v1.10",
    "6.1.0-18-amd64",
    "6.1.0-9",
    "true",
    "",
    "x y",
    "and",
    "a*b",
    "18446744073709551616",
    "18446744073709551615",
    "2024-11-05",
    "é",
    "0.1",
];
const GLOBS: [&str; 12] = [
    "web*", "*", "web-0?", "*1*", "[a-w]eb*", "[!w]*", "1.*", "??", "*.*", "[0-9]", "a[*]b", "t*e",
];
const REGEXES: [&str; 8] = ["^web", "0", "^$", "[.]1", "(a|b)", "^-?[0-9]+$", "e", "w.b"];
const NAMES: [&str; 8] = [
    "name",
    "role",
    "zone",
    "os.version",
    "cpus",
    "a b",
    "deep.er.x",
    "not",
];

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => select(TEXTS.as_slice()).prop_map(|text| json!(text)),
        1 => select(vec![json!(1), json!(9), json!(10), json!(-3), json!(1.5), json!(0.1), json!(1e21), json!(u64::MAX), json!(1.10)]),
        1 => any::<bool>().prop_map(|flag| json!(flag)),
        1 => Just(Value::Null),
    ]
}

fn fact() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => scalar(),
        1 => proptest::collection::vec(scalar(), 0..3).prop_map(Value::Array),
        1 => Just(json!({"x": 1})),
        1 => Just(json!([[1], {"x": "web"}])),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let label = (select(NAMES.as_slice()), select(TEXTS.as_slice()));
    (
        select(vec!["web-01", "web-02", "1", "1.10", "gva2"]),
        proptest::collection::vec(select(TEXTS.as_slice()), 0..3),
        proptest::collection::vec(label, 0..3),
        proptest::collection::vec(
            (select(vec!["zone", "cpus", "a b", "not", "name"]), fact()),
            0..4,
        ),
        proptest::option::of(fact()),
        proptest::option::of(fact()),
    )
        .prop_map(|(name, roles, labels, facts, version, deep)| {
            let mut map = serde_json::Map::new();
            map.extend(facts.into_iter().map(|(k, v)| (k.to_owned(), v)));
            map.extend(version.map(|v| ("os".to_owned(), json!({"version": v}))));
            map.extend(deep.map(|v| ("deep".to_owned(), json!({"er": {"x": v}}))));
            Node {
                name: name.to_owned(),
                roles: roles.into_iter().map(str::to_owned).collect(),
                labels: labels
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .collect(),
                facts: Value::Object(map),
            }
        })
}

// ---- a predicate as a model, and its text ------------------------------------------------------

#[derive(Clone, Debug)]
enum Wanted {
    Text(&'static str),
    Glob(&'static str),
}

#[derive(Clone, Debug)]
enum Model {
    All,
    Node(Wanted),
    Has(&'static str),
    Is(&'static str, Wanted),
    IsNot(&'static str, Wanted),
    Order(&'static str, &'static str, &'static str),
    Regex(&'static str, &'static str),
    In(&'static str, Vec<Wanted>),
    Not(Box<Model>),
    And(Box<Model>, Box<Model>),
    Or(Box<Model>, Box<Model>),
}

fn wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![
        select(TEXTS.as_slice()).prop_map(Wanted::Text),
        select(GLOBS.as_slice()).prop_map(Wanted::Glob),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let name = || select(NAMES.as_slice());
    let leaf = prop_oneof![
        1 => Just(Model::All),
        1 => wanted().prop_map(Model::Node),
        1 => name().prop_map(Model::Has),
        3 => (name(), wanted()).prop_map(|(n, w)| Model::Is(n, w)),
        2 => (name(), wanted()).prop_map(|(n, w)| Model::IsNot(n, w)),
        4 => (name(), select(vec!["<", "<=", ">", ">="]), select(TEXTS.as_slice()))
            .prop_map(|(n, o, t)| Model::Order(n, o, t)),
        1 => (name(), select(REGEXES.as_slice())).prop_map(|(n, r)| Model::Regex(n, r)),
        1 => (name(), proptest::collection::vec(wanted(), 1..4)).prop_map(|(n, w)| Model::In(n, w)),
    ];
    leaf.prop_recursive(4, 12, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|m| Model::Not(Box::new(m))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Model::And(a.into(), b.into())),
            (inner.clone(), inner).prop_map(|(a, b)| Model::Or(a.into(), b.into())),
        ]
    })
}

/// Writes a model with blanks, quotes and needless parentheses as chance has it.
struct Writer {
    out: String,
    chance: u64,
}

impl Writer {
    fn flip(&mut self) -> bool {
        // A linear congruential generator: the seed is proptest's, so a failure repeats.
        self.chance = self
            .chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.chance >> 63 == 1
    }

    fn blank(&mut self) {
        while self.flip() {
            let blank = if self.flip() { ' ' } else { '\t' };
            self.out.push(blank);
        }
    }

    fn text(&mut self, text: &str) {
        let plain =
            !text.is_empty() && !["and", "not"].contains(&text) && !text.contains([' ', '*']);
        if plain && self.flip() {
            self.out.push_str(text);
        } else {
            let quote = if self.flip() { '"' } else { '\'' };
            let _ = write!(self.out, "{quote}{text}{quote}");
        }
    }

    fn wanted(&mut self, wanted: &Wanted) {
        match wanted {
            Wanted::Text(text) => self.text(text),
            Wanted::Glob(text) => self.out.push_str(text),
        }
    }

    fn operator(&mut self, operator: &str) {
        self.blank();
        self.out.push_str(operator);
        self.blank();
    }

    fn grouped(&mut self, model: &Model, needed: bool) {
        if needed || self.flip() {
            self.out.push('(');
            self.blank();
            self.model(model);
            self.blank();
            self.out.push(')');
        } else {
            self.model(model);
        }
    }

    fn model(&mut self, model: &Model) {
        match model {
            Model::All => self.out.push('*'),
            // Unquoted, a word with `~` is refused where a node's name is expected.
            Model::Node(Wanted::Text(text)) if text.contains('~') => {
                let _ = write!(self.out, "'{text}'");
            }
            Model::Node(wanted) => self.wanted(wanted),
            Model::Has(name) => {
                self.out.push_str("has ");
                self.text(name);
            }
            Model::Is(name, wanted) | Model::IsNot(name, wanted) => {
                self.text(name);
                self.operator(if matches!(model, Model::Is(..)) {
                    "="
                } else {
                    "!="
                });
                self.wanted(wanted);
            }
            Model::Order(name, order, text) => {
                self.text(name);
                self.operator(order);
                self.text(text);
            }
            Model::Regex(name, regex) => {
                self.text(name);
                self.operator("=~");
                if self.flip() {
                    let _ = write!(self.out, "'{regex}'");
                } else {
                    // Unquoted it ends at a blank.
                    let _ = write!(self.out, "{regex} ");
                }
            }
            Model::In(name, list) => {
                self.text(name);
                self.out.push_str(" in");
                self.blank();
                self.out.push('[');
                for (n, wanted) in list.iter().enumerate() {
                    if n > 0 {
                        self.operator(",");
                    }
                    self.wanted(wanted);
                }
                self.blank();
                self.out.push(']');
            }
            Model::Not(inner) => {
                self.out.push_str("not ");
                self.grouped(inner, matches!(**inner, Model::And(..) | Model::Or(..)));
            }
            Model::And(a, b) => {
                self.grouped(a, matches!(**a, Model::Or(..)));
                self.out.push_str(" and ");
                self.grouped(b, matches!(**b, Model::Or(..)));
            }
            Model::Or(a, b) => {
                self.grouped(a, false);
                self.out.push_str(" or ");
                self.grouped(b, false);
            }
        }
    }
}

fn written(model: &Model, chance: u64) -> String {
    let mut writer = Writer {
        out: String::new(),
        chance,
    };
    writer.model(model);
    writer.out
}

// ---- the naive evaluator -----------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Seen {
    Identifier(String),
    Text(String),
    Number(String),
}

impl Seen {
    fn text(&self) -> &str {
        match self {
            Seen::Identifier(text) | Seen::Text(text) | Seen::Number(text) => text,
        }
    }
}

/// Everything a node has under a name; `None` if it has nothing.
fn seen(node: &Node, name: &str) -> Option<Vec<Seen>> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(Seen::Text(text.clone())),
        Value::Bool(flag) => Some(Seen::Text(flag.to_string())),
        Value::Number(number) if number.is_f64() => {
            number.as_f64().map(|n| Seen::Number(n.to_string()))
        }
        Value::Number(number) => Some(Seen::Number(number.to_string())),
        _ => None,
    };
    if name == "name" {
        return Some(vec![Seen::Identifier(node.name.clone())]);
    }
    if name == "role" {
        let roles: Vec<Seen> = node.roles.iter().cloned().map(Seen::Identifier).collect();
        return (!roles.is_empty()).then_some(roles);
    }
    if let Some(label) = node.labels.get(name) {
        return Some(vec![Seen::Text(label.clone())]);
    }
    let mut fact = &node.facts;
    for key in name.split('.') {
        fact = fact.get(key)?;
    }
    match fact {
        Value::Null => None,
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => Some(items.iter().filter_map(scalar).collect()),
        other => Some(scalar(other).into_iter().collect()),
    }
}

/// A decimal number scaled by 10^20, for the sizes that occur here.
fn decimal(text: &str) -> Option<i128> {
    let pattern = regex::Regex::new(
        "^([+-]?)([0-9]{1,17}|1844674407370955161[56]|10{18,21})(?:[.]([0-9]{1,15}))?$",
    )
    .ok()?;
    let parts = pattern.captures(text)?;
    let whole: i128 = parts[2].parse().ok()?;
    let fraction = parts.get(3).map_or("", |part| part.as_str());
    let fraction: i128 = format!("{fraction:0<15}").parse().ok()?;
    let value = whole * 10_i128.pow(15) + fraction;
    Some(if &parts[1] == "-" { -value } else { value })
}

type Suffix = Vec<(Vec<i64>, u128)>;

/// Whether it has a `v`, its numbers without trailing zeros, and its suffix in comparable parts.
fn version(text: &str) -> Option<(bool, Vec<u128>, Suffix)> {
    let pattern = regex::Regex::new("^(v?)([0-9]+(?:[.][0-9]+)*)((?:[-+~].*)?)$").ok()?;
    let parts = pattern.captures(text)?;
    let (prefixed, suffix) = (!parts[1].is_empty(), &parts[3]);
    if (prefixed || !suffix.is_empty()) && !parts[2].contains('.') {
        return None;
    }
    let mut numbers: Vec<u128> = parts[2]
        .split('.')
        .map(|n| n.parse().ok())
        .collect::<Option<_>>()?;
    while numbers.last() == Some(&0) {
        numbers.pop();
    }
    let runs = regex::Regex::new("([^0-9]*)([0-9]*)").ok()?;
    let mut suffix: Suffix = runs
        .captures_iter(suffix)
        .filter(|run| !run[0].is_empty())
        .map(|run| {
            let mut weights: Vec<i64> = run[1]
                .chars()
                .map(|c| match c {
                    '~' => -1,
                    c if c.is_alphabetic() => c as i64,
                    c => 10_000_000 + c as i64,
                })
                .collect();
            weights.push(0);
            (weights, run[2].parse().unwrap_or(0))
        })
        .collect();
    // The end of a suffix weighs as an empty part with the number 0.
    suffix.resize(12, (vec![0], 0));
    Some((prefixed, numbers, suffix))
}

fn compare(seen: &Seen, wanted: &str) -> Ordering {
    let text = seen.text();
    let versions = || match (version(text), version(wanted)) {
        (Some(a), Some(b)) if a.0 == b.0 => Some(a.cmp(&b)),
        (Some(_), Some(_)) => Some(text.cmp(wanted)),
        _ => None,
    };
    let decimals = || Some(decimal(text)?.cmp(&decimal(wanted)?));
    match seen {
        Seen::Identifier(_) => None,
        Seen::Text(_) => versions().or_else(decimals),
        Seen::Number(_) => decimals().or_else(versions),
    }
    .unwrap_or_else(|| text.cmp(wanted))
}

fn fits(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['*', rest @ ..] => (0..=text.len()).any(|n| fits(rest, &text[n..])),
        ['?', rest @ ..] => !text.is_empty() && fits(rest, &text[1..]),
        ['[', rest @ ..] => {
            let end = rest
                .iter()
                .position(|c| *c == ']')
                .expect("a sound pattern");
            let (class, rest) = (&rest[..end], &rest[end + 1..]);
            let Some((c, text)) = text.split_first() else {
                return false;
            };
            let inside = match class {
                ['!', class @ ..] => !class.contains(c),
                [low, '-', high] => (low..=high).contains(&c),
                class => class.contains(c),
            };
            inside && fits(rest, text)
        }
        [wanted, rest @ ..] => text.first() == Some(wanted) && fits(rest, &text[1..]),
    }
}

fn is(seen: &Seen, wanted: &Wanted) -> bool {
    match wanted {
        Wanted::Text(text) => compare(seen, text) == Ordering::Equal,
        Wanted::Glob(glob) => {
            let glob: Vec<char> = glob.chars().collect();
            let text: Vec<char> = seen.text().chars().collect();
            fits(&glob, &text)
        }
    }
}

fn holds(model: &Model, node: &Node) -> bool {
    let any = |name: &str, test: &dyn Fn(&Seen) -> bool| {
        seen(node, name).unwrap_or_default().iter().any(test)
    };
    match model {
        Model::All => true,
        Model::Node(wanted) => is(&Seen::Identifier(node.name.clone()), wanted),
        Model::Has(name) => seen(node, name).is_some(),
        Model::Is(name, wanted) => any(name, &|seen| is(seen, wanted)),
        Model::IsNot(name, wanted) => !any(name, &|seen| is(seen, wanted)),
        Model::Order(name, order, text) => any(name, &|seen| {
            let side = compare(seen, text);
            match *order {
                "<" => side == Ordering::Less,
                ">" => side == Ordering::Greater,
                "<=" => side != Ordering::Greater,
                _ => side != Ordering::Less,
            }
        }),
        Model::Regex(name, regex) => {
            let regex = regex::Regex::new(regex).expect("a sound expression");
            any(name, &|seen| regex.is_match(seen.text()))
        }
        Model::In(name, list) => any(name, &|seen| list.iter().any(|wanted| is(seen, wanted))),
        Model::Not(inner) => !holds(inner, node),
        Model::And(a, b) => holds(a, node) & holds(b, node),
        Model::Or(a, b) => holds(a, node) | holds(b, node),
    }
}

// ---- properties --------------------------------------------------------------------------------

fn parsed(text: &str) -> Predicate {
    match Predicate::parse(text) {
        Ok(predicate) => predicate,
        Err(error) => panic!("{}", error.render(text)),
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(1500)
    }
}

/// Pieces of the language, in no order.
fn soup() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "(",
        ")",
        "[",
        "]",
        "and",
        "or",
        "not",
        "in",
        "has",
        " ",
        " ",
        " ",
        ",",
        "=",
        "!=",
        "<",
        ">=",
        "=~",
        "~",
        "!",
        "&&",
        "AND",
        "*",
        "?",
        "[a-z]",
        "[z-a]",
        "web",
        "name",
        "role",
        "1.10",
        "'",
        "\"",
        "\\",
        "\\u{",
        "}",
        "é",
        "\u{202e}",
        "\n",
        "\u{0}",
        ":",
        "日",
        "\u{1f600}",
        "(?x)",
        "{9}",
    ]);
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn evaluation_agrees_with_the_naive_evaluator(
        model in model(),
        nodes in proptest::collection::vec(node(), 1..6),
        chance in any::<u64>(),
    ) {
        let text = written(&model, chance);
        let predicate = parsed(&text);
        let printed = parsed(predicate.text());
        prop_assert_eq!(&printed, &predicate);
        prop_assert_eq!(printed.text(), predicate.text());
        for node in &nodes {
            let expected = holds(&model, node);
            prop_assert_eq!(predicate.matches(node), expected, "{} on {:?}", text, node);
            prop_assert_eq!(printed.matches(node), expected, "{} on {:?}", printed, node);
            let explanation = predicate.explain(node);
            prop_assert_eq!(explanation.matches, expected);
            prop_assert!(!explanation.decided_by.is_empty());
        }
    }

    #[test]
    fn unequal_is_not_equal(name in select(NAMES.as_slice()), wanted in wanted(), node in node(), chance in any::<u64>()) {
        let unequal = parsed(&written(&Model::IsNot(name, wanted.clone()), chance));
        let not_equal = parsed(&written(&Model::Not(Model::Is(name, wanted.clone()).into()), chance));
        let equal = parsed(&written(&Model::Is(name, wanted), chance));
        prop_assert_eq!(unequal.matches(&node), not_equal.matches(&node));
        prop_assert_ne!(unequal.matches(&node), equal.matches(&node));
    }

    #[test]
    fn no_text_does_harm(text in prop_oneof![any::<String>(), soup(), soup()]) {
        match Predicate::parse(&text) {
            Ok(predicate) => {
                prop_assert_eq!(&parsed(predicate.text()), &predicate);
                for (_, span) in predicate.names() {
                    prop_assert!(text.get(span.start..span.end).is_some_and(|name| !name.is_empty()));
                }
            }
            Err(error) => {
                let span = error.span();
                prop_assert!(text.get(span.start..span.end).is_some(), "{:?} {:?}", error, text);
                let shown = error.render(&text);
                prop_assert!(shown.starts_with("error: "));
                prop_assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", shown);
                prop_assert!(shown.lines().count() <= 3);
                prop_assert!(!error.to_string().chars().any(char::is_control));
            }
        }
    }
}
