//! A `main` that waits for a node.

use muster_protocol::run::Gate;

use super::*;

const MEETING: &str = r#"
scenario("Waits for a machine");
param("name");
param("within", #{ default: "10m" });
target("role=web");
fn change(p) { }
fn back(p) { }
fn main(p) {
    on(targets(), "change").undo("back");
    contact(p.name, p.within);
    "met"
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_waited_for_is_met_when_it_comes() {
    let mut records = fleet();
    records.push(record(6, assignment("new-1", &["new"], &[])));
    let world = World::new(records).await;
    let shelf = Shelf::new(world.inventory.clone(), &[("meet", MEETING)]);
    world.engine().conduct_with(Arc::new(shelf.clone()));
    let mut nodes = Vec::new();
    for serial in 1..=5 {
        nodes.push(world.node(serial, Script::Functions(HashMap::new())).await);
    }
    let mut play = Play {
        world,
        shelf,
        nodes,
        epoch: 1,
    };
    let run = play.begin("meet", json!({"name": "new-1"})).await;
    let waits = |view: &RunView| match &view.brief.waits {
        Some(Gate::Moment {
            node: Some(node), ..
        }) => node.as_str() == "new-1",
        _ => false,
    };
    play.until(run, "it waits for the node", waits).await;
    play.restart().await;
    play.until(run, "it waits for the node again", waits).await;
    let new = play.world.node(6, Script::Functions(HashMap::new())).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    assert_eq!(new.log.lock().unwrap().executed.len(), 0);

    // One that never comes: what was done is taken back.
    let asked = json!({"name": "new-2", "within": "300ms"});
    let run = play.begin("meet", asked).await;
    let view = play.ended(run).await;
    let main = view.main.expect("there");
    let error = main.error.unwrap_or_default();
    assert!(
        error.contains("new-2 was not heard within 300ms"),
        "{error}"
    );
    let undone: Vec<&str> = main.undo.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(undone, ["back"]);
}
