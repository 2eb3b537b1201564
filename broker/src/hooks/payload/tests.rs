//! Bodies as the documentation of each product has them, shortened.

use axum::http::HeaderMap;
use muster_protocol::api::HookKind;
use serde_json::{Value, json};

use super::{Draft, MAX_PAYLOAD, Unread, delivery_id, read};
use crate::events::put::MAX_EVENT;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect()
}

fn one(kind: HookKind, pairs: &[(&'static str, &str)], body: Value) -> Draft {
    let mut drafts = read(kind, &headers(pairs), body).unwrap();
    assert_eq!(drafts.len(), 1);
    drafts.remove(0)
}

fn fixture(name: &str) -> Value {
    let text = match name {
        "github-push" => include_str!("../fixtures/github-push.json"),
        "gitlab-push" => include_str!("../fixtures/gitlab-push.json"),
        "gitea-push" => include_str!("../fixtures/gitea-push.json"),
        "jenkins" => include_str!("../fixtures/jenkins.json"),
        "alertmanager" => include_str!("../fixtures/alertmanager.json"),
        _ => include_str!("../fixtures/grafana.json"),
    };
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_push_says_every_commit_whoever_hosts_it() {
    let github = one(
        HookKind::Github,
        &[("x-github-event", "push")],
        fixture("github-push"),
    );
    assert_eq!(github.kind, "git.push");
    assert_eq!(github.subject, "acme/webapp");
    assert_eq!(
        github.text,
        "bruno pushed 2 to main of webapp: Cache the price list; Say which tier a price came from"
    );
    let data = &github.data;
    assert_eq!(data["ref"], "refs/heads/main");
    assert_eq!(data["branch"], "main");
    assert_eq!(
        data["head_commit"]["id"],
        "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"
    );
    assert_eq!(data["commits"].as_array().unwrap().len(), 2);
    assert_eq!(data["commits"][0]["author"], "Bruno Roth");
    assert_eq!(data["payload"]["sender"]["login"], "bruno");
    // Links into GitHub's own API are left out.
    assert_eq!(data["payload"]["repository"].get("keys_url"), None);
    assert_eq!(
        data["payload"]["repository"]["html_url"],
        "https://github.com/acme/webapp"
    );
    assert!(github.unique);

    let gitlab = one(HookKind::Gitlab, &[], fixture("gitlab-push"));
    assert_eq!(gitlab.kind, "git.push");
    assert_eq!(gitlab.subject, "mike/diaspora");
    assert_eq!(
        gitlab.data["head_commit"]["id"],
        "da1560886d4f094c3e6c9ef40349f7d38b5d27d7"
    );
    assert_eq!(gitlab.data["head_commit"]["message"], "fixed readme");
    // GitLab sends 20 at most, and says how many there were.
    assert_eq!(gitlab.data["commits_total"], 4);
    assert!(gitlab.text.contains("pushed 4 to main"), "{}", gitlab.text);

    for kind in [HookKind::Gitea, HookKind::Forgejo] {
        let gitea = one(kind, &[("x-gitea-event", "push")], fixture("gitea-push"));
        assert_eq!(gitea.kind, "git.push");
        assert_eq!(gitea.subject, "gitea/webhooks");
        assert_eq!(
            gitea.data["head_commit"]["id"],
            "bffeb74224043ba2feb48d137756c8a9331c449a"
        );
    }
}

#[test]
fn tags_and_what_is_removed_are_no_pushes() {
    let push = |change: &dyn Fn(&mut Value)| {
        let mut body = fixture("github-push");
        change(&mut body);
        one(HookKind::Github, &[("x-github-event", "push")], body)
    };
    let gone = "0000000000000000000000000000000000000000";
    let removed = push(&|body| {
        body["after"] = json!(gone);
        body["deleted"] = json!(true);
        body["head_commit"] = Value::Null;
        body["commits"] = json!([]);
    });
    assert_eq!(removed.kind, "git.deleted");
    assert_eq!(removed.data.get("head_commit"), None);
    let tag = push(&|body| body["ref"] = json!("refs/tags/v1.4.2"));
    assert_eq!(
        (tag.kind.as_str(), &tag.data["tag"]),
        ("git.tag", &json!("v1.4.2"))
    );
    let made = push(&|body| {
        body["before"] = json!(gone);
        body["commits"] = json!([]);
        body["ref"] = json!("refs/heads/new");
    });
    assert_eq!(made.text, "bruno made branch new of webapp");
}

#[test]
fn a_huge_push_keeps_every_commit_and_fits() {
    let mut body = fixture("github-push");
    let commit = body["commits"][0].clone();
    body["commits"] = (0..2_048)
        .map(|n| {
            let mut commit = commit.clone();
            commit["id"] = json!(format!("{n:040x}"));
            commit["message"] = json!("é".repeat(3_000));
            commit
        })
        .collect();
    let push = one(HookKind::Github, &[("x-github-event", "push")], body);
    assert_eq!(push.data["commits"].as_array().unwrap().len(), 2_048);
    assert!(Value::Object(push.data).to_string().len() < MAX_EVENT - 10_000);
}

#[test]
fn what_github_sends_besides() {
    let ping = one(
        HookKind::Github,
        &[("x-github-event", "ping")],
        json!({ "zen": "Keep it logically awesome.", "hook_id": 1, "repository": { "full_name": "acme/webapp" } }),
    );
    assert_eq!((ping.kind.as_str(), ping.unique), ("hook.ping", false));
    let release = one(
        HookKind::Github,
        &[("x-github-event", "release")],
        json!({ "action": "published", "release": { "tag_name": "v1" }, "repository": { "full_name": "acme/webapp" }, "sender": { "login": "ana" } }),
    );
    assert_eq!(release.kind, "github.release");
    assert_eq!(release.data["payload"]["release"]["tag_name"], "v1");
    let workflow = |action: &str, status: &str, conclusion: Value| {
        one(
            HookKind::Github,
            &[("x-github-event", "workflow_run")],
            json!({
                "action": action,
                "workflow_run": {
                    "name": "CI", "run_number": 812, "status": status, "conclusion": conclusion,
                    "head_branch": "main", "head_sha": "0d1a26e", "html_url": "https://github.com/acme/webapp/actions/runs/1",
                    "display_title": "Cache the price list"
                },
                "repository": { "full_name": "acme/webapp" }
            }),
        )
    };
    assert_eq!(
        workflow("requested", "queued", Value::Null).kind,
        "build.queued"
    );
    assert_eq!(
        workflow("in_progress", "in_progress", Value::Null).kind,
        "build.started"
    );
    let failed = workflow("completed", "completed", json!("failure"));
    assert_eq!(
        (failed.kind.as_str(), &failed.data["result"]),
        ("build.finished", &json!("failure"))
    );
    assert_eq!(
        failed.text,
        "CI build 812 of main failed: Cache the price list"
    );
    let pull = one(
        HookKind::Github,
        &[("x-github-event", "pull_request")],
        json!({
            "action": "closed", "number": 7,
            "pull_request": { "number": 7, "title": "Faster", "merged": true, "head": { "ref": "fast", "sha": "a1" }, "base": { "ref": "main" } },
            "repository": { "full_name": "acme/webapp" }, "sender": { "login": "ana" }
        }),
    );
    assert_eq!(
        (pull.kind.as_str(), &pull.data["action"]),
        ("git.change", &json!("merged"))
    );
    // Without the header that says what it is, it is nothing.
    assert!(matches!(
        read(HookKind::Github, &HeaderMap::new(), fixture("github-push")),
        Err(Unread::NotThis { .. })
    ));
}

#[test]
fn builds_of_jenkins_and_gitlab() {
    let mut body = fixture("jenkins");
    let build = |body: &Value| read(HookKind::Jenkins, &HeaderMap::new(), body.clone());
    assert!(matches!(build(&body), Err(Unread::Ignored(_))));
    body["build"]["phase"] = json!("FINALIZED");
    let draft = build(&body).unwrap().remove(0);
    assert_eq!(draft.kind, "build.finished");
    assert_eq!(draft.text, "asgard build 18 of master succeeded");
    assert_eq!(
        draft.data["commit"],
        "c6d86dc654b12425e706bcf951adfe5a8627a517"
    );
    assert_eq!(draft.data["url"], "http://localhost:8080/job/asgard/18/");
    // What is not over has the result of the build before.
    body["build"]["phase"] = json!("STARTED");
    let draft = build(&body).unwrap().remove(0);
    assert_eq!(
        (draft.kind.as_str(), draft.data.get("result")),
        ("build.started", None)
    );
    body["build"]["phase"] = json!("QUEUED");
    assert_eq!(build(&body).unwrap()[0].kind, "build.queued");
    assert!(matches!(build(&json!({})), Err(Unread::NotThis { .. })));

    let pipeline = |status: &str| {
        let body = json!({
            "object_kind": "pipeline",
            "object_attributes": { "id": 31, "iid": 3, "ref": "master", "sha": "bcbb5ec", "status": status },
            "project": { "path_with_namespace": "gitlab-org/gitlab-test", "web_url": "http://192.168.64.1:3005/gitlab-org/gitlab-test" },
            "commit": { "title": "test" }
        });
        one(HookKind::Gitlab, &[], body)
    };
    assert_eq!(pipeline("pending").kind, "build.queued");
    assert_eq!(pipeline("running").kind, "build.started");
    assert_eq!(pipeline("success").data["result"], "success");
    assert_eq!(pipeline("canceled").data["result"], "cancelled");
}

#[test]
fn alarms_are_grouped_by_fingerprint_and_by_whether_they_are_over() {
    let drafts = read(
        HookKind::Alertmanager,
        &HeaderMap::new(),
        fixture("alertmanager"),
    )
    .unwrap();
    assert_eq!(drafts.len(), 2);
    let (firing, over) = (&drafts[0], &drafts[1]);
    assert_eq!(
        (firing.kind.as_str(), over.kind.as_str()),
        ("alarm.firing", "alarm.resolved")
    );
    assert_eq!(firing.subject, "DiskFull");
    assert_eq!(
        firing.text,
        "1 firing: DiskFull on web-07: 91% of / is used"
    );
    // The same fingerprint came twice.
    assert_eq!(firing.data["count"], 1);
    assert_eq!(firing.data["alarms"][0]["fingerprint"], "8a3b1cd5f0e7d2a1");
    assert_eq!(firing.data["severity"], "warning");
    assert_eq!(firing.data["alarms"][0].get("until"), None);
    assert_eq!(over.data["alarms"][0]["until"], "2026-11-21T09:30:00Z");

    let grafana = read(HookKind::Grafana, &HeaderMap::new(), fixture("grafana")).unwrap();
    assert_eq!(grafana.len(), 1);
    assert_eq!(grafana[0].kind, "alarm.firing");
    assert_eq!(
        grafana[0].data["alarms"][0]["fingerprint"],
        "57c6d9296de2ad39"
    );
    assert!(matches!(
        read(
            HookKind::Grafana,
            &HeaderMap::new(),
            json!({ "alerts": [] })
        ),
        Err(Unread::Ignored(_))
    ));
}

#[test]
fn many_large_alarms_still_fit() {
    let alarm = |n: usize| {
        json!({
            "status": "firing", "labels": { "alertname": format!("A{n}"), "x": "y".repeat(4_000) },
            "annotations": { "summary": "z".repeat(4_000) }
        })
    };
    let body = json!({ "alerts": (0..600).map(alarm).collect::<Vec<_>>() });
    let drafts = read(HookKind::Alertmanager, &HeaderMap::new(), body).unwrap();
    assert_eq!(drafts[0].data["count"], 500);
    assert_eq!(drafts[0].data["left_out"], 100);
    let size = Value::Object(drafts[0].data.clone()).to_string().len();
    assert!(size < MAX_EVENT, "{size}");
}

#[test]
fn a_generic_body_is_its_event() {
    let draft = one(
        HookKind::Generic,
        &[],
        json!({ "version": "1.4.2", "text": "released", "subject": "webapp" }),
    );
    assert_eq!(
        (draft.kind.as_str(), draft.text.as_str()),
        ("hook.received", "released")
    );
    assert_eq!(draft.subject, "webapp");
    assert_eq!(draft.data["version"], "1.4.2");
    let draft = one(HookKind::Generic, &[], json!([1, 2]));
    assert_eq!(draft.data["payload"], json!([1, 2]));
}

#[test]
fn a_large_body_is_not_kept_and_that_is_said() {
    let body = json!({ "repository": { "full_name": "a/b" }, "blob": "x".repeat(MAX_PAYLOAD) });
    let draft = one(HookKind::Github, &[("x-github-event", "odd thing!")], body);
    assert_eq!(draft.kind, "github.odd-thing");
    assert_eq!(draft.data.get("payload"), None);
    assert!(draft.data["payload_left_out"].as_u64() > Some(MAX_PAYLOAD as u64));
}

#[test]
fn a_delivery_says_which_one_it_is() {
    let id = |kind, pairs: &[(&'static str, &str)]| delivery_id(kind, &headers(pairs));
    let guid = "72d3162e-cc78-11e3-81ab-4c9367dc0958";
    assert_eq!(
        id(HookKind::Github, &[("x-github-delivery", guid)]).as_deref(),
        Some(guid)
    );
    assert_eq!(
        id(HookKind::Gitea, &[("x-gitea-delivery", guid)]).as_deref(),
        Some(guid)
    );
    let both = [("x-gitlab-event-uuid", "u"), ("idempotency-key", "k")];
    assert_eq!(id(HookKind::Gitlab, &both).as_deref(), Some("k"));
    assert_eq!(id(HookKind::Jenkins, &[("x-github-delivery", guid)]), None);
    assert_eq!(id(HookKind::Github, &[("x-github-delivery", "a b")]), None);
    assert_eq!(
        id(HookKind::Github, &[("x-github-delivery", &"x".repeat(129))]),
        None
    );
}

#[test]
fn whatever_comes_it_does_not_panic() {
    let odd = [
        json!(null),
        json!([]),
        json!("x"),
        json!({ "ref": 3, "commits": 7, "repository": [] }),
        json!({ "ref": "refs/heads/é", "commits": [null, 3, { "id": 9 }], "after": "0" }),
        json!({ "build": { "phase": 3 }, "alerts": [null, { "labels": 3 }] }),
        json!({ "object_kind": "push" }),
        json!({ "object_kind": "pipeline", "object_attributes": [] }),
    ];
    for kind in HookKind::ALL {
        for body in &odd {
            for event in [
                "push",
                "ping",
                "workflow_run",
                "status",
                "check_suite",
                "pull_request",
            ] {
                let with = [("x-github-event", event), ("x-gitea-event", event)];
                let _ = read(kind, &headers(&with), body.clone());
            }
        }
    }
}
