//! A part that was cut while it was written down, of a run that is cancelled.

use super::*;
use muster_protocol::names::PrincipalName;
use muster_protocol::run::{PartOf, RunSpec, StepCall, Wanted};
use muster_scenarios::durable::{HostCall, Step, StepOptions};

use crate::runs::journal::Journal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_was_cut_ends_when_the_whole_is_cancelled() {
    let mut play = Play::new(fleet(), &[("ask", ASKING)]).await;
    let (run, child) = (RunId::random(), RunId::random());
    let frozen = play.shelf.frozen("ask", json!({}), run).expect("frozen");
    let FrozenRun { spec, targets, .. } = frozen.whole(caller().role);
    let nodes: muster_protocol::nodeset::NodeSet = targets.iter().map(|t| t.serial).collect();
    let step = Step {
        nodes: nodes.clone(),
        function: "change".parse().expect("a name"),
        params: serde_json::Map::new(),
        options: StepOptions::default(),
        undo: None,
    };
    let part = RunSpec {
        id: child,
        function: step.function.clone(),
        main: None,
        part_of: Some(PartOf {
            run,
            call: 0,
            part: 0,
            undo: false,
        }),
        ..spec.clone()
    };
    let (at, by): (_, PrincipalName) = (Timestamp::now(), "bruno".parse().expect("a name"));
    let whole = [
        RunEvent::Created {
            spec: Box::new(spec),
        },
        RunEvent::Targets { nodes: targets },
        RunEvent::Called {
            number: 0,
            call: "on".into(),
            hash: HostCall::On(step.clone()).hash().to_string(),
            line: Some(7),
            wanted: Wanted::Steps {
                steps: vec![StepCall {
                    run: child,
                    function: step.function,
                    nodes,
                }],
            },
            at,
        },
        RunEvent::Cancelling { by, at },
    ];
    let begun = RunEvent::Created {
        spec: Box::new(part),
    };
    {
        let shared = &play.engine().0;
        let lease = shared.bus.lease().clone();
        let journal = |run| Journal::new(shared.js.clone(), lease.clone(), play.epoch, run, 0);
        let (mut of_whole, mut of_part) = (journal(run), journal(child));
        of_part.append(&begun).await.expect("written");
        for event in &whole {
            of_whole.append(event).await.expect("written");
        }
    }
    play.restart().await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Cancelled, "{view:#?}");
    let part = play.ended(child).await;
    assert_eq!(part.brief.state, RunPhase::Failed, "{part:#?}");
    assert!(
        part.results
            .iter()
            .all(|node| node.outcome == Some(Outcome::Skipped)),
        "{part:#?}"
    );
    assert_eq!(play.called(), Vec::<String>::new());
}
