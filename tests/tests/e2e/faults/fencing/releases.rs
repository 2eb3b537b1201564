//! Agent releases are the cluster's, whichever broker is active.

use muster_tests::release::version;
use muster_tests::wait_for;
use rustix::process::Signal;

use super::pair::Pair;

const NEWER: &str = "0.99.1";

fn version_of(pair: &Pair, name: &str) -> Option<String> {
    let list = pair.muster(&["nodes", "--json"]).exits(0).list();
    let node = list.into_iter().find(|node| node["name"] == name)?;
    Some(node["version"].as_str()?.to_owned())
}

#[test]
fn a_release_that_one_broker_was_given_is_installed_by_the_other() {
    let mut pair = Pair::start(&[]);
    for node in ["a-1:n", "a-2:n"] {
        pair.add_node_of_its_own(node);
    }
    let newer = version(pair.dir.path(), "muster-agent", NEWER).expect("made");
    let newer = newer.to_str().expect("a plain path");
    let upgrade = |pair: &Pair, node: &str| {
        let args = [
            "agent", "upgrade", node, "--binary", newer, "--yes", "--json",
        ];
        pair.muster(&args).exits(0)
    };
    upgrade(&pair, "a-1").says(&["uploading"]);
    pair.end_broker("a", Signal::KILL);
    pair.b.wait_active();
    let releases = pair.muster(&["agent", "releases"]).exits(0);
    assert!(releases.out.contains(NEWER), "{releases:?}");
    // The other one has it, and the node gets it there.
    let said = upgrade(&pair, "a-2");
    assert!(!said.err.contains("uploading"), "{said:?}");
    for node in ["a-1", "a-2"] {
        wait_for(&format!("{node} to run it"), || {
            version_of(&pair, node).filter(|version| version == NEWER)
        })
        .unwrap_or_else(|e| panic!("{e}: {}", pair.agent_log(node)));
    }
    pair.works(2);
}
