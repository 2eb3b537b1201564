//! What is said of machines.

use insta::assert_snapshot;
use muster_protocol::api::ClusterEvent;
use serde_json::{Value, json};

use super::*;

fn event(kind: &str, text: &str, data: &Value) -> ClusterEvent {
    let mut event = ClusterEvent::own("1".into(), kind, "web-03", text.into());
    event.fields = data.as_object().cloned().unwrap_or_default();
    event
}

fn shown(say: &Say) -> String {
    let about = say.about.as_deref().unwrap_or("-");
    let lines = say.lines.join("\n");
    format!("[{:?}/{:?} {about}]\n{lines}", say.urgency, say.tone)
}

const RUN: &str = "5t0w456789abcdefghjkmnpqrs";

#[test]
fn whoever_asked_is_told_the_end() {
    let up = event(
        "vm.created",
        "machine web-03 is up at 192.0.2.57 on hv-2",
        &json!({ "run": RUN, "seconds": 41 }),
    );
    assert_snapshot!(shown(&ended(&up)), @r"
    [Reply/Good 5t0w]
    web-03 is up at 192.0.2.57 on hv-2 (41 s)
    ");
    let failed = event(
        "vm.failed",
        "machine web-03 was not made: web-03 is not up: it was not heard; the end of its console: \n  panic\u{1b}[2J: no root\n  rebooting",
        &json!({ "run": RUN, "left": "nothing" }),
    );
    assert_snapshot!(shown(&ended(&failed)), @r"
    [Reply/Bad 5t0w]
    web-03 was not made, and nothing of it is left: web-03 is not up: it was not heard; the end of its console: 
      panic\x1b[2J: no root
      rebooting
    ");
    let doubtful = event(
        "alarm.vm-doubtful",
        "it cannot be said whether machine web-03 is on hv-2: the broker ended",
        &json!({ "run": RUN }),
    );
    assert_snapshot!(shown(&ended(&doubtful)), @r"
    [Reply/Bad 5t0w]
    it cannot be said whether machine web-03 is on hv-2: the broker ended
    ");
}

#[test]
fn whoever_had_a_machine_configured_hears_what_came_of_it() {
    let chat = json!({ "network": "ops", "channel": "#ops" });
    let data = json!({ "run": RUN, "chat": chat });
    let well = event(
        "vm.configured",
        "machine web-03 is configured by deploy",
        &data,
    );
    assert!(asked_at(&well).is_some());
    assert_snapshot!(shown(&ended(&well)), @r"
    [Reply/Good 5t0w]
    web-03 is configured by deploy
    ");
    let text = "machine web-03 is up, and deploy did not configure it: ana (person) may not run anything; muster vm provision web-03 tries it again";
    let failed = event("vm.configure-failed", text, &data);
    assert!(asked_at(&failed).is_some());
    assert_snapshot!(shown(&ended(&failed)), @r"
    [Reply/Bad 5t0w]
    web-03 is up, and deploy did not configure it: ana (person) may not run anything; muster vm provision web-03 tries it again
    ");
}

#[test]
fn machines_that_were_asked_for_together_are_one_answer() {
    let of = |up: &[&str], failed: &[&str], open: usize| {
        let batch = json!({
            "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "up": up, "failed": failed, "open": open,
        });
        let data = json!({ "run": RUN, "seconds": 73, "batch": batch });
        shown(&ended(&event("vm.created", "machine web-03 is up", &data)))
    };
    assert_snapshot!(of(&["web-01"], &[], 2), @r"
    [Progress/Plain 5t0w]
    1 of 3 machines are up
    ");
    assert_snapshot!(of(&["web-01", "web-02", "web-03"], &[], 0), @r"
    [Reply/Good 5t0w]
    3 machines are up: web-01 … web-03 (73 s)
    ");
    assert_snapshot!(of(&["web-01"], &["web-02", "web-03"], 0), @r"
    [Reply/Bad 5t0w]
    1 of 3 machines are up: web-01 (73 s)
    not made: web-02, web-03; !vm list --deleted says why
    ");
    assert_snapshot!(of(&[], &["web-02"], 0), @r"
    [Reply/Bad 5t0w]
    none of 1 machines was made
    not made: web-02; !vm list --deleted says why
    ");
}

#[test]
fn only_the_broker_says_where_somebody_is_told() {
    let chat = json!({ "network": "ops", "channel": "#ops", "person": { "nick": "ana" } });
    let mut own = event("vm.created", "x", &json!({ "chat": chat }));
    assert_eq!(asked_at(&own).unwrap().channel.unwrap().as_str(), "#ops");
    own.source = "ci".into();
    assert_eq!(asked_at(&own), None);
    // An alarm is for everybody, and its asker is told as well.
    let alarm = event("alarm.vm-doubtful", "x", &json!({ "asker": chat }));
    assert!(asked_at(&alarm).is_some());
    for kind in ["vm.drift", "vm.cordon", "image.added"] {
        assert_eq!(asked_at(&event(kind, "x", &json!({ "chat": chat }))), None);
    }
}

fn run(scenario: &str, node: &Value) -> RunView {
    let mut result = json!({ "node": "hv-2", "serial": 7, "outcome": "succeeded" });
    for (name, value) in node.as_object().unwrap() {
        result[name] = value.clone();
    }
    let value = json!({
        "id": RUN, "short": "5t0w", "principal": "ana", "door": "irc", "title": scenario,
        "scenario": scenario, "predicate": "name=hv-2", "state": "succeeded",
        "nodes": 1, "summary": {}, "created": "2026-11-21T10:00:00Z", "params": {}, "batches": 1,
        "options": { "timeout": "5m", "deliver_within": "15s", "output_bytes": 1024 },
        "results": [result]
    });
    serde_json::from_value(value).unwrap()
}

fn of() -> OfMachine {
    OfMachine {
        name: "web-03".parse().unwrap(),
        is_one_of_many: false,
    }
}

#[test]
fn what_a_machine_says_is_cut_and_moves_nothing() {
    let said = |node: Value| shown(&super::shown(&run("vm-exec", &node), &of(), None));
    let exec = |exit: i32, out: &str, err: &str| {
        said(json!({ "value": { "exit": exit, "stdout": out, "stderr": err } }))
    };
    assert_snapshot!(exec(0, "6.1.0\n", ""), @r"
    [Reply/Good 5t0w]
    web-03  6.1.0
    ");
    assert_snapshot!(exec(0, "", ""), @r"
    [Reply/Good 5t0w]
    web-03: done, and it printed nothing
    ");
    assert_snapshot!(exec(2, "a\u{202e}b\r\nPRIVMSG #ops :x\n", "no\u{7} such file\n"), @r"
    [Reply/Bad 5t0w]
    web-03: exit code 2
      a\u{202e}b
      PRIVMSG #ops :x
      no\x07 such file
    ");
    let long = exec(0, &"line\n".repeat(1_000), "");
    assert!(long.ends_with("+970 more lines"), "{long}");
    assert!(long.lines().count() < 40, "{long}");
    let console = said(json!({ "value": format!("{}login:", "boot\n".repeat(100)) }));
    assert!(
        console.contains("the end of the console of web-03:"),
        "{console}"
    );
    assert!(console.ends_with("  login:"), "{console}");
    assert_snapshot!(said(json!({ "value": "" })), @r"
    [Reply/Plain 5t0w]
    web-03 has written nothing to its console
    ");
    assert_snapshot!(said(json!({ "value_bytes": 900_000 })), @r"
    [Reply/Plain 5t0w]
    web-03: what it said is too large to be shown here
    ");
}

#[test]
fn each_kind_is_a_sentence_where_it_is_routed_to() {
    let known = crate::chat::sentences::Known::default();
    let settings = crate::chat::settings::Settings::default();
    for (kind, text) in crate::events::kinds::KINDS {
        let of_machines = ["vm.", "image.", "network.", "alarm.vm-"];
        if !of_machines.iter().any(|part| kind.starts_with(part)) {
            continue;
        }
        let event = event(kind, &format!("{text}\nPRIVMSG #ops :\u{1b}x"), &json!({}));
        let said = crate::chat::sentences::of(&event, &known, &settings, false).unwrap();
        assert!(
            said.lines[0].starts_with(text.split(';').next().unwrap()),
            "{kind}: {said:?}"
        );
        for line in &said.lines {
            assert!(!line.contains(['\u{1b}', '\n', '\r']), "{kind}: {line:?}");
        }
    }
    let event = event(
        "vm.failed",
        "machine web-03 was not made: x\n  panic",
        &json!({}),
    );
    assert_snapshot!(shown(&super::of(&event)), @r"
    [News/Bad -]
    machine web-03 was not made: x
      panic
    ");
}
