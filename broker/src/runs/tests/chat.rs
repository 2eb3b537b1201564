//! Runs that somebody asks for in a chat network: what is told of them, and
//! what they come to.

use muster_protocol::chat::Proof;
use muster_protocol::run::Target;

use super::*;
use crate::chat::outputs::Ran as _;
use crate::chat::result;

fn asked_in_chat() -> Caller {
    Caller {
        door: Door::Irc,
        origin: Origin::Chat {
            network: "ops".parse().expect("a name"),
            account: Some("ana".into()),
            nick: "ana_".into(),
            channel: Some("#ops".parse().expect("a channel")),
            sight: None,
            line: "m1".into(),
            proof: Proof::Tag,
        },
        ..caller()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asked_in_chat_is_told_there_and_the_answers_are_grouped() {
    let world = World::new(webs(12)).await;
    let mut nodes = Vec::new();
    for serial in 1..=11 {
        let script = match serial {
            7 => Script::Chunks {
                chunks: vec![b"other\n".to_vec(), b"lines\n".to_vec()],
                lost: Vec::new(),
            },
            8 => Script::Quick(Outcome::Failed, b"no such file\n".to_vec()),
            _ => quick(),
        };
        nodes.push(world.node(serial, script).await);
    }
    let frozen = world.frozen(json!({ "predicate": "name=*" })).into_inner();
    let who = asked_in_chat();
    let action = Action::CreateRun(Box::new(RunAsk::of(&frozen)));
    let frozen = authorize(&FixedRoles, &who, action, frozen).expect("allowed");
    let run = world.engine().create(frozen).await.expect("created");
    let run = run.brief.id;
    world.ended(run).await;
    let told = loop {
        let told = world.told().await;
        if told.iter().any(|event| event.kind == "run.ended") {
            break told;
        }
        sleep(Duration::from_millis(20)).await;
    };
    let place = json!({
        "network": "ops", "channel": "#ops", "person": { "nick": "ana_", "account": "ana" }
    });
    let of_run: Vec<&ClusterEvent> = told
        .iter()
        .filter(|event| event.kind.starts_with("run."))
        .collect();
    let kinds: Vec<&str> = of_run.iter().map(|event| event.kind.as_str()).collect();
    assert!(
        kinds.contains(&"run.begun") && kinds.contains(&"run.ended"),
        "{kinds:?}"
    );
    for event in &of_run {
        assert_eq!(event.fields["chat"], place, "{event:?}");
    }
    let begun = of_run.iter().find(|event| event.kind == "run.begun");
    assert_eq!(begun.expect("it began").fields["waited"], json!(false));
    // Nobody else's run has a place, also the retry of this one.
    let (view, outputs) = world.engine().came_to(run).await.expect("it is known");
    let say = result::ended(&view, &outputs, None);
    let rest: Vec<&str> = say.lines[1..].iter().map(String::as_str).collect();
    assert!(
        say.lines[0].contains("true: failed; 10 succeeded, 1 failed, 1 unreachable"),
        "{say:?}"
    );
    assert_eq!(rest[0], "9 nodes  hello");
    assert!(rest[1].starts_with("web-8 failed"), "{rest:?}");
    assert_eq!(rest[2], "  no such file");
    assert!(rest[3].starts_with("web-12 unreachable"), "{rest:?}");
    assert_eq!(rest[4..], ["web-7", "  other", "  lines"]);
    let state = world.engine().state(run).await.expect("it is there");
    let targets = vec![Target::new(Serial(1), "web-1".parse().expect("a name"))];
    let by = (&"ana".parse().expect("a name"), Door::Cli);
    let again = crate::runs::request::retry(&state, targets, RunId::random(), by, Timestamp::now());
    let action = Action::CreateRun(Box::new(RunAsk::of(&again)));
    let again = authorize(&FixedRoles, &caller(), action, again).expect("allowed");
    let again = world
        .engine()
        .create(again)
        .await
        .expect("created")
        .brief
        .id;
    world.ended(again).await;
    let state = world.engine().state(again).await.expect("it is there");
    assert_eq!(state.spec.chat, None);
}
