//! What a `main` is not given: more time, and more than it can hold.

use muster_protocol::ids::Serial;
use muster_protocol::run::NodeResult;

use super::super::super::flow::LONGEST;
use super::*;

const WAITS: &str = r#"
scenario("Waits for what does not come");
param("how");
target("role=web");
fn change(p) { }
fn back(p) { }
fn main(p) {
    on(targets(), "change").undo("back");
    if p.how == "ask" { ask("Go on?"); } else { sleep("40d"); }
    on(targets(), "change");
}
"#;

impl Play {
    /// A run that waits in its `main` and has so much of its time left, or
    /// more where this machine is slow.
    async fn waits_near_its_end(&self, how: &str, mut left: Duration) -> RunId {
        loop {
            let params = json!({ "how": how });
            let frozen = self.shelf.frozen("waits", params, RunId::random());
            let mut frozen = frozen.expect("frozen");
            frozen.spec.created = muster_protocol::units::after(Timestamp::now(), left)
                .checked_sub(LONGEST)
                .expect("a time");
            let run = self.create(frozen).await;
            let waits = |view: &RunView| {
                let open = view.main.as_ref().and_then(|main| main.calls.last());
                view.brief.state.is_final() || open.is_some_and(|call| call.name == how)
            };
            let view = self.until(run, "it waits", waits).await;
            let began = view.main.is_some_and(|main| {
                let last = main.calls.last();
                last.is_some_and(|call| call.name == how)
            });
            if began {
                return run;
            }
            left *= 3;
            assert!(left < PATIENCE, "it never came so far");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_main_that_waits_ends_when_its_time_is_over_and_is_taken_back() {
    let mut play = Play::new(fleet(), &[("waits", WAITS)]).await;
    for how in ["ask", "sleep"] {
        let run = play.waits_near_its_end(how, Duration::from_secs(2)).await;
        // Nobody says anything to it.
        let view = play.ended(run).await;
        assert_eq!(view.brief.state, RunPhase::Failed, "{view:#?}");
        let main = view.main.as_ref().expect("there");
        let error = main.error.as_deref().unwrap_or_default();
        assert!(error.contains("the run is older than 31 days"), "{error}");
        let undone: Vec<&str> = main.undo.iter().map(|u| u.name.as_str()).collect();
        assert_eq!(undone, ["back"]);
        assert_eq!(calls(&view).len(), 2, "{view:#?}");
    }
    // One whose time ran out while there was no broker.
    let run = play.waits_near_its_end("ask", Duration::from_secs(2)).await;
    play.restart().await;
    assert_eq!(play.ended(run).await.brief.state, RunPhase::Failed);
}

const VALUES: &str = r#"
scenario("Asks for what nodes return");
target("role=web");
fn look(p) { }
fn main(p) {
    let r = on(targets().limit(2), "look");
    let all = targets().names;
    #{ large: r[all[0]].value, small: r[all[1]].value, values: r.values.len() }
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_for_main_stands_there_by_where_it_is() {
    let play = Play::new(fleet(), &[("values", VALUES)]).await;
    let returns = |value: Value| {
        let mut result = NodeResult::new(Serial(0), Outcome::Succeeded, "");
        result.set_value(value);
        Script::Returns(result)
    };
    let most = muster_protocol::note::MAX_VALUE;
    // Quotation marks count.
    *play.nodes[0].script.lock().unwrap() = returns("x".repeat(most - 1).into());
    *play.nodes[1].script.lock().unwrap() = returns("y".repeat(most - 2).into());
    let run = play.begin("values", json!({})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    let main = view.main.expect("there");
    let value = main.value.expect("a value");
    let step = main.calls[0].steps[0].run;
    let large = json!({"bytes": most + 1, "run": step});
    assert_eq!(value["large"], large);
    assert_eq!(value["small"].as_str().map(str::len), Some(most - 2));
    assert_eq!(value["values"], 2);
}
