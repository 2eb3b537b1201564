//! The documentation holds what it says: its scenarios are sound, its tables
//! are those of the code.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_protocol::envelope::Mode;
use muster_scenarios::bundle::Bundle;
use muster_scenarios::catalogue::{self, Form};
use muster_scenarios::check::{check, check_bundle};
use muster_scenarios::durable::{Input, Program, Records, Turn, turn};
use muster_scenarios::engine::Limits;
use muster_scenarios::manifest::read;
use muster_scenarios::node::{
    self, Call, Effect, Ended, Host, HostError, NodeFacts, Performed, Source,
};
use muster_scenarios::param::Kind;
use muster_scenarios::secret::Secrets;
use muster_scenarios::trial::Trial;
use serde_json::Map;

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scenarios.md")
}

fn page() -> String {
    std::fs::read_to_string(path()).expect("the page")
}

/// The last line that people write; what follows is written from the code.
const MARK: &str =
    "<!-- The tables from here to the end are written from the code; a test compares them. -->\n";

#[test]
fn the_reference_is_that_of_the_code() {
    let page = page();
    let (head, tables) = page.split_once(MARK).expect("the mark");
    let wanted = format!("\n{}\n", catalogue::reference().trim_end());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path(), format!("{head}{MARK}{wanted}")).expect("it can be written");
        return;
    }
    assert_eq!(
        tables, wanted,
        "UPDATE_DOCS=1 cargo test -p muster-scenarios --test reference writes it"
    );
}

#[test]
fn every_scenario_of_the_page_is_sound_and_its_tests_hold() {
    let page = page();
    let mut seen = 0;
    for block in page.split("```rhai\n").skip(1) {
        let text = block.split("```").next().expect("its end");
        let files = BTreeMap::from([(
            "templates/webapp.toml.j2".parse().expect("a path"),
            b"port = {{ port }}\n".to_vec(),
        )]);
        let bundle = Bundle::new(text.to_owned(), files).expect("a bundle");
        let manifest =
            check_bundle("docs.rhai", &bundle).unwrap_or_else(|faults| panic!("{}", faults[0]));
        let trial = Trial::new("docs.rhai", &bundle, manifest).expect("it can be read");
        for test in trial.tests() {
            seen += 1;
            if let Err(fault) = trial.run(test) {
                panic!("{test}: {fault}");
            }
        }
        assert_eq!(trial.unneeded(), []);
    }
    assert!(seen >= 3, "only {seen} tests found");
}

#[test]
fn limits_are_those_of_the_code() {
    let page = page();
    let (main, node) = (Limits::MAIN, Limits::NODE);
    assert_eq!(
        (main.call_depth, main.string),
        (node.call_depth, node.string)
    );
    for said in [
        format!("{} operations in `main`", thousands(main.operations)),
        format!("{} in a function on a node", thousands(node.operations)),
        format!("{} functions deep", main.call_depth),
        format!("{} MiB of text", main.string / (1024 * 1024)),
        format!(
            "lists of {} elements in `main`",
            thousands(main.array as u64)
        ),
        format!("{} on a node", thousands(node.array as u64)),
    ] {
        assert!(page.contains(&said), "the page does not say: {said}");
    }
}

/// `20,000`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[test]
fn types_are_those_of_the_code() {
    let page = page();
    for kind in Kind::ALL {
        assert!(page.contains(&format!("\n| `{kind}` | ")), "{kind}");
    }
}

struct Nobody;

impl Host for Nobody {
    fn perform(&self, _: &Effect, _: Mode, _: Source) -> Result<Performed, HostError> {
        Err(HostError::Failed("nothing happens here".to_owned()))
    }

    fn stopped(&self) -> bool {
        false
    }

    fn facts(&self) -> Arc<NodeFacts> {
        Arc::new(NodeFacts::default())
    }
}

/// What is said about an option that there is not.
fn refused(call: &str) -> String {
    let text = format!("scenario(\"x\"); {call}; fn run(p) {{}}");
    if let Err(faults) = read("x.rhai", &text)
        && !faults[0].message.contains("at the top")
    {
        return faults[0].to_string();
    }
    let text = format!("fn main(p) {{ {call} }} fn f(p) {{}}");
    let program = Program::new("x.rhai", &text).expect("a program");
    let input = Input {
        sets: BTreeMap::from([("targets".to_owned(), Vec::new())]),
        ..Input::default()
    };
    let (turn, _) = turn(&program, &input, Records::default(), |_, _| None, || false);
    if let Turn::Failed { fault, .. } = turn
        && !fault.message.contains("there is no")
    {
        return fault.message;
    }
    let bundle = Bundle::new(format!("fn run(p) {{ {call} }}"), BTreeMap::new()).expect("a bundle");
    let asked = Call {
        function: "run".parse().expect("a name"),
        params: Map::new(),
        secrets: Secrets::default(),
        mode: Mode::Apply,
    };
    match node::run("x.rhai", &bundle, &asked, Arc::new(Nobody)) {
        Err(Ended::Failed(fault)) => fault.message,
        other => panic!("{call}: {other:?}"),
    }
}

#[test]
fn options_are_those_of_the_code() {
    let wrong = "#{ zzzzzzzzzzzzzzzz: 1 }";
    let calls = [
        ("param(name, #{…})", format!("param(\"x\", {wrong})")),
        (
            "max_failures(most, #{…})",
            format!("max_failures(1, {wrong})"),
        ),
        (
            "on(nodes, function, params, #{…})",
            format!("on(targets(), \"f\", #{{}}, {wrong})"),
        ),
        (
            "run_scenario(name, params, #{…})",
            format!("run_scenario(\"x\", #{{}}, {wrong})"),
        ),
        ("machine(#{…})", format!("machine({wrong})")),
        (
            "nodes.batches(size, #{…})",
            format!("targets().batches(1, {wrong})"),
        ),
        ("command(words, #{…})", format!("command([\"x\"], {wrong})")),
        ("shell(line, #{…})", format!("shell(\"x\", {wrong})")),
        (
            "file.content(text, #{…})",
            format!("file(\"/x\").content(\"x\", {wrong})"),
        ),
        (
            "file.line(text, #{…})",
            format!("file(\"/x\").line(\"x\", {wrong})"),
        ),
        (
            "file.no_line(text, #{…})",
            format!("file(\"/x\").no_line(\"x\", {wrong})"),
        ),
        (
            "file.restore(#{…})",
            format!("file(\"/x\").restore({wrong})"),
        ),
        (
            "file.directory(#{…})",
            format!("file(\"/x\").directory({wrong})"),
        ),
        (
            "package(name, #{…}).latest()",
            format!("package(\"x\", {wrong}).latest()"),
        ),
        (
            "user.present(#{…})",
            format!("user(\"x\").present({wrong})"),
        ),
        (
            "http(url, #{…}).get()",
            format!("http(\"http://x\", {wrong}).get()"),
        ),
        ("vm::stop(id, #{…})", format!("vm::stop(\"x\", {wrong})")),
        (
            "vm::reboot(id, #{…})",
            format!("vm::reboot(\"x\", {wrong})"),
        ),
        (
            "vm::destroy(id, #{…})",
            format!("vm::destroy(\"x\", {wrong})"),
        ),
        (
            "vm::resize(id, #{…})",
            format!("vm::resize(\"x\", {wrong})"),
        ),
        (
            "vm::console_log(id, #{…})",
            format!("vm::console_log(\"x\", {wrong})"),
        ),
        (
            "vm::guest_exec(id, words, #{…})",
            format!("vm::guest_exec(\"x\", [\"x\"], {wrong})"),
        ),
        (
            "http.until(status, #{…})",
            format!("http(\"http://x\").until(200, {wrong})"),
        ),
    ];
    let page = page();
    let rows = page
        .lines()
        .skip_while(|line| *line != "## Options")
        .skip(4)
        .take_while(|line| line.starts_with('|'))
        .count();
    assert_eq!(rows, calls.len());
    for (written, call) in calls {
        let said = refused(&call);
        let known = said
            .split("there are: ")
            .nth(1)
            .or_else(|| said.split("there is: ").nth(1))
            .unwrap_or_else(|| panic!("{call}: {said}"));
        let known: Vec<String> = known
            .trim()
            .split(", ")
            .map(|option| format!("`{option}`"))
            .collect();
        let row = format!("| `{written}` | {} |", known.join(", "));
        assert!(page.contains(&row), "the page lacks: {row}");
    }
}

#[test]
fn what_nodes_are_told_is_what_the_page_says() {
    // The page has no room for them.
    let image = "#{ name: \"debian-12\", sha256: \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\", \
         size: 512, format: \"raw\", virtual_size: 512 }";
    let machine = format!(
        "#{{ id: \"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\", name: \"web-03\", cpus: 2, memory: 1073741824, \
         image: {image}, disk: #{{ size: 1073741824, pool: \"default\" }}, nics: [], autostart: true, ready: \"boot\" }}"
    );
    for (call, title) in catalogue::TOLD {
        let call = call.replace("MACHINE", &machine).replace("IMAGE", image);
        let text = format!(
            "scenario(\"x\");\nfn run(p) {{ {call}; }}\nfn test_it() {{ fake(\"n\"); assert_eq(play().did(\"n\"), [`{title}`]); }}"
        );
        let files = BTreeMap::from([("motd.j2".parse().expect("a path"), b"Hello".to_vec())]);
        let bundle = Bundle::new(text, files).expect("a bundle");
        let manifest =
            check_bundle("x.rhai", &bundle).unwrap_or_else(|faults| panic!("{}", faults[0]));
        let trial = Trial::new("x.rhai", &bundle, manifest).expect("it can be read");
        if let Err(fault) = trial.run("test_it") {
            panic!("{call}: {fault}");
        }
    }
    // Every word that tells a node something is there.
    let silent = ["template", "fact", "node", "changed"];
    for entry in catalogue::NODE {
        let (name, method) = (entry.name, entry.form != Form::Function);
        let written = if method {
            format!(".{name}(")
        } else {
            format!("{name}(")
        };
        assert!(
            catalogue::TOLD
                .iter()
                .any(|(call, _)| call.contains(&written))
                || (silent.contains(&name) && entry.form != Form::Method),
            "nothing is said of {written}"
        );
    }
}

#[test]
fn what_the_page_shows_of_a_mistake_is_what_is_said() {
    let text = format!(
        "scenario(\"x\");{}fn run(p) {{\n        pakage(\"webapp\").version(p.version);\n}}",
        "\n".repeat(12)
    );
    let text = text
        .replacen("\n", "\nparam(\"version\");\n", 1)
        .replacen("\n\n", "\n", 1);
    let faults = check("web-upgrade.rhai", &text).expect_err("a mistake");
    assert!(
        page().contains(&format!("error: {}\n1 error\n", faults[0])),
        "{}",
        faults[0]
    );
}
