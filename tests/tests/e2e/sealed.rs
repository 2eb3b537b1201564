//! A secret on the wire: who hears all traffic of the account, and another
//! node with its own credentials, hear nothing of it.

use std::fs;
use std::sync::{Arc, Mutex};

use async_nats::{Client, Message};
use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD, Encoding, HEXLOWER, HEXUPPER};
use futures_util::StreamExt as _;
use muster_tests::{Up, wait_for};
use serde_json::Value;

use crate::hostile::{as_node, enrolment, wire};

const SCRIPT: &str = r#"
scenario("Use a token");
param("token", #{ secret: true });
param("open");
fn run(p) {
    log("it is " + p.token);
    command(["cat"], #{ stdin: p.token });
    command(["echo", "beside", p.open]);
    p.token
}
"#;

/// Everything that somebody heard.
#[derive(Clone, Default)]
struct Tap(Arc<Mutex<Vec<Message>>>);

impl Tap {
    /// Hears these subjects from now on.
    async fn on(client: &Client, subjects: &[String]) -> Self {
        let tap = Self::default();
        for subject in subjects {
            let mut heard = client.subscribe(subject.clone()).await.expect("asked");
            let to = Arc::clone(&tap.0);
            tokio::spawn(async move {
                while let Some(message) = heard.next().await {
                    to.lock().expect("a lock").push(message);
                }
            });
        }
        client.flush().await.expect("sent");
        tap
    }

    /// Whether any message holds these bytes, its head and subject included.
    fn holds(&self, word: &[u8]) -> bool {
        let heard = self.0.lock().expect("a lock");
        heard.iter().any(|message| {
            let head = format!("{} {:?}", message.subject, message.headers);
            [head.as_bytes(), &message.payload]
                .iter()
                .any(|bytes| bytes.windows(word.len()).any(|w| w == word))
        })
    }

    fn heard(&self, subject: &str) -> bool {
        let heard = self.0.lock().expect("a lock");
        heard
            .iter()
            .any(|message| message.subject.starts_with(subject))
    }
}

/// How a text may stand in a message: as it is, in hexadecimal digits, in
/// base64 wherever it begins in what was encoded.
fn ways(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let based = |encoding: &Encoding, before: usize| {
        let mut all = vec![0; before];
        all.extend_from_slice(bytes);
        let encoded = encoding.encode(&all);
        // What is of its neighbours, too, is left out.
        let from = (before * 8).div_ceil(6);
        let to = all.len() * 8 / 6;
        encoded[from..to].to_owned()
    };
    let mut ways = vec![
        text.to_owned(),
        HEXLOWER.encode(bytes),
        HEXUPPER.encode(bytes),
    ];
    for before in 0..3 {
        ways.push(based(&BASE64_NOPAD, before));
        ways.push(based(&BASE64URL_NOPAD, before));
    }
    ways
}

/// The subjects that the server lets a node subscribe to.
fn may_hear(up: &Up, node: &str) -> Vec<String> {
    let enrolment = enrolment(up, node);
    let jwt = enrolment["credentials"]["jwt"].as_str().expect("a jwt");
    let claims = jwt.split('.').nth(1).expect("claims");
    let claims = BASE64URL_NOPAD.decode(claims.as_bytes()).expect("base64");
    let claims: Value = serde_json::from_slice(&claims).expect("json");
    let allowed = claims["nats"]["sub"]["allow"].as_array().expect("a list");
    let text = |subject: &Value| subject.as_str().expect("a subject").to_owned();
    allowed.iter().map(text).collect()
}

#[test]
fn a_secret_is_in_no_message_that_anybody_can_read() {
    let up = Up::start(&["web-01:role=web", "web-02:role=web"]).expect("starts");
    let script = up.dir.path().join("token.rhai");
    fs::write(&script, SCRIPT).expect("written");
    up.muster(&["scenario", "put", &script.display().to_string()])
        .exits(0);
    let outside = tempfile::tempdir().expect("a directory");
    let token = "geheim-4711-sehr-geheim";
    let file = outside.path().join("token");
    fs::write(&file, token).expect("written");
    let param = format!("token=@{}", file.display());
    let open = "offen-0815-sehr-offen";
    let plain = format!("open={open}");
    let run = |on: &str| {
        let said = up.muster(&[
            "scenario", "run", "token", "--yes", "--on", on, "-p", &param, "-p", &plain,
        ]);
        said.exits(0)
    };

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (account, all, node, own) = runtime.block_on(async {
        let account = wire(&up, "web-01").await;
        let all = Tap::on(&account, &[">".to_owned()]).await;
        let (node, _) = as_node(&up, "web-02").await;
        let subjects = may_hear(&up, "web-02");
        assert!(subjects.len() > 2, "{subjects:?}");
        let own = Tap::on(&node, &subjects).await;
        (account, all, node, own)
    });

    run("name=web-01");
    let one = format!(
        "m1.do.node.{}",
        enrolment(&up, "web-01")["credentials"]["serial"]
    );
    assert!(all.heard(&one), "it was sent to web-01 alone");
    // The other node hears what is its own: so would it have heard the first.
    run("role=web");
    let two = format!(
        "m1.do.node.{}",
        enrolment(&up, "web-02")["credentials"]["serial"]
    );
    wait_for("the other node to hear its own", || {
        own.heard(&two).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    assert!(!own.heard(&one));
    // Only a node says this.
    let printed = ways(&format!("beside {open}"));
    // What is said of it is in the traffic, and shows that all is looked at.
    wait_for("what the nodes said", || {
        let printed = printed.iter().any(|way| all.holds(way.as_bytes()));
        (all.holds(b"[redacted]") && printed).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));

    // What is no secret stands in what both heard.
    for tap in [&all, &own] {
        assert!(tap.holds(open.as_bytes()));
    }
    for way in ways(token) {
        assert!(!all.holds(way.as_bytes()), "the account heard {way}");
        assert!(!own.holds(way.as_bytes()), "the other node heard {way}");
    }
    drop((account, node));
}
