//! From an invite to a node, and what keeps it one.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use muster_agent::identity::{Enrolled, NodeKeys};
use muster_agent::state::StateDir;
use muster_protocol::envelope::Ask;
use muster_protocol::keys::PrivateKey;
use muster_protocol::run::Outcome;
use muster_protocol::subject::role_subject;
use serde_json::json;

use crate::http::{Http, Tls};
use crate::lab::{Cluster, Greeting, Lab};

/// `muster-agent enroll`, with the token in the environment.
async fn enroll(url: &str, token: &str, state: &Path, more: &[&str]) -> (Option<i32>, String) {
    let output = tokio::process::Command::from({
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
        command
            .args(["enroll", "--url", url, "--state"])
            .arg(state)
            .args(more);
        command
            .env("MUSTER_ENROLL_TOKEN", token)
            .stdin(Stdio::null());
        command
    })
    .output()
    .await
    .unwrap();
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    (
        status.code(),
        String::from_utf8(stdout).unwrap() + String::from_utf8(stderr).unwrap().as_str(),
    )
}

#[tokio::test]
async fn an_invite_makes_a_node_once() {
    let cluster = Cluster::new();
    let http = Http::start(&cluster, None).await;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (code, text) = enroll(&http.url, &http.token(), &state, &[]).await;
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(
        text,
        format!("enrolled as web-01 (serial 7) in cluster {}\n", cluster.id)
    );
    let opened = StateDir::open(&state).unwrap();
    let enrolled = Enrolled::load(&opened).unwrap().unwrap();
    let keys = NodeKeys::load(&opened).unwrap().unwrap();
    assert_eq!(enrolled.stored.credentials.node_key, keys.identity.public());
    assert_eq!(http.state.lock().unwrap().nats_key, keys.nats.public_key());
    for entry in std::fs::read_dir(&state).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }
    // Not over what is there.
    let (code, text) = enroll(&http.url, &http.token(), &state, &[]).await;
    assert_eq!(code, Some(2));
    assert!(
        text.contains("is enrolled already, as web-01 (serial 7)"),
        "{text}"
    );
    // The token is used up, for another machine too.
    let (code, text) = enroll(&http.url, &http.token(), &dir.path().join("other"), &[]).await;
    assert_eq!(code, Some(4), "{text}");
    assert!(
        text.contains("this invite was used already") && text.contains("muster node invite"),
        "{text}"
    );
    assert!(!text.contains(&http.token()), "the token is in the message");
    // On purpose, with another invite: a new identity, the old one set aside.
    http.state.lock().unwrap().used = false;
    let (code, text) = enroll(&http.url, &http.token(), &state, &["--again"]).await;
    assert_eq!(code, Some(0), "{text}");
    let again = NodeKeys::load(&opened).unwrap().unwrap();
    assert_ne!(again.identity.public(), keys.identity.public());
    assert!(std::fs::read_dir(&state).unwrap().any(|e| {
        e.unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("old-7-")
    }));
}

#[tokio::test]
async fn a_broker_that_is_not_the_one_of_the_invite_learns_nothing() {
    let cluster = Cluster::new();
    let http = Http::start(&cluster, None).await;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let other = Cluster::new();
    let elsewhere = Http::start(&other, None).await;
    let (code, text) = enroll(&elsewhere.url, &http.token(), &state, &[]).await;
    assert_eq!(code, Some(4));
    assert!(text.contains("belongs to another cluster"), "{text}");
    // The right root key, shown by somebody who does not have it.
    elsewhere.state.lock().unwrap().root = cluster.root.clone();
    let (code, text) = enroll(&elsewhere.url, &http.token(), &state, &[]).await;
    assert_eq!(code, Some(4));
    assert!(text.contains("did not sign"), "{text}");
    assert!(
        elsewhere
            .state
            .lock()
            .unwrap()
            .asked
            .iter()
            .all(|a| a == "GET /v1/trust")
    );
    // An answer by a key that is not on the list.
    http.state.lock().unwrap().signer = PrivateKey::generate();
    let (code, text) = enroll(&http.url, &http.token(), &state, &[]).await;
    assert_eq!(code, Some(4));
    assert!(text.contains("not to be trusted"), "{text}");
    assert!(
        Enrolled::load(&StateDir::open(&state).unwrap())
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn mistakes_of_people_are_named() {
    let cluster = Cluster::new();
    let http = Http::start(&cluster, None).await;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    for (url, token, code, word) in [
        (http.url.as_str(), "nonsense", 2, "this is not an invite"),
        ("http://broker.example.org", &http.token(), 2, "plain http"),
        ("not a url", &http.token(), 2, "is not a broker's address"),
        (
            "http://127.0.0.1:1",
            &http.token(),
            5,
            "no broker answers at http://127.0.0.1:1",
        ),
    ] {
        let (got, text) = enroll(url, token, &state, &[]).await;
        assert_eq!(got, Some(code), "{text}");
        assert!(text.starts_with("error: ") && text.contains(word), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[tokio::test]
async fn over_tls_the_authority_comes_from_the_root_key() {
    let cluster = Cluster::new();
    let tls = Tls::new();
    let http = Http::start(&cluster, Some(&tls)).await;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (code, text) = enroll(&http.url, &http.token(), &state, &[]).await;
    assert_eq!(code, Some(0), "{text}");
    let enrolled = Enrolled::load(&StateDir::open(&state).unwrap())
        .unwrap()
        .unwrap();
    assert_eq!(enrolled.stored.ca.as_deref(), Some(tls.ca.as_str()));

    // Somebody in between, with a certificate of their own, can show the
    // signed words of the cluster, but gets no token.
    let between = Tls::new();
    let thief = Http::start(&cluster, Some(&between)).await;
    thief.state.lock().unwrap().certificate = Some(tls.ca.clone());
    let (code, text) = enroll(&thief.url, &thief.token(), &dir.path().join("b"), &[]).await;
    assert_eq!(code, Some(5), "{text}");
    assert!(text.contains("certificate"), "{text}");
    assert!(
        thief
            .state
            .lock()
            .unwrap()
            .asked
            .iter()
            .all(|a| a == "GET /v1/trust")
    );

    // With --ca not even that is said to a stranger.
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, &tls.ca).unwrap();
    let ca = ["--ca", file.to_str().unwrap()];
    let asked = thief.state.lock().unwrap().asked.len();
    let (code, _) = enroll(&thief.url, &thief.token(), &dir.path().join("c"), &ca).await;
    assert_eq!(
        (code, thief.state.lock().unwrap().asked.len()),
        (Some(5), asked)
    );
    http.state.lock().unwrap().used = false;
    let (code, text) = enroll(&http.url, &http.token(), &dir.path().join("c"), &ca).await;
    assert_eq!(code, Some(0), "{text}");
}

/// A lab whose node can fetch credentials.
async fn renewable() -> (Lab, Http) {
    let mut lab = Lab::prepare().await;
    let http = Http::start(&lab.cluster, None).await;
    {
        let mut state = http.state.lock().unwrap();
        state.credentials = Some(lab.cluster.credentials(&lab.keys, &lab.nats.url()));
        state.nats_key = lab.keys.nats.public_key();
    }
    lab.config = format!("brokers = [{:?}]\n", http.url);
    lab.begin().await;
    (lab, http)
}

#[tokio::test]
async fn a_new_role_is_followed_without_a_restart() {
    let (lab, http) = renewable().await;
    {
        let mut state = http.state.lock().unwrap();
        let credentials = state.credentials.as_mut().unwrap();
        credentials.assignment = serde_json::from_value(json!({
            "revision": 2, "name": "web-01", "roles": ["lb"], "labels": {"zone": "dk2"},
        }))
        .unwrap();
        credentials.jwt = "another".into();
    }
    lab.broker.greet(Greeting::Welcome {
        keys: None,
        revision: 2,
    });
    lab.send(&lab.request(Ask::Refresh { revision: 2 })).await;
    lab.broker
        .wait("a hello with the new revision", |h| {
            (h.hellos.last()?.revision == 2).then_some(())
        })
        .await;
    lab.broker
        .wait("a beat with it", |h| {
            (h.beats.last()?.revision == 2).then_some(())
        })
        .await;
    let mut request = lab.shell("true");
    request.predicate = "role=lb and zone=dk2".into();
    lab.send_to(role_subject("lb"), &request.seal(&lab.cluster.broker))
        .await;
    assert_eq!(
        lab.broker.outcome(request.id()).await.result.outcome,
        Outcome::Succeeded
    );
    let mut request = lab.shell("true");
    request.predicate = "role=web".into();
    lab.send(&request).await;
    let reason = lab
        .broker
        .outcome(request.id())
        .await
        .result
        .reason
        .unwrap();
    assert_eq!(
        reason,
        "the predicate no longer holds here: `role=web` does not hold"
    );
}

#[tokio::test]
async fn a_removed_node_asks_rarely_and_says_why() {
    let (lab, http) = renewable().await;
    http.state.lock().unwrap().removed = true;
    let asked = || {
        let state = http.state.lock().unwrap();
        state
            .asked
            .iter()
            .filter(|a| *a == "POST /v1/agent/credentials")
            .count()
    };
    for _ in 0..20 {
        lab.send(&lab.request(Ask::Refresh { revision: 9 })).await;
    }
    lab.until("the log", || {
        lab.log().contains("the broker knows this node no more")
    })
    .await;
    assert!(lab.log().contains("asking again every 5 min"));
    for _ in 0..20 {
        lab.send(&lab.request(Ask::Refresh { revision: 9 })).await;
    }
    let ping = lab.request(Ask::Ping);
    lab.send(&ping).await;
    lab.broker
        .wait("a pong", |h| {
            h.pongs.iter().find(|p| p.request == ping.id()).cloned()
        })
        .await;
    assert_eq!(asked(), 1);
}
