//! Those who wait for a run or follow it: many, and some who should not.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::World;
use crate::nats::testing::PATIENCE;
use crate::runs::tests::node::Script;
use crate::testing::wait_for;

async fn follow(world: &World, run: &str) -> TcpStream {
    let ask = format!(
        "GET /v1/runs/{run}/events HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
        world.broker.token
    );
    let mut stream = TcpStream::connect(("127.0.0.1", world.broker.port))
        .await
        .unwrap();
    stream.write_all(ask.as_bytes()).await.unwrap();
    stream
}

/// Its events, without their heartbeats, to the end.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text))
        .await
        .expect("the stream ends")
        .unwrap();
    let body = text.split_once("\r\n\r\n").expect("a head").1;
    body.split("\n\n")
        .filter(|event| event.contains("data:") && !event.contains("event: accepted"))
        .collect::<Vec<_>>()
        .join("\n\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_the_end_of_its_run() {
    let world = World::new(&["web-1"], 20).await;
    let body = json!({ "predicate": "*", "params": { "argv": ["true"] } });
    let (status, run) = world.post("/v1/runs?wait=60s", body.clone()).await;
    assert_eq!(
        (status, run["state"].as_str()),
        (200, Some("succeeded")),
        "{run}"
    );
    assert!(run["finished"].is_string());
    let retry = format!("/v1/runs/{}/retry?wait=60s", run["id"].as_str().unwrap());
    let (status, run) = world.post(&retry, json!({})).await;
    assert_eq!(
        (status, run["state"].as_str()),
        (200, Some("succeeded")),
        "{run}"
    );
    // One that does not end in time is told of as it is, and goes on.
    *world.nodes[0].script.lock().unwrap() = Script::Hold;
    let (status, run) = world.post("/v1/runs?wait=1s", body.clone()).await;
    assert_eq!(status, 200, "{run}");
    assert!(run["finished"].is_null(), "{run}");
    let path = format!("/v1/runs/{}/cancel", run["id"].as_str().unwrap());
    assert_eq!(world.post(&path, Value::Null).await.0, 200);
    world.ended(&run).await;
    for bad in ["wait=11m", "wait=x", "wait=", "wait=1s&wait=2s", "weit=1s"] {
        let (status, problem) = world.post(&format!("/v1/runs?{bad}"), body.clone()).await;
        assert_eq!(
            (status, problem["kind"].as_str()),
            (400, Some("invalid-request")),
            "{bad}"
        );
    }
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_follow_a_run_see_the_same_and_the_next_one_is_turned_away() {
    const MANY: usize = 150;
    let world = World::with(&["web-1"], |config| {
        config.limits.watchers = u32::try_from(MANY).unwrap();
    })
    .await;
    *world.nodes[0].script.lock().unwrap() = Script::Hold;
    let (_, run) = world.run(json!({})).await;
    let id = run["id"].as_str().unwrap();
    let mut streams = Vec::new();
    for _ in 0..MANY {
        let mut stream = follow(&world, id).await;
        // It is there once it has said something.
        let mut first = [0; 1];
        stream.read_exact(&mut first).await.unwrap();
        streams.push(stream);
    }
    let path = format!("/v1/runs/{id}/events");
    let (status, problem) = world.broker.call("GET", &path, None).await;
    assert_eq!(
        (status, problem["kind"].as_str()),
        (429, Some("rate-limited"))
    );
    // Nobody waits in their place, but the run begins all the same.
    let body = json!({ "predicate": "*", "params": { "argv": ["true"] } });
    let (status, other) = world.post("/v1/runs?wait=60s", body).await;
    assert_eq!(status, 200, "{other}");
    for run in [&run, &other] {
        let path = format!("/v1/runs/{}/cancel", run["id"].as_str().unwrap());
        assert_eq!(world.post(&path, Value::Null).await.0, 200);
        world.ended(run).await;
    }
    let mut seen = Vec::new();
    for stream in streams {
        seen.push(rest(stream).await);
    }
    assert!(
        seen[0].contains("run_created") && seen[0].contains("run_finished"),
        "{}",
        seen[0]
    );
    assert!(seen.iter().all(|one| *one == seen[0]));
    // Their places are free again; one who comes late reads by itself.
    wait_for("there is room again", async || {
        (world.broker.call("GET", "/v1/status", None).await.0 == 200
            && crate::metrics::Metrics::of_process().watching() == 0)
            .then_some(())
    })
    .await;
    let late = rest(follow(&world, id).await).await;
    assert_eq!(late, seen[0]);
    world.broker.stop().await;
}
