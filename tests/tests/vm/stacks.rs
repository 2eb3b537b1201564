//! Stacks: a file of machines becomes machines, and nothing is done twice.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use muster_tests::vm::capability;
use muster_tests::{Said, signal, wait_for};
use rustix::process::Signal;

use crate::cloud::Cloud;

const HEAD: &str = r#"
[stack]
name = "shop"

[vars]
memory = "64MiB"

[env.test]
memory = "96MiB"
"#;

/// Other values, and the same stack.
const LARGE: [&str; 2] = ["--var", "memory=96MiB"];

const NETWORK: &str = r#"
[network.shop]
bridge = "br0"
pools = ["10.77.2.10-10.77.2.99/16"]
"#;

fn machine(name: &str, more: &str) -> String {
    format!(
        r#"
[vm.{name}]
image = "guest"
cpus = 1
memory = "${{memory}}"
disk = "16MiB"
networks = ["shop"]
agent = false
{more}
"#
    )
}

/// A cluster with a file.
struct Stack {
    cloud: Cloud,
    file: PathBuf,
}

impl Stack {
    fn new(cloud: Cloud) -> Result<Self> {
        cloud.furnish_empty()?;
        Ok(Self::of(cloud))
    }

    fn of(cloud: Cloud) -> Self {
        let file = cloud.up.dir.path().join("shop.toml");
        Self { cloud, file }
    }

    fn says(&self, parts: &[&str]) -> Result<()> {
        Ok(std::fs::write(
            &self.file,
            [&[HEAD], parts].concat().concat(),
        )?)
    }

    fn words(&self, verb: &str, more: &[&str]) -> Vec<String> {
        let file = self.file.to_string_lossy().into_owned();
        let first = ["vm".to_owned(), verb.to_owned(), file];
        let more = more.iter().map(|word| (*word).to_owned());
        first.into_iter().chain(more).collect()
    }

    fn run(&self, verb: &str, more: &[&str]) -> Said {
        self.cloud.up.muster(&self.words(verb, more))
    }

    fn apply(&self, more: &[&str]) -> Result<Said> {
        let said = self.run("apply", &[&["--yes"], more].concat());
        ensure!(said.code == 0, "{said:#?}\n{}", self.cloud.logs());
        Ok(said)
    }

    fn domains(&self) -> Result<Vec<String>> {
        let list = ["list", "--name"];
        let names = self.cloud.hypervisor.virsh_done(&list)?;
        let mut names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }
}

#[test]
fn a_stack_is_made_changed_and_pruned() -> Result<()> {
    if !capability("libvirt") {
        return Ok(());
    }
    let stack = Stack::new(Cloud::new()?)?;
    let cloud = &stack.cloud;
    let empty = (cloud.there()?, cloud.held()?);
    let (db, web) = (
        machine("db-01", ""),
        machine("web-01", "after = [\"db-01\"]"),
    );
    // What is after is above: the file's order is not that of the work.
    stack.says(&[NETWORK, &web, &db])?;

    stack
        .run("plan", &[])
        .exits(0)
        .shows(&["+ db-01", "to make"]);
    stack.run("plan", &["--check"]).exits(1);
    let refused = stack.run("apply", &[]).exits(6);
    refused.shows(&["nobody to ask"]);
    assert_eq!(stack.domains()?, [""; 0]);

    let made = stack.apply(&[])?;
    let place = |text: &str| made.out.find(text).with_context(|| format!("{made:#?}"));
    assert!(place("network shop is made")? < place("db-01 is up at 10.77.2.10")?);
    assert!(place("db-01 is up")? < place("web-01 is up at 10.77.2.11")?);
    assert_eq!(stack.domains()?, ["db-01", "web-01"]);
    assert_eq!(cloud.vm("db-01")?["labels"]["stack"], "shop");

    // Again, there is nothing to do.
    stack.apply(&[])?.shows(&["nothing is to be done"]);
    stack.run("plan", &["--check", "--prune"]).exits(0);

    // What is otherwise in a variable is changed, once.
    stack.apply(&LARGE)?.shows(&["memory 64MiB → 96MiB"]);
    assert_eq!(cloud.vm("web-01")?["memory"], 96 << 20);
    stack.apply(&LARGE)?.shows(&["nothing is to be done"]);

    // A line that vanished destroys nothing.
    stack.says(&[NETWORK, &db])?;
    stack.apply(&LARGE)?.shows(&["nothing is to be done"]);
    assert_eq!(stack.domains()?, ["db-01", "web-01"]);

    // A variant is another stack: it takes nothing over, and prunes nothing.
    let variant = ["--env", "test", "--yes"];
    let refused = stack.run("apply", &[&variant[..], &["--prune"]].concat());
    refused
        .exits(1)
        .shows(&["db-01", "is of the stack shop without --env"]);
    stack.says(&[&machine("test-01", "").replace("\"shop\"", "\"lan\"")])?;
    stack
        .run("apply", &[&variant[..], &["--prune"]].concat())
        .exits(0);
    assert_eq!(cloud.vm("test-01")?["labels"]["stack-env"], "test");
    assert_eq!(stack.domains()?, ["db-01", "test-01", "web-01"]);
    let said = stack.run("plan", &["--prune"]).exits(0);
    said.shows(&["! test-01", "is of the stack shop (--env test)", "- db-01"]);
    stack.says(&[])?;
    stack
        .run("apply", &[&variant[..], &["--prune", "--purge"]].concat())
        .exits(0);
    assert_eq!(stack.domains()?, ["db-01", "web-01"]);

    // A name that is somebody else's is left alone, and all else with it.
    let by_hand = ["--no-agent", "--disk", "16MiB"];
    let other = cloud.create("db-02", &by_hand);
    assert_eq!(other.code, 0, "{other:#?}");
    stack.says(&[&machine("db-02", ""), &machine("db-03", "")])?;
    let refused = stack.run("apply", &["--prune", "--yes"]).exits(1);
    refused.shows(&["db-02", "never taken over", "nothing was done"]);
    assert_eq!(stack.domains()?, ["db-01", "db-02", "web-01"]);
    cloud.well(&["vm", "destroy", "db-02", "--purge", "--yes"])?;

    // A protected one stays, and the others go.
    stack.says(&[NETWORK, &db])?;
    cloud.well(&["vm", "protect", "web-01"])?;
    stack.apply(&[&LARGE[..], &["--prune"]].concat())?;
    assert_eq!(stack.domains()?, ["db-01", "web-01"]);
    cloud.well(&["vm", "unprotect", "web-01"])?;
    let gone = stack.apply(&[&LARGE[..], &["--prune"]].concat())?;
    gone.shows(&["web-01 is destroyed; its disk is kept"]);
    assert_eq!(stack.domains()?, ["db-01"]);
    // It is not made anew as long as its disk is kept.
    stack.says(&[NETWORK, &db, &web])?;
    let kept = stack.run("apply", &[&LARGE[..], &["--yes"]].concat());
    let kept = kept.exits(1);
    kept.shows(&["muster vm undelete web-01"]);
    cloud.well(&["vm", "destroy", "web-01", "--purge", "--yes"])?;

    stack.says(&[])?;
    let gone = stack.apply(&["--prune", "--purge"])?;
    gone.shows(&["db-01 is destroyed", "network shop is removed"]);
    assert_eq!((cloud.there()?, cloud.held()?), empty);
    stack.cloud.end()
}

const CONFIGURED: &str = r#"
[stack]
name = "shop"

[vars]
text = "one"

[vm.web-01]
image = "guest"
cpus = 1
# A script has 256 MiB of stack, which a kernel with less memory in all does not
# give.
memory = "512MiB"
networks = ["lan"]
roles = ["web"]
configure = "note"
params = { text = "${text}" }
"#;

const NOTE: &str = r#"
scenario("Write a note");
param("text", #{ matches: "^[a-z]+$", help: "what is in it" });
fn run(p) {
    if p.text == "bad" { throw "no such note"; }
    file("/srv/note").content(p.text + "\n");
}
"#;

#[test]
fn machines_of_a_stack_are_configured() -> Result<()> {
    if !capability("guest") {
        return Ok(());
    }
    let stack = Stack::of(Cloud::new()?);
    let cloud = &stack.cloud;
    cloud.furnish()?;
    let note = cloud.up.dir.path().join("note.rhai");
    std::fs::write(&note, NOTE)?;
    cloud.well(&["scenario", "put", &note.to_string_lossy()])?;
    std::fs::write(&stack.file, CONFIGURED)?;
    let empty = (cloud.there()?, cloud.held()?);

    let said = stack.run("plan", &[]).exits(0);
    said.shows(&["role web, configured by note text=one"]);
    let made = stack.apply(&[])?;
    made.shows(&["web-01 is up at", "web-01 is configured by note"]);
    let there = || {
        let said = cloud.well(&[
            "run",
            "role=web",
            "--yes",
            "--json",
            "--",
            "cat",
            "/srv/note",
        ])?;
        let mut each = said.output("stdout").into_values();
        each.next().context("a note")
    };
    assert_eq!(there()?, "one\n");
    stack.apply(&[])?.shows(&["nothing is to be done"]);

    let other = ["--var", "text=other"];
    let said = stack.apply(&other)?;
    said.shows(&["configured by note text=one → note text=other"]);
    assert_eq!(there()?, "other\n");
    stack.apply(&other)?.shows(&["nothing is to be done"]);

    // What does not work is said, and tried again by whoever applies again.
    let bad = ["--var", "text=bad", "--yes"];
    for what in [
        "note text=other → note text=bad",
        "again, which did not work",
    ] {
        let said = stack.run("apply", &bad).exits(1);
        said.shows(&[
            what,
            "web-01 is up, and note did not configure it",
            "no such note",
        ]);
    }
    stack.apply(&[])?.shows(&["web-01 is configured by note"]);
    assert_eq!(there()?, "one\n");

    std::fs::write(&stack.file, "[stack]\nname = \"shop\"\n")?;
    stack.apply(&["--prune", "--purge"])?;
    assert_eq!((cloud.there()?, cloud.held()?), empty);
    stack.cloud.end()
}

#[test]
fn what_was_killed_in_the_middle_is_finished_by_the_next_one() -> Result<()> {
    if !capability("libvirt") {
        return Ok(());
    }
    let (cloud, hold) = Cloud::held_at_will()?;
    let stack = Stack::new(cloud)?;
    let (db, web) = (
        machine("db-01", ""),
        machine("web-01", "after = [\"db-01\"]"),
    );
    stack.says(&[NETWORK, &db, &web])?;
    // Once when the first machine is asked for, and once when the second is
    // being made.
    for place in ["broker.vm.intended", "agent.virt.before define"] {
        hold.hold(place);
        let words = stack.words("apply", &["--yes"]);
        let mut command = stack.cloud.up.command(&words);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let came = hold.came(place);
        signal(child.id(), Signal::KILL)?;
        child.wait()?;
        came.with_context(|| stack.cloud.logs())?;
        hold.release(place);
    }
    let said = stack.apply(&[])?;
    said.shows(&["shop is as"]);
    assert_eq!(stack.domains()?, ["db-01", "web-01"]);
    let network = stack.cloud.well(&["network", "show", "shop", "--json"])?;
    let network: serde_json::Value = serde_json::from_str(&network.out)?;
    assert_eq!(network["used"], 2);
    stack.apply(&[])?.shows(&["nothing is to be done"]);

    stack.says(&[])?;
    stack.apply(&["--prune", "--purge"])?;
    wait_for("nothing to be left", || {
        (stack.domains().ok()?.is_empty()).then_some(())
    })?;
    stack.cloud.end()
}
