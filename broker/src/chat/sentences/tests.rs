use std::collections::BTreeMap;
use std::time::Duration;

use insta::assert_snapshot;
use muster_protocol::api::{ClusterEvent, HookKind, Say};
use serde_json::{Map, Value, json};

use super::{Known, of};
use crate::chat::alarms::table::{Came, How, Told};
use crate::chat::builds::results::Ended;
use crate::chat::settings::Settings;

fn event(kind: &str, subject: &str, text: &str, data: Value) -> ClusterEvent {
    let mut event = ClusterEvent::own("1".into(), kind, subject, text.into());
    event.fields = data.as_object().cloned().unwrap_or_default();
    event
}

/// As it is read, with how it is meant.
fn shown(say: Option<Say>) -> String {
    let Some(say) = say else {
        return "(nothing)".to_owned();
    };
    let head = format!("{:?}/{:?}", say.urgency, say.tone);
    let link = say
        .link
        .map(|link| format!("\n-> {link}"))
        .unwrap_or_default();
    format!("[{head}]\n{}{link}", say.lines.join("\n"))
}

fn said(event: &ClusterEvent) -> String {
    shown(of(event, &Known::default(), &Settings::default(), false))
}

fn said_of(event: &ClusterEvent, how: How, firing: usize) -> String {
    let told = Told {
        number: 31,
        how,
        firing,
        lasted: Duration::from_secs(750),
    };
    let known = Known {
        alarm: Some(Came::Told(told)),
        build: None,
    };
    shown(of(event, &known, &Settings::default(), false))
}

/// An event of a webhook, from what a product really sends.
fn hook(kind: HookKind, event: &str, body: &str) -> ClusterEvent {
    let mut headers = axum::http::HeaderMap::new();
    for name in ["x-github-event", "x-gitea-event"] {
        headers.insert(name, event.parse().unwrap());
    }
    let body = serde_json::from_str(body).unwrap();
    let drafts = crate::hooks::payload::read(kind, &headers, body).unwrap();
    let draft = drafts.into_iter().next().unwrap();
    let mut event = ClusterEvent::own("1".into(), &draft.kind, &draft.subject, draft.text);
    event.fields = draft.data;
    event
}

#[test]
fn a_push_as_products_send_it() {
    let github = hook(
        HookKind::Github,
        "push",
        include_str!("../../hooks/fixtures/github-push.json"),
    );
    assert_snapshot!(said(&github));
    let gitlab = hook(
        HookKind::Gitlab,
        "",
        include_str!("../../hooks/fixtures/gitlab-push.json"),
    );
    assert_snapshot!(said(&gitlab));
}

#[test]
fn alarms_as_products_send_them() {
    let alerts = hook(
        HookKind::Alertmanager,
        "",
        include_str!("../../hooks/fixtures/alertmanager.json"),
    );
    assert_snapshot!(said_of(&alerts, How::New, 2));
    let grafana = hook(
        HookKind::Grafana,
        "",
        include_str!("../../hooks/fixtures/grafana.json"),
    );
    assert_snapshot!(said_of(&grafana, How::Again, 1));
}

fn push(data: Value) -> ClusterEvent {
    let mut all = Map::from_iter([
        ("repository".to_owned(), json!("acme/webapp")),
        ("pusher".to_owned(), json!("bruno")),
        ("branch".to_owned(), json!("main")),
    ]);
    all.extend(data.as_object().cloned().unwrap_or_default());
    event("git.push", "acme/webapp", "", Value::Object(all))
}

#[test]
fn pushes_tags_and_requests() {
    let commits: Vec<Value> = (0..17)
        .map(|n| json!({ "id": n.to_string(), "message": format!("Change {n}\n\nWhy") }))
        .collect();
    let many =
        push(json!({ "commits": commits, "commits_total": 17, "url": "https://git.example/c/1" }));
    let hostile = push(json!({
        "pusher": "m\u{202e}allory", "branch": "x\r\nQUIT",
        "commits": [{ "message": "\r\nPRIVMSG #ops :!cmd * -- id" }, { "message": "\u{1}ACTION x\u{1}\u{3}04red" }],
        "forced": true, "url": "javascript:alert(1)"
    }));
    let of_change = |action: &str| {
        let data = json!({ "repository": "acme/webapp", "pusher": "ana", "action": action, "number": "12",
            "title": "Say which tier a price came from", "url": "https://git.example/12" });
        event("git.change", "acme/webapp", "", data)
    };
    let tag = json!({ "repository": "acme/webapp", "pusher": "ana", "tag": "v1.4.2" });
    let gone = json!({ "repository": "acme/webapp", "pusher": "ana", "branch": "old" });
    let all: Vec<String> = [
        many,
        hostile,
        push(json!({ "created": true, "commits": [], "commits_total": 0 })),
        event("git.tag", "acme/webapp", "", tag),
        event("git.deleted", "acme/webapp", "", gone),
        of_change("merged"),
        of_change("changed"),
    ]
    .iter()
    .map(said)
    .collect();
    assert_snapshot!(all.join("\n\n"));
}

#[test]
fn builds_that_are_news() {
    let build = |result: &str| {
        let data = json!({ "repository": "acme/web", "name": "test", "number": "812", "branch": "main",
            "result": result, "note": "api::prices", "url": "https://ci.example/812" });
        event("build.finished", "acme/web", "", data)
    };
    let failed = |was_fine| Some(Ended::Failed { was_fine });
    let mut all = Vec::new();
    for (result, ended) in [
        ("failure", failed(None)),
        ("failure", failed(Some(true))),
        ("timed_out", failed(Some(false))),
        ("success", Some(Ended::Fixed)),
        ("success", Some(Ended::Fine)),
        ("cancelled", Some(Ended::Neither)),
    ] {
        let known = Known {
            alarm: None,
            build: ended,
        };
        let build = build(result);
        all.push(shown(of(&build, &known, &Settings::default(), false)));
        all.push(shown(super::builds::finished(&build, ended, true)));
    }
    let begun = event(
        "build.started",
        "web",
        "",
        json!({ "name": "web", "number": "813" }),
    );
    for exactly in [false, true] {
        let known = Known::default();
        all.push(shown(of(&begun, &known, &Settings::default(), exactly)));
    }
    assert_snapshot!(all.join("\n\n"));
}

#[test]
fn nodes_that_go_and_come() {
    let names: Vec<String> = (1..=37).map(|n| format!("web-{n:02}")).collect();
    let burst = json!({ "count": 37, "within": 10, "names": names, "common": { "zone": "gva2", "tier": "1" },
        "roles": { "web": 25, "hypervisor": 12 } });
    let one = json!({ "count": 1, "names": ["web-02"], "roles": { "web": 1 }, "common": { "zone": "gva2" } });
    let all = [
        said_of(
            &event("node.down", "37 nodes", "", burst.clone()),
            How::New,
            37,
        ),
        said_of(&event("node.up", "37 nodes", "", burst), How::Over, 0),
        said_of(&event("node.down", "web-02", "", one.clone()), How::New, 1),
        said_of(&event("node.up", "web-02", "", one), How::Fewer(1), 3),
        // As it was told before it had fields.
        said(&event("node.down", "web-02", "web-02 is down", json!({}))),
    ];
    assert_snapshot!(all.join("\n\n"));
}

#[test]
fn runs_from_elsewhere_and_ones_that_were_asked_for() {
    let run = "0123456789abcdefghjkmnpqrs";
    let life = |more: Value| {
        let mut data = Map::from_iter([
            ("run".to_owned(), json!(run)),
            ("title".to_owned(), json!("deploy version=1.4.2")),
            ("principal".to_owned(), json!("ana")),
            ("door".to_owned(), json!("cli")),
            ("nodes".to_owned(), json!(12)),
        ]);
        data.extend(more.as_object().cloned().unwrap_or_default());
        Value::Object(data)
    };
    let outcomes = BTreeMap::from([("succeeded", 8), ("failed", 1), ("skipped", 3)]);
    let begun = event(
        "run.begun",
        "8k2d",
        "",
        life(json!({ "batches": 4, "waited": true })),
    );
    let far = event(
        "run.progress",
        "8k2d",
        "",
        life(json!({ "done": 6, "outcomes": { "succeeded": 6 } })),
    );
    let ill = event(
        "run.progress",
        "8k2d",
        "",
        life(json!({ "done": 6, "outcomes": outcomes })),
    );
    let ended = event(
        "run.ended",
        "8k2d",
        "deploy: failed, 8 succeeded, 1 failed, 3 skipped",
        life(json!({ "state": "failed", "outcomes": outcomes })),
    );
    let waits = event(
        "run.waits",
        "8k2d",
        "run 8k2d (deploy) waits for 1 approval by others than ana; muster runs approve 8k2d",
        life(json!({ "for": "approvals" })),
    );
    let failed = event(
        "run.step-failed",
        "8k2d",
        "deploy: upgrade failed on web-15: deploy.rhai:14: package webapp: held by apt",
        life(json!({})),
    );
    let mut all: Vec<String> = [&begun, &far, &ill, &ended, &waits, &failed]
        .into_iter()
        .map(said)
        .collect();
    all.push(shown(super::runs::begun(&begun)));
    let mut first = waits.clone();
    first.fields.insert("first".into(), json!(true));
    for waits in [&waits, &first] {
        all.push(shown(super::runs::waits_since(waits, &Settings::default())));
    }
    let at_once = event("run.begun", "8k2d", "", life(json!({ "waited": false })));
    all.push(shown(super::runs::begun(&at_once)));
    assert_snapshot!(all.join("\n\n"));
}

#[test]
fn alarms_in_all_their_states() {
    let disk = |kind: &str| {
        event(
            kind,
            "DiskFull",
            "",
            json!({ "severity": "warning", "alarms": [
            { "fingerprint": "a", "name": "DiskFull", "instance": "web-1", "summary": "/ is 97 % full" }
        ] }),
        )
    };
    let several = event(
        "alarm.firing",
        "Load",
        "",
        json!({ "alarms":
            (0..9).map(|n| json!({ "name": "Load", "instance": format!("web-{n}"), "summary": "much\u{7}" })).collect::<Vec<_>>()
        }),
    );
    let own = event(
        "alarm.space",
        "runs",
        "room for runs gets little: 91 % are taken",
        json!({}),
    );
    let acked = event(
        "alarm.acked",
        "31",
        "ana looks after alarm 31: DiskFull",
        json!({}),
    );
    let all = [
        said_of(&disk("alarm.firing"), How::New, 1),
        said_of(&disk("alarm.firing"), How::Again, 1),
        said_of(&disk("alarm.resolved"), How::Over, 0),
        said_of(&several, How::More(2), 9),
        said(&several),
        said_of(&own, How::New, 0),
        said_of(&own, How::Again, 0),
        said(&acked),
        said(&event("org.example.done", "x", "", json!({}))),
    ];
    assert_snapshot!(all.join("\n\n"));
}

/// As `muster` or a script of somebody's own puts them in.
#[test]
fn alarms_that_are_about_nothing_named_are_sentences_all_the_same() {
    let alarm = |alarms: Value| event("alarm.firing", "", "", json!({ "alarms": alarms }));
    let first = |event: &ClusterEvent| {
        let say = of(event, &Known::default(), &Settings::default(), false);
        say.expect("a sentence").lines.remove(0)
    };
    let one = alarm(json!([{ "name": "DiskFull", "instance": "db-01", "summary": "98 %" }]));
    let nothing = alarm(json!([{}]));
    let two = alarm(json!([{ "name": "DiskFull" }, { "name": "Load" }]));
    assert_eq!(first(&one), "DiskFull on db-01: 98 %");
    assert_eq!(first(&nothing), "an alarm");
    assert_eq!(first(&two), "alarms: 2 firing");
}
