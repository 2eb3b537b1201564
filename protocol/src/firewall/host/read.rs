//! Rules of a host firewall from JSON, as scenarios give them, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::{
    Fixed, HostAction, HostDirection, HostMatch, HostOrder, HostPeer, HostRule, HostRules,
    MAX_HOST_ADDRESSES, MAX_HOST_LINES, MAX_HOST_PEERS, MAX_HOST_RULES, MAX_HOST_SETS, MAX_PROBES,
    Policies, Probe, ProbeTarget, RuleBody,
};
use crate::firewall::holding::Members;
use crate::firewall::traffic::Traffic;
use crate::names::SetName;
use crate::predicate::Predicate;
use crate::text::{nearest, printable};

/// What is wrong, and where: `rules[3].from: …`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{at}: {fault}")]
pub struct HostRulesError {
    /// Where.
    pub at: String,
    /// What.
    pub fault: HostFault,
}

/// What is wrong with rules.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HostFault {
    /// Another kind of value.
    #[error("this must be {expected}, not {found}")]
    Kind {
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A field that there is not.
    #[error("`{field}` is not known here; there are {known}{hint}")]
    Field {
        /// Which.
        field: String,
        /// Those there are.
        known: String,
        /// Which one it may be.
        hint: String,
    },
    /// A text that is not what stands there.
    #[error("{0}")]
    Text(String),
    /// A rule that says nothing, or two things.
    #[error(
        "a rule has one of accept, drop, reject (each with its traffic: `accept: \"tcp 22\"`) and raw; this one has {0}"
    )]
    What(&'static str),
    /// A field that has no meaning beside `raw`.
    #[error("a raw rule says all of it itself; it takes direction and comment, not `{0}`")]
    BesideRaw(&'static str),
    /// A list without anything in it.
    #[error("this is empty, which could mean nobody or everybody; {0}")]
    Empty(&'static str),
    /// A set that there is not.
    #[error("there is no set `{set}` in these rules; add it to sets{hint}")]
    Set {
        /// Which.
        set: SetName,
        /// Which one it may be.
        hint: String,
    },
    /// Too many.
    #[error("{count} {what}, at most {max} are allowed; {advice}")]
    Many {
        /// How many.
        count: usize,
        /// Of what.
        what: &'static str,
        /// How many may be.
        max: usize,
        /// What to do.
        advice: &'static str,
    },
    /// The families differ.
    #[error("{0} and {1} never meet in one packet: this rule would never match")]
    Never(String, String),
    /// A port that is none.
    #[error("`{0}` is not a port; ports are 1 to 65535")]
    Port(String),
}

fn fault<T>(at: &str, fault: HostFault) -> Result<T, HostRulesError> {
    let at = if at.is_empty() { "firewall" } else { at };
    Err(HostRulesError {
        at: at.to_owned(),
        fault,
    })
}

fn kind(at: &str, expected: &'static str, value: &Value) -> HostRulesError {
    let found = match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    };
    HostRulesError {
        at: if at.is_empty() { "firewall" } else { at }.to_owned(),
        fault: HostFault::Kind { expected, found },
    }
}

/// The place of a field.
fn under(at: &str, field: &str) -> String {
    let field = printable(field, 40);
    match at {
        "" => field,
        _ => format!("{at}.{field}"),
    }
}

fn many<T>(
    at: &str,
    (count, what, max): (usize, &'static str, usize),
    advice: &'static str,
) -> Result<T, HostRulesError> {
    let many = HostFault::Many {
        count,
        what,
        max,
        advice,
    };
    fault(at, many)
}

/// A map of which every field is known.
struct Fields<'a> {
    at: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn of(at: &'a str, value: &'a Value, known: &[&str]) -> Result<Self, HostRulesError> {
        let map = value.as_object().ok_or_else(|| kind(at, "a map", value))?;
        if let Some(field) = map.keys().find(|key| !known.contains(&key.as_str())) {
            let hint = nearest(field, known.iter().copied());
            let hint = hint.map(|near| format!("; did you mean `{near}`?"));
            let unknown = HostFault::Field {
                field: printable(field, 40),
                known: known.join(", "),
                hint: hint.unwrap_or_default(),
            };
            return fault(at, unknown);
        }
        Ok(Self { at, map })
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field)
    }

    fn place(&self, field: &str) -> String {
        under(self.at, field)
    }

    fn text<T: FromStr<Err: Display>>(&self, field: &str) -> Result<Option<T>, HostRulesError> {
        let read = |value| text(&self.place(field), value);
        self.get(field).map(read).transpose()
    }
}

fn text<T: FromStr<Err: Display>>(at: &str, value: &Value) -> Result<T, HostRulesError> {
    let text = value.as_str().ok_or_else(|| kind(at, "a text", value))?;
    text.parse()
        .or_else(|e: T::Err| fault(at, HostFault::Text(e.to_string())))
}

fn list<'a>(at: &str, value: &'a Value) -> Result<&'a [Value], HostRulesError> {
    let list = value.as_array().ok_or_else(|| kind(at, "a list", value))?;
    Ok(list)
}

const RULES: &[&str] = &["policy", "without", "sets", "rules"];
const ORDER: &[&str] = &[
    "policy",
    "without",
    "sets",
    "rules",
    "probe",
    "confirm_within",
];
const RULE: &[&str] = &[
    "accept",
    "drop",
    "reject",
    "raw",
    "direction",
    "from",
    "to",
    "rate",
    "log",
    "comment",
];

impl HostRules {
    /// From JSON.
    ///
    /// # Errors
    /// [`HostRulesError`]: the first thing that is wrong, and where.
    pub fn read(value: &Value) -> Result<Self, HostRulesError> {
        rules(&Fields::of("", value, RULES)?)
    }
}

impl HostOrder {
    /// From JSON, as `firewall::host` was given it.
    ///
    /// # Errors
    /// [`HostRulesError`]: the first thing that is wrong, and where.
    pub fn read(value: &Value) -> Result<Self, HostRulesError> {
        let fields = Fields::of("", value, ORDER)?;
        let probes = match fields.get("probe") {
            Some(value) => list("probe", value)?,
            None => &[],
        };
        if probes.len() > MAX_PROBES {
            let count = (probes.len(), "probes", MAX_PROBES);
            return many("probe", count, "leave some out");
        }
        Ok(Self {
            rules: rules(&fields)?,
            probes: probes
                .iter()
                .enumerate()
                .map(|(number, value)| probe(&format!("probe[{number}]"), value))
                .collect::<Result<_, _>>()?,
            confirm_within: fields.text("confirm_within")?.unwrap_or_default(),
        })
    }
}

fn probe(at: &str, value: &Value) -> Result<Probe, HostRulesError> {
    let fields = Fields::of(at, value, &["from", "tcp"])?;
    let missing = |field: &str| {
        let what =
            format!("`{field}` is missing; a probe is like #{{ from: \"role=bastion\", tcp: 22 }}");
        fault(at, HostFault::Text(what))
    };
    let Some(from) = fields.text::<Predicate>("from")? else {
        return missing("from");
    };
    let Some(port) = fields.get("tcp") else {
        return missing("tcp");
    };
    let number = port.as_u64().and_then(|port| u16::try_from(port).ok());
    match number.filter(|port| *port != 0) {
        Some(port) => Ok(Probe {
            from,
            target: ProbeTarget::Tcp(port),
        }),
        None => fault(
            &fields.place("tcp"),
            HostFault::Port(printable(&port.to_string(), 20)),
        ),
    }
}

fn rules(fields: &Fields<'_>) -> Result<HostRules, HostRulesError> {
    let policy = match fields.get("policy") {
        Some(value) => {
            let fields = Fields::of("policy", value, &["input", "output", "forward"])?;
            let unless = Policies::default();
            Policies {
                input: fields.text("input")?.unwrap_or(unless.input),
                output: fields.text("output")?.unwrap_or(unless.output),
                forward: fields.text("forward")?.unwrap_or(unless.forward),
            }
        }
        None => Policies::default(),
    };
    let mut without = BTreeSet::new();
    if let Some(value) = fields.get("without") {
        for (number, value) in list("without", value)?.iter().enumerate() {
            without.insert(text::<Fixed>(&format!("without[{number}]"), value)?);
        }
    }
    let sets = match fields.get("sets") {
        Some(value) => sets(value)?,
        None => BTreeMap::new(),
    };
    let values = match fields.get("rules") {
        Some(value) => list("rules", value)?,
        None => &[],
    };
    if values.len() > MAX_HOST_RULES {
        let count = (values.len(), "rules", MAX_HOST_RULES);
        let advice = "put addresses into sets and ports into one rule";
        return many("rules", count, advice);
    }
    let rules = values
        .iter()
        .enumerate()
        .map(|(number, value)| rule(&format!("rules[{number}]"), value, &sets))
        .collect::<Result<Vec<_>, _>>()?;
    let lines = rules.iter().map(lines).sum();
    if lines > MAX_HOST_LINES {
        let count = (lines, "lines of the kernel's", MAX_HOST_LINES);
        return many("rules", count, "name one set on each side of a rule");
    }
    Ok(HostRules {
        policy,
        without,
        sets,
        rules,
    })
}

/// How many the kernel is told for it, at most.
fn lines(rule: &HostRule) -> usize {
    match &rule.body {
        // For both families, with a line for its log; connections are
        // rejected otherwise than the rest.
        RuleBody::Match(what) => {
            let kinds = match (what.action, &what.traffic) {
                (HostAction::Reject, Traffic::Any) => 8,
                _ => 4,
            };
            kinds * what.from.len().max(1) * what.to.len().max(1)
        }
        RuleBody::Raw(_) => 1,
    }
}

fn sets(value: &Value) -> Result<BTreeMap<SetName, Members>, HostRulesError> {
    let map = value
        .as_object()
        .ok_or_else(|| kind("sets", "a map of names to lists of addresses", value))?;
    if map.len() > MAX_HOST_SETS {
        return many("sets", (map.len(), "sets", MAX_HOST_SETS), "join some");
    }
    let mut sets = BTreeMap::new();
    let mut all = 0;
    for (name, value) in map {
        let at = under("sets", name);
        let name: SetName = name
            .parse()
            .or_else(|e| fault(&at, HostFault::Text(format!("{e}"))))?;
        let values = list(&at, value)?;
        if values.is_empty() {
            return fault(&at, HostFault::Empty("leave it out, or give it addresses"));
        }
        all += values.len();
        if all > MAX_HOST_ADDRESSES {
            let count = (all, "addresses", MAX_HOST_ADDRESSES);
            return many("sets", count, "write prefixes");
        }
        let mut prefixes = Vec::with_capacity(values.len());
        for (number, value) in values.iter().enumerate() {
            let at = format!("{at}[{number}]");
            match text::<HostPeer>(&at, value)? {
                HostPeer::Prefix(prefix) => prefixes.push(prefix),
                HostPeer::Set(_) | HostPeer::Role(_) => {
                    let what = "a set has addresses and prefixes; sets and roles stand in rules";
                    return fault(&at, HostFault::Text(what.to_owned()));
                }
            }
        }
        let members = IpNet::aggregate(&prefixes).into_iter().collect();
        sets.insert(name, members);
    }
    Ok(sets)
}

fn rule(
    at: &str,
    value: &Value,
    sets: &BTreeMap<SetName, Members>,
) -> Result<HostRule, HostRulesError> {
    let fields = Fields::of(at, value, RULE)?;
    let mut said = ["accept", "drop", "reject", "raw"]
        .into_iter()
        .filter(|word| fields.get(word).is_some());
    let body = match (said.next(), said.next()) {
        (None, _) => return fault(at, HostFault::What("none")),
        (Some(_), Some(_)) => return fault(at, HostFault::What("several")),
        (Some("raw"), None) => {
            let beside = ["from", "to", "rate", "log"];
            if let Some(field) = beside.into_iter().find(|word| fields.get(word).is_some()) {
                return fault(at, HostFault::BesideRaw(field));
            }
            fields.text("raw")?.map(RuleBody::Raw)
        }
        (Some(word), None) => {
            let action: HostAction = word
                .parse()
                .or_else(|e| fault(at, HostFault::Text(format!("{e}"))))?;
            let traffic = fields.text::<Traffic>(word)?;
            let rest = |traffic| {
                Ok(HostMatch {
                    action,
                    traffic,
                    from: peers(&fields, "from", sets)?,
                    to: peers(&fields, "to", sets)?,
                    rate: fields.text("rate")?,
                    log: fields.text("log")?,
                })
            };
            let what = traffic.map(rest).transpose()?;
            what.map(|what| RuleBody::Match(Box::new(what)))
        }
    };
    let Some(body) = body else {
        return fault(at, HostFault::What("none"));
    };
    if let RuleBody::Match(what) = &body {
        let of = |peer: &HostPeer| match peer {
            HostPeer::Prefix(prefix) => family(prefix),
            HostPeer::Set(set) => families(sets.get(set)),
            // Known only when it is asked for.
            HostPeer::Role(_) => (true, true),
        };
        check_families(what, of).or_else(|why| fault(at, why))?;
    }
    Ok(HostRule {
        direction: fields.text("direction")?.unwrap_or(HostDirection::Input),
        body,
        comment: fields.text("comment")?,
    })
}

fn peers(
    fields: &Fields<'_>,
    field: &str,
    sets: &BTreeMap<SetName, Members>,
) -> Result<Vec<HostPeer>, HostRulesError> {
    let Some(value) = fields.get(field) else {
        return Ok(Vec::new());
    };
    if value.as_str() == Some("any") {
        return Ok(Vec::new());
    }
    let at = fields.place(field);
    let one = std::slice::from_ref(value);
    let values = match value {
        Value::String(_) => one,
        Value::Array(values) => values,
        _ => return Err(kind(&at, "a text or a list of texts", value)),
    };
    if values.is_empty() {
        return fault(&at, HostFault::Empty("write any, or leave it out"));
    }
    if values.len() > MAX_HOST_PEERS {
        let count = (values.len(), "peers", MAX_HOST_PEERS);
        return many(&at, count, "put them into a set");
    }
    let mut peers = Vec::with_capacity(values.len());
    for (number, value) in values.iter().enumerate() {
        let at = match value {
            _ if values.len() == 1 => at.clone(),
            _ => format!("{at}[{number}]"),
        };
        let peer: HostPeer = text(&at, value)?;
        if let HostPeer::Set(set) = &peer
            && !sets.contains_key(set)
        {
            let near = nearest(set.as_str(), sets.keys().map(|name| name.as_str()));
            let near = near.map(|near| format!("; did you mean `{near}`?"));
            let unknown = HostFault::Set {
                set: set.clone(),
                hint: near.unwrap_or_default(),
            };
            return fault(&at, unknown);
        }
        // Said twice is said once.
        if !peers.contains(&peer) {
            peers.push(peer);
        }
    }
    Ok(peers)
}

/// Whether there are IPv4 ones among them, and IPv6 ones. Those of IPv4 are
/// in front.
pub(super) fn families(members: Option<&Members>) -> (bool, bool) {
    let (first, last) = match members {
        Some(members) => (members.first(), members.last()),
        None => (None, None),
    };
    (
        matches!(first, Some(IpNet::V4(_))),
        matches!(last, Some(IpNet::V6(_))),
    )
}

/// The one of a prefix.
pub(super) fn family(prefix: &IpNet) -> (bool, bool) {
    (
        matches!(prefix, IpNet::V4(_)),
        matches!(prefix, IpNet::V6(_)),
    )
}

/// Whether every peer of a rule can be in a packet that the rule is about.
pub(super) fn check_families(
    what: &HostMatch,
    of: impl Fn(&HostPeer) -> (bool, bool),
) -> Result<(), HostFault> {
    let traffic = match what.traffic {
        Traffic::Icmp(_) => (true, false),
        Traffic::Icmpv6(_) => (false, true),
        _ => (true, true),
    };
    let meet = |a: (bool, bool), b: (bool, bool)| (a.0 && b.0) || (a.1 && b.1);
    let all = |peers: &[HostPeer]| match peers {
        [] => (true, true),
        _ => peers
            .iter()
            .map(&of)
            .fold((false, false), |a, b| (a.0 || b.0, a.1 || b.1)),
    };
    for (peers, others) in [(&what.from, &what.to), (&what.to, &what.from)] {
        for peer in peers {
            if !meet(of(peer), traffic) {
                let traffic = what.traffic.to_string();
                return Err(HostFault::Never(traffic, peer.to_string()));
            }
            if !meet(of(peer), all(others)) {
                let others: Vec<String> = others.iter().map(HostPeer::to_string).collect();
                return Err(HostFault::Never(peer.to_string(), others.join(", ")));
            }
        }
    }
    Ok(())
}

fn texts<T: Display>(values: impl IntoIterator<Item = T>) -> Value {
    let texts = values
        .into_iter()
        .map(|value| Value::from(value.to_string()));
    Value::Array(texts.collect())
}

/// As JSON, in the shortest form that is read as the same.
pub(super) fn write(rules: &HostRules) -> Map<String, Value> {
    let mut map = Map::new();
    let unless = Policies::default();
    let mut policy = Map::new();
    for direction in HostDirection::ALL {
        let word = rules.policy.of(*direction);
        if word != unless.of(*direction) {
            policy.insert(direction.to_string(), word.to_string().into());
        }
    }
    if !policy.is_empty() {
        map.insert("policy".into(), policy.into());
    }
    if !rules.without.is_empty() {
        map.insert("without".into(), texts(&rules.without));
    }
    if !rules.sets.is_empty() {
        let sets = rules.sets.iter();
        let sets: Map<String, Value> = sets
            .map(|(name, members)| (name.to_string(), texts(members)))
            .collect();
        map.insert("sets".into(), sets.into());
    }
    let written = rules.rules.iter().map(|rule| Value::from(write_rule(rule)));
    map.insert("rules".into(), Value::Array(written.collect()));
    map
}

fn write_rule(rule: &HostRule) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |field: &str, value: Value| map.insert(field.to_owned(), value);
    match &rule.body {
        RuleBody::Match(what) => {
            put(what.action.as_str(), what.traffic.to_string().into());
            for (field, peers) in [("from", &what.from), ("to", &what.to)] {
                match &peers[..] {
                    [] => continue,
                    [one] => put(field, one.to_string().into()),
                    several => put(field, texts(several)),
                };
            }
            if let Some(rate) = &what.rate {
                put("rate", rate.to_string().into());
            }
            if let Some(log) = &what.log {
                put("log", log.to_string().into());
            }
        }
        RuleBody::Raw(line) => {
            put("raw", line.to_string().into());
        }
    }
    if rule.direction != HostDirection::Input {
        put("direction", rule.direction.to_string().into());
    }
    if let Some(comment) = &rule.comment {
        put("comment", comment.to_string().into());
    }
    map
}

pub(super) fn write_order(order: &HostOrder) -> Map<String, Value> {
    let mut map = write(&order.rules);
    if !order.probes.is_empty() {
        let probes = order.probes.iter().map(|probe| {
            let ProbeTarget::Tcp(port) = probe.target;
            serde_json::json!({"from": probe.from.text(), "tcp": port})
        });
        map.insert("probe".into(), Value::Array(probes.collect()));
    }
    if order.confirm_within != Default::default() {
        let within = order.confirm_within.to_string();
        map.insert("confirm_within".into(), within.into());
    }
    map
}
