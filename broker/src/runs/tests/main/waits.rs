//! That a run waits is seen in lists and told to the cluster.

use super::*;
use muster_protocol::api::ClusterEvent;

const GATED: &str = r#"
scenario("Waits for others, a lock and an answer");
target("role=web");
approvals(1);
lock("deploy");
fn main(p) {
    ask("Go\x07 on?", ["yes", "no"]);
}
"#;

impl Play {
    /// The waits that were told, once there are so many.
    async fn waits(&self, many: usize) -> Vec<ClusterEvent> {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let told = self.world.told().await;
            let waits: Vec<ClusterEvent> =
                told.into_iter().filter(|e| e.kind == "run.waits").collect();
            if waits.len() >= many {
                return waits;
            }
            assert!(tokio::time::Instant::now() < end, "{waits:#?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn approve(&self, run: RunId) {
        let by = crate::authz::Caller {
            principal: "bruno".parse().expect("a name"),
            ..caller()
        };
        let run = authorize(&FixedRoles, &by, Action::CancelRun, run).expect("allowed");
        self.engine()
            .wish(run, Wish::Approve)
            .await
            .expect("granted");
    }

    fn waits_for(&self, run: RunId) -> Option<&'static str> {
        let (runs, _) = self.engine().list(None, 100, false).expect("listed");
        let brief = runs.iter().find(|brief| brief.id == run);
        brief.expect("it is there").waits_for()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_beginning_of_a_wait_is_told_once_with_what_to_type() {
    let mut play = Play::new(fleet(), &[("gated", GATED)]).await;
    let first = play.begin("gated", json!({})).await;
    let second = play.begin("gated", json!({})).await;
    let told = play.waits(2).await;
    let short = &play.engine().show(first).await.expect("shown").brief.short;
    let one = told.iter().find(|e| e.subject == *short).expect("told");
    assert_eq!(
        one.text,
        format!(
            "run {short} (gated v1) waits for 1 approval by others than ana; muster runs approve {short}"
        )
    );
    let fields = Value::Object(one.fields.clone());
    assert_eq!(
        fields,
        json!({
            "run": first, "short": short, "title": "gated v1", "principal": "ana",
            "for": "approvals", "who": "whoever may run it, but for ana", "needed": 1, "given": [],
            "command": format!("muster runs approve {short}"),
        })
    );
    assert_eq!(play.waits_for(first), Some("approvals"));

    play.approve(first).await;
    play.asks(first).await;
    assert_eq!(play.waits_for(first), Some("answer"));
    play.approve(second).await;
    let told = play.waits(4).await;
    let of = |what: &str| {
        let one = told.iter().find(|event| event.fields["for"] == what);
        one.unwrap_or_else(|| panic!("{what}: {told:#?}"))
    };
    let asked = of("answer");
    assert_eq!(asked.fields["question"], "Go\\x07 on?");
    assert_eq!(asked.fields["answers"], json!(["yes", "no"]));
    assert!(
        asked.text.ends_with(&format!(
            "asks: Go\\x07 on? (yes, no); muster runs answer {short} TEXT"
        )),
        "{}",
        asked.text
    );
    let held = of("lock");
    assert_eq!(held.fields["run"], json!(second));
    let why = held.fields["why"].as_str().expect("a text");
    assert_eq!(
        why,
        format!("the lock `deploy` is held by run {short} of ana")
    );
    assert_eq!(play.waits_for(second), Some("lock"));

    // Another broker does not tell it again.
    play.restart().await;
    play.asks(first).await;
    play.until(second, "it waits", |view| view.brief.waits.is_some())
        .await;
    play.answer(first, "yes").await.expect("taken");
    assert_eq!(play.ended(first).await.brief.state, RunPhase::Succeeded);
    play.asks(second).await;
    assert_eq!(play.waits(5).await.len(), 5);
    assert_eq!(play.waits_for(first), None);
}
