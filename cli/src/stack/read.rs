//! From a file's text to a stack.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use muster_broker::vm::{MAX_AT_ONCE, Names};
use muster_protocol::api::{CreateVms, MAX_USER_DATA, PutNetwork, Strategy};
use muster_protocol::names::{GroupName, LabelValue, LanName, SshKeyName, VmName};
use muster_protocol::predicate::Predicate;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::vm::{
    MAX_CPUS, MAX_DISK, MAX_MEMORY, MAX_NICS, MIN_MEMORY, MachineError, Readiness, Size,
    is_private_key,
};
use muster_scenarios::fault::Fault;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::doc::{At, Block, Doc, entries};
use super::vars::{Known, Scalar, is_name, named, one_of};
use super::{Asked, MAX_FILE, MAX_MACHINES, Machine, Network, Stack, StackId, is_own};
use crate::verbs::vm::key_lines;

/// Reads a file's text. `load` reads a file that it names, or says why it
/// cannot.
///
/// # Errors
/// Everything that is wrong in it.
pub fn read(
    file: &str,
    text: &str,
    asked: &Asked,
    load: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Stack, Vec<Fault>> {
    let mut doc = Doc::new(file, text);
    if text.len() > MAX_FILE {
        let message = format!("{} bytes are too many for a stack", text.len());
        doc.wrong_anywhere(message, Some(format!("at most {MAX_FILE}")));
        return Err(doc.faults());
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().unwrap_or_default();
        doc.wrong(&at, error.message(), None);
    }
    if !errors.is_empty() {
        return Err(doc.faults());
    }
    doc.vars = variables(&doc, root.get_ref(), asked);
    let stack = whole(&doc, root.get_ref(), asked, load);
    let faults = doc.faults();
    match stack {
        Some(stack) if faults.is_empty() => Ok(stack),
        _ => Err(faults),
    }
}

type Table<'d> = DeTable<'d>;
type Value<'d> = Spanned<DeValue<'d>>;

/// Tables of which each has a name, in the order of the file.
fn named_tables<'d>(
    doc: &Doc<'_>,
    root: &'d Table<'d>,
    key: &str,
) -> Vec<(&'d str, At, &'d Value<'d>)> {
    let found = root.iter().find(|(name, _)| name.get_ref() == key);
    let Some((_, value)) = found else {
        return Vec::new();
    };
    if let Some(table) = value.get_ref().as_table() {
        if table.len() > MAX_MACHINES {
            let message = format!("`{key}` has {} entries", table.len());
            let hint = format!("at most {MAX_MACHINES}");
            doc.wrong(&value.span(), message, Some(hint));
            return Vec::new();
        }
        return entries(table);
    }
    let hint = format!("write [{key}.NAME]");
    doc.wrong(
        &value.span(),
        format!("`{key}` is a table of tables"),
        Some(hint),
    );
    Vec::new()
}

/// What variables are, after the variant and the command line have had their
/// say.
fn variables<'d>(doc: &Doc<'_>, root: &'d Table<'d>, asked: &Asked) -> Known {
    let mut raw: BTreeMap<&str, (Scalar, At, bool)> = BTreeMap::new();
    let mut known = Known::new();
    for (name, at, value) in named_tables(doc, root, "vars") {
        if !is_name(name) {
            let message = format!("`{}` is no name of a variable", printable(name, 40));
            doc.wrong(
                &at,
                message,
                Some("like `web_count`, in lower case".to_owned()),
            );
            continue;
        }
        match doc.plain(&format!("`{name}`"), value) {
            Some(scalar) => drop(raw.insert(name, (scalar, value.span(), false))),
            None => drop(known.insert(name.to_owned(), None)),
        }
    }
    let names: BTreeSet<&str> = raw.keys().copied().collect();
    let envs = named_tables(doc, root, "env");
    for (env, at, value) in &envs {
        let table = value.get_ref().as_table();
        let Some(table) = table.filter(|table| table.len() <= MAX_MACHINES) else {
            let shown = printable(env, 40);
            let message = format!("[env.{shown}] is a table of at most {MAX_MACHINES} variables");
            doc.wrong(at, message, None);
            continue;
        };
        for (name, at, value) in entries(table) {
            let Some((default, _, _)) = raw.get(name) else {
                if !known.contains_key(name) {
                    let message = format!("[vars] has no `{}`", printable(name, 40));
                    let hint = one_of(name, names.iter().copied(), "give it a default there");
                    doc.wrong(&at, message, Some(hint));
                }
                continue;
            };
            let Some(scalar) = doc.plain(&format!("`{name}`"), value) else {
                continue;
            };
            if scalar.kind() != default.kind() {
                let message = format!("`{name}` is {} in [vars]", default.kind());
                doc.wrong(&value.span(), message, None);
            } else if asked.env.as_deref() == Some(*env) {
                raw.insert(name, (scalar, value.span(), false));
            }
        }
    }
    if let Some(env) = &asked.env
        && !envs.iter().any(|(name, _, _)| name == env)
    {
        let message = format!("--env {}: there is no [env.{0}]", printable(env, 40));
        let all = envs.iter().map(|(name, _, _)| *name);
        doc.wrong_anywhere(message, Some(one_of(env, all, "the file has no [env.…]")));
    }
    for (name, text) in &asked.vars {
        let Some((&name, (default, at, _))) = raw.get_key_value(name.as_str()) else {
            let message = format!("--var {}: [vars] has no such variable", printable(name, 40));
            let hint = one_of(name, names.iter().copied(), "[vars] has none");
            doc.wrong_anywhere(message, Some(hint));
            continue;
        };
        match default.like(text) {
            Some(scalar) => {
                let at = at.clone();
                raw.insert(name, (scalar, at, true));
            }
            None => {
                let message = format!("--var {name}: it takes {}", default.kind());
                doc.wrong_anywhere(message, None);
            }
        }
    }
    resolved(doc, &raw, known)
}

/// Variables in variables. What came from the command line is as it is.
fn resolved(doc: &Doc<'_>, raw: &BTreeMap<&str, (Scalar, At, bool)>, mut known: Known) -> Known {
    let mut open: Vec<&str> = raw.keys().copied().collect();
    // Each round knows what the rounds before it know the parts of.
    loop {
        let mut later = Vec::new();
        let before = open.len();
        for name in open {
            let Some((scalar, at, literal)) = raw.get(name) else {
                continue;
            };
            let value = match scalar {
                Scalar::Text(text) if !literal => {
                    let waits = |part: &&str| raw.contains_key(part) && !known.contains_key(*part);
                    if named(text).iter().any(waits) {
                        later.push(name);
                        continue;
                    }
                    match super::vars::fill(text, &known, &doc.room) {
                        Ok((value, _)) => Some(value),
                        Err(super::vars::Unfilled::Said) => None,
                        Err(super::vars::Unfilled::Wrong(message, hint)) => {
                            doc.wrong(at, message, hint);
                            None
                        }
                    }
                }
                other => Some(other.clone()),
            };
            known.insert(name.to_owned(), value);
        }
        if later.is_empty() {
            return known;
        }
        if later.len() == before {
            for name in &later {
                if let Some((_, at, _)) = raw.get(name) {
                    let circle = later.join(", ");
                    doc.wrong(
                        at,
                        format!("variables that need each other: {circle}"),
                        None,
                    );
                }
                known.insert((*name).to_owned(), None);
            }
            return known;
        }
        open = later;
    }
}

/// A table `[vm.NAME]` that was read.
struct Read {
    /// What the file calls it, with variables filled in.
    base: String,
    at: At,
    names: Vec<VmName>,
    /// `None` where something is wrong with it, which was said.
    like: Option<Like>,
    after: Vec<(String, At)>,
}

/// What all machines of a table have in common.
struct Like {
    create: CreateVms,
    running: Option<bool>,
    protect: Option<bool>,
}

fn whole<'d>(
    doc: &'d Doc<'d>,
    root: &'d Table<'d>,
    asked: &Asked,
    load: &dyn Fn(&str) -> Result<String, String>,
) -> Option<Stack> {
    for (key, at, _) in entries(root) {
        const TABLES: [&str; 5] = ["stack", "vars", "env", "network", "vm"];
        if !TABLES.contains(&key) {
            let hint = one_of(key, TABLES.into_iter(), "");
            let message = format!("a stack has no `{}`", printable(key, 60));
            doc.wrong(&at, message, Some(hint));
        }
    }
    let head = root.iter().find(|(name, _)| name.get_ref() == "stack");
    let mut name: Option<LabelValue> = None;
    match head {
        None => doc.wrong_anywhere(
            "the stack has no name",
            Some("begin with [stack] and name = \"…\"".to_owned()),
        ),
        Some((key, value)) => {
            let mut block = Block::new(doc, "[stack]".to_owned(), key.span(), value)?;
            block.needs("name");
            name = block.parsed("name");
            block.finish();
        }
    }
    let env = asked.env.as_deref().map(str::parse).transpose();
    let env: Option<LabelValue> = env.unwrap_or_else(|error| {
        // It is a label of all that is made.
        doc.wrong_anywhere(format!("--env: {error}"), None);
        None
    });
    let id = name.map(|name| StackId { name, env });
    let mut networks: Vec<Network> = Vec::new();
    for (key, at, value) in named_tables(doc, root, "network") {
        if let Some(network) = network(doc, key, &at, value, id.as_ref()) {
            if networks.iter().any(|other| other.name == network.name) {
                doc.wrong(
                    &at,
                    format!("network {} is in it already", network.name),
                    None,
                );
            }
            networks.push(network);
        }
    }
    let tables = named_tables(doc, root, "vm").into_iter();
    let blocks: Vec<Read> = tables
        .filter_map(|(key, at, value)| machine(doc, key, &at, value, id.as_ref(), load))
        .collect();
    let machines = joined(doc, &blocks);
    Some(Stack {
        id: id?,
        networks,
        machines,
    })
}

/// What a name is in the file, with variables filled in.
fn name_of(doc: &Doc<'_>, key: &str, at: &At) -> Option<String> {
    doc.fill(key, at).map(|(scalar, _)| scalar.to_string())
}

fn network<'d>(
    doc: &'d Doc<'d>,
    key: &str,
    at: &At,
    value: &'d Value<'d>,
    stack: Option<&StackId>,
) -> Option<Network> {
    let text = name_of(doc, key, at)?;
    let name: Option<LanName> = text
        .parse()
        .map_err(|error| doc.wrong(at, format!("{error}"), None))
        .ok();
    let title = format!("[network.{}]", printable(&text, 60));
    let mut block = Block::new(doc, title, at.clone(), value)?;
    block.needs("bridge");
    block.needs("pools");
    let bridge = block.parsed("bridge");
    let pools = block.texts("pools").into_iter().map(|(pool, _)| pool);
    let pools: Vec<String> = pools.collect();
    let gateways: Vec<IpAddr> = block.list("gateways");
    let dns: Vec<IpAddr> = block.list("dns");
    let reserved: Vec<IpAddr> = block.list("reserved");
    let mtu = block.number("mtu");
    let has_pools = block.value("pools").is_some();
    let place = block.value("pools").map_or(at.clone(), Spanned::span);
    block.finish();
    // What is wrong with the pools is said also where the bridge is wrong.
    let known = bridge.is_some();
    let mut put = PutNetwork {
        bridge: bridge.or_else(|| "br0".parse().ok())?,
        pools,
        gateways,
        dns,
        reserved,
        mtu,
        replace: false,
        labels: stack.into_iter().flat_map(StackId::labels).collect(),
    };
    // In the form in which the broker keeps them.
    match muster_broker::vm::networks::pool::Plan::read(&put) {
        Ok(plan) => put.pools = plan.pools().iter().map(ToString::to_string).collect(),
        Err(_) if !has_pools => {}
        Err(error) => doc.refused(&place, &error),
    }
    if !known {
        return None;
    }
    Some(Network { name: name?, put })
}

fn strategy(block: &mut Block<'_>) -> Strategy {
    match block.text("strategy") {
        None => Strategy::Spread,
        Some((text, at)) => match text.as_str() {
            "spread" => Strategy::Spread,
            "pack" => Strategy::Pack,
            _ => {
                block.wrong(&at, "`strategy` is \"spread\" or \"pack\"", None);
                Strategy::Spread
            }
        },
    }
}

fn ready(block: &mut Block<'_>, agent: bool) -> Option<Readiness> {
    let (text, at) = block.text("ready")?;
    let ready = match text.as_str() {
        "agent" => Readiness::Agent,
        "boot" => Readiness::Boot,
        "ping" => Readiness::Ping,
        "guest-agent" | "guest_agent" => Readiness::GuestAgent,
        _ => {
            let message = "`ready` is \"agent\", \"boot\", \"ping\" or \"guest-agent\"";
            block.wrong(&at, message, None);
            return None;
        }
    };
    if agent != (ready == Readiness::Agent) {
        let message = if agent {
            "a machine with an agent is up when that has enrolled; leave `ready` out, or say agent = false"
        } else {
            "without an agent none says that the machine is up; say ready = \"boot\", \"ping\" or \"guest-agent\""
        };
        let (message, hint) = message.split_once("; ").unwrap_or((message, ""));
        block.wrong(&at, message, Some(hint.to_owned()));
    }
    Some(ready)
}

/// Sizes that no machine can have, before a broker is asked.
fn sizes(block: &mut Block<'_>) -> (Option<u16>, Option<Size>, Option<Size>) {
    let cpus: Option<u16> = block.number("cpus");
    let whole = |size: &Size| size.0.is_multiple_of(1 << 20);
    let place = |block: &mut Block<'_>, key| {
        let value = block.value(key);
        value.map_or_else(|| block.at.clone(), Spanned::span)
    };
    if let Some(cpus) = cpus.filter(|cpus| *cpus == 0 || *cpus > MAX_CPUS) {
        let at = place(block, "cpus");
        block.wrong(&at, MachineError::Cpus(cpus).to_string(), None);
    }
    let memory: Option<Size> = block.parsed("memory");
    let fits = |size: &Size| (MIN_MEMORY..=MAX_MEMORY).contains(size) && whole(size);
    if let Some(memory) = memory.filter(|memory| !fits(memory)) {
        let at = place(block, "memory");
        block.wrong(&at, MachineError::Memory(memory).to_string(), None);
    }
    let disk: Option<Size> = block.parsed("disk");
    if let Some(disk) = disk.filter(|disk| *disk > MAX_DISK || !whole(disk)) {
        let at = place(block, "disk");
        block.wrong(&at, MachineError::Disk(disk).to_string(), None);
    }
    (cpus, memory, disk)
}

/// Text of a file that the stack names, or the text itself.
fn user_data(
    block: &mut Block<'_>,
    load: &dyn Fn(&str) -> Result<String, String>,
) -> Option<String> {
    let (text, at) = block.text("user_data")?;
    // Everything that cloud-init reads begins so, but what comes in parts.
    let text = if text.starts_with('#') {
        text
    } else if is_private_key(&text) {
        block.wrong(
            &at,
            "`user_data` is a file, or text that begins with `#`",
            None,
        );
        return None;
    } else {
        load(&text)
            .map_err(|why| block.wrong(&at, why, None))
            .ok()?
    };
    if text.len() > MAX_USER_DATA {
        let message = format!("{} bytes of user-data are too many", text.len());
        block.wrong(&at, message, Some(format!("at most {MAX_USER_DATA}")));
        return None;
    }
    Some(text)
}

fn ssh_keys(block: &mut Block<'_>, load: &dyn Fn(&str) -> Result<String, String>) -> Vec<String> {
    let mut keys = Vec::new();
    for (text, at) in block.texts("ssh_keys") {
        // A key itself has its kind and its bytes, and blanks between them.
        // What it is is not repeated: it may be a secret.
        if is_private_key(&text) || text.contains([' ', '\n']) {
            match key_lines(&text) {
                Ok(lines) => keys.extend(lines),
                Err(why) => block.refused(&at, &why),
            }
            continue;
        }
        match load(&text) {
            // A name has no slash in it, and what is there is a file.
            Err(_) if !text.contains('/') && text.parse::<SshKeyName>().is_ok() => keys.push(text),
            Ok(lines) => match key_lines(&lines) {
                Ok(lines) => keys.extend(lines),
                Err(why) => {
                    let what = printable(&text, 80);
                    block.refused(&at, &format_args!("{what}: {why}"));
                }
            },
            Err(why) => block.wrong(&at, why, None),
        }
    }
    keys
}

fn networks_of(block: &mut Block<'_>) -> Vec<LanName> {
    let networks: Vec<LanName> = block.list("networks");
    let at = block
        .value("networks")
        .map_or_else(|| block.at.clone(), Spanned::span);
    if networks.len() > MAX_NICS {
        block.wrong(&at, MachineError::Nics(networks.len()).to_string(), None);
    }
    if networks.iter().collect::<HashSet<_>>().len() < networks.len() {
        let message = "a machine has one interface in a network";
        block.wrong(&at, message, Some("name each network once".to_owned()));
    }
    networks
}

/// The names of a table's machines.
fn names(doc: &Doc<'_>, base: &str, at: &At, count: Option<u32>) -> Vec<VmName> {
    if count == Some(0) {
        return Vec::new();
    }
    let parsed = match count {
        Some(count) if count > MAX_AT_ONCE => {
            let message = format!("{count} machines of one table are too many");
            doc.wrong(at, message, Some(format!("at most {MAX_AT_ONCE}")));
            return Vec::new();
        }
        Some(count) if !base.contains(['{', '}']) => {
            Names::parse(&format!("{base}-{{01..{count:02}}}"), Some(count))
        }
        count => Names::parse(base, count),
    };
    match parsed {
        Ok(Names::Listed(names)) => names,
        Ok(Names::Placed { .. }) => {
            let message = "a machine of a stack has a name of its own, and none of its place";
            let hint = "like web-01, or web-{01..05}, or web with count = 5";
            doc.wrong(at, message, Some(hint.to_owned()));
            Vec::new()
        }
        Err(error) => {
            doc.wrong(at, error.to_string(), None);
            Vec::new()
        }
    }
}

fn machine<'d>(
    doc: &'d Doc<'d>,
    key: &str,
    at: &At,
    value: &'d Value<'d>,
    stack: Option<&StackId>,
    load: &dyn Fn(&str) -> Result<String, String>,
) -> Option<Read> {
    let base = name_of(doc, key, at)?;
    let title = format!("[vm.{}]", printable(&base, 60));
    let mut block = Block::new(doc, title, at.clone(), value)?;
    for key in ["image", "cpus", "memory"] {
        block.needs(key);
    }
    let count = block.number("count");
    let counted = block.value("count").is_some();
    let names = if counted && count.is_none() {
        Vec::new()
    } else {
        names(doc, &base, at, count)
    };
    let image = block.parsed("image");
    let (cpus, memory, disk) = sizes(&mut block);
    let agent = block.flag("agent").unwrap_or(true);
    let ready = ready(&mut block, agent);
    let mut labels: BTreeMap<_, _> = BTreeMap::new();
    for (key, value, at) in block.pairs("labels") {
        if is_own(&key) {
            let message = format!("the label `{key}` says which stack a machine is of");
            block.wrong(&at, message, Some("choose another one".to_owned()));
        }
        labels.insert(key, value);
    }
    labels.extend(stack.into_iter().flat_map(StackId::labels));
    let mut groups: Vec<GroupName> = block.list("groups");
    groups.sort();
    groups.dedup();
    let on = block.text("on").and_then(|(text, at)| {
        let checked = Predicate::parse(&text);
        checked
            .map_err(|error| block.wrong(&at, format!("`on`: {error}"), None))
            .ok()
            .map(|_| text)
    });
    let within: Option<Span> = block.parsed("within");
    let networks = networks_of(&mut block);
    let account = block.parsed("account");
    let strategy = strategy(&mut block);
    let apart = block.text("apart").map(|(text, _)| text);
    let mut roles: Vec<_> = block.list("roles");
    roles.sort();
    roles.dedup();
    let ssh_keys = ssh_keys(&mut block, load);
    let user_data = user_data(&mut block, load);
    let configure = super::configure::read(&mut block, agent);
    let autostart = block.flag("autostart").unwrap_or(true);
    let running = block.flag("running");
    let protect = block.flag("protect");
    let after = block.texts("after");
    block.finish();
    let create = move || {
        Some(CreateVms {
            name: String::new(),
            count: None,
            image: image?,
            cpus: cpus?,
            memory: memory?,
            disk,
            networks,
            account,
            agent,
            ready,
            ready_within: within,
            on,
            strategy,
            apart,
            roles,
            labels,
            groups,
            ssh_keys,
            user_data,
            configure,
            autostart,
            protect: protect.unwrap_or(false),
            dry_run: false,
        })
    };
    Some(Read {
        base,
        at: at.clone(),
        names,
        like: create().map(|create| Like {
            create,
            running,
            protect,
        }),
        after,
    })
}

/// Machines of all tables, with what is before them.
fn joined(doc: &Doc<'_>, blocks: &[Read]) -> Vec<Machine> {
    let mut machines: Vec<Machine> = Vec::new();
    let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
    let mut tables: Vec<Vec<usize>> = Vec::new();
    for block in blocks {
        let mut own = Vec::new();
        for name in &block.names {
            if machines.len() >= MAX_MACHINES {
                let message = format!("a stack has at most {MAX_MACHINES} machines");
                doc.wrong(&block.at, message, None);
                return Vec::new();
            }
            if machines.iter().any(|other| other.name == *name) {
                doc.wrong(&block.at, format!("{name} is in it already"), None);
                continue;
            }
            let Some(like) = &block.like else {
                by_name.entry(name.to_string()).or_default();
                continue;
            };
            own.push(machines.len());
            by_name.insert(name.to_string(), vec![machines.len()]);
            machines.push(Machine {
                name: name.clone(),
                create: CreateVms {
                    name: name.to_string(),
                    ..like.create.clone()
                },
                running: like.running,
                protect: like.protect,
                after: Vec::new(),
            });
        }
        tables.push(own);
    }
    // A table of one machine has its name: the same. One of many has another.
    for (block, own) in blocks.iter().zip(&tables) {
        by_name
            .entry(block.base.clone())
            .or_insert_with(|| own.clone());
    }
    let known: BTreeSet<&str> = by_name.keys().map(String::as_str).collect();
    for (block, own) in blocks.iter().zip(&tables) {
        let mut after = BTreeSet::new();
        for (name, at) in &block.after {
            match by_name.get(name) {
                Some(before) => after.extend(before.iter().copied()),
                None => {
                    let message = format!("there is no machine `{}` in it", printable(name, 60));
                    // To look for what was meant takes its time.
                    let hint = !doc.is_full();
                    let hint = hint.then(|| one_of(name, known.iter().copied(), "it has none"));
                    doc.wrong(at, message, hint);
                }
            }
        }
        for index in own {
            machines[*index].after = after.iter().copied().collect();
        }
    }
    if let Some(circle) = circle(&machines) {
        let names: Vec<&str> = circle
            .iter()
            .map(|at| machines[*at].name.as_str())
            .collect();
        let is_of = |own: &Vec<usize>| circle.first().is_some_and(|first| own.contains(first));
        let at = tables.iter().position(is_of).map(|at| &blocks[at]);
        let place = at.and_then(|block| block.after.first().map(|(_, at)| at.clone()));
        let message = format!(
            "machines that wait for each other: {}",
            names.join(" after ")
        );
        match place {
            Some(at) => doc.wrong(&at, message, None),
            None => doc.wrong_anywhere(message, None),
        }
    }
    machines
}

/// Machines that are after each other, from one of them to itself.
fn circle(machines: &[Machine]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Never,
        Open,
        Done,
    }
    let mut seen = vec![Seen::Never; machines.len()];
    for start in 0..machines.len() {
        // The way here: a machine, and how many of its own were looked at.
        let mut way: Vec<(usize, usize)> = vec![(start, 0)];
        if seen[start] != Seen::Never {
            continue;
        }
        seen[start] = Seen::Open;
        while let Some((at, looked)) = way.last_mut() {
            let Some(next) = machines[*at].after.get(*looked).copied() else {
                seen[*at] = Seen::Done;
                way.pop();
                continue;
            };
            *looked += 1;
            match seen[next] {
                Seen::Done => {}
                Seen::Never => {
                    seen[next] = Seen::Open;
                    way.push((next, 0));
                }
                Seen::Open => {
                    let from = way.iter().position(|(at, _)| *at == next).unwrap_or(0);
                    let mut circle: Vec<usize> = way[from..].iter().map(|(at, _)| *at).collect();
                    circle.push(next);
                    return Some(circle);
                }
            }
        }
    }
    None
}
