use std::time::Duration;

use muster_protocol::api::ClusterEvent;
use muster_protocol::units::{Span, Timestamp};
use serde_json::json;

use super::table::{Came, How, State, Table};
use super::{Alarms, AlarmsError, By, What};
use crate::events::Events;
use crate::lease::Lease;
use crate::nats::testing::TestServer;
use crate::store::kv::{BucketConfig, ensure_bucket};

const REPEAT: Duration = Duration::from_secs(1_800);

/// What happens, one after the other, at these minutes.
#[derive(Default)]
struct Story {
    table: Table,
    seq: u64,
}

impl Story {
    fn take(&mut self, minute: i64, mut event: ClusterEvent) -> Option<(u32, How)> {
        self.seq += 1;
        event.seq = self.seq;
        event.at = Timestamp::from_second(1_000_000_000 + minute * 60).unwrap();
        match self.table.apply(&event, "", REPEAT, Timestamp::now()) {
            Came::Told(told) => Some((told.number, told.how)),
            Came::Quiet | Came::Nothing => None,
        }
    }
}

fn alarm(kind: &str, subject: &str, instances: &[&str]) -> ClusterEvent {
    let mut event = ClusterEvent::own(String::new(), kind, subject, String::new());
    event.source = "/muster/hooks/alerts".into();
    let alarms: Vec<_> = instances
        .iter()
        .map(|instance| json!({ "fingerprint": format!("f-{instance}"), "name": subject, "instance": instance }))
        .collect();
    event.fields.insert("alarms".into(), json!(alarms));
    event
}

fn nodes(kind: &str, id: &str, names: &[&str]) -> ClusterEvent {
    let subject = format!("{} nodes", names.len());
    let mut event = ClusterEvent::own(id.into(), kind, &subject, String::new());
    event.fields.insert("names".into(), json!(names));
    event
}

fn by(who: &str) -> By {
    By {
        principal: who.parse().unwrap(),
        place: None,
    }
}

#[test]
fn an_alarm_is_said_when_it_begins_now_and_then_and_when_it_ends() {
    let mut story = Story::default();
    let disk = |kind: &str, on: &[&str]| alarm(kind, "DiskFull", on);
    assert_eq!(
        story.take(0, disk("alarm.firing", &["web-1"])),
        Some((1, How::New))
    );
    assert_eq!(story.take(5, disk("alarm.firing", &["web-1"])), None);
    // Another one of the same group is news.
    let more = story.take(6, disk("alarm.firing", &["web-1", "web-2"]));
    assert_eq!(more, Some((1, How::More(1))));
    assert_eq!(
        story.take(20, disk("alarm.firing", &["web-1", "web-2"])),
        None
    );
    let again = story.take(37, disk("alarm.firing", &["web-1", "web-2"]));
    assert_eq!(again, Some((1, How::Again)));
    assert_eq!(
        story.take(38, disk("alarm.resolved", &["web-1"])),
        Some((1, How::Fewer(1)))
    );
    assert_eq!(
        story.take(39, disk("alarm.resolved", &["web-2"])),
        Some((1, How::Over))
    );
    assert_eq!(story.take(40, disk("alarm.resolved", &["web-2"])), None);
    // It keeps its number while it is remembered; others get others.
    assert_eq!(
        story.take(41, disk("alarm.firing", &["web-1"])),
        Some((1, How::New))
    );
    assert_eq!(
        story.take(41, alarm("alarm.firing", "Load", &["x"])),
        Some((2, How::New))
    );
    assert_eq!(
        story.take(42, alarm("alarm.resolved", "Unknown", &["x"])),
        None
    );
}

#[test]
fn what_muster_raises_itself_is_an_alarm_too() {
    let mut story = Story::default();
    let own = |kind: &str| ClusterEvent::own("1".into(), kind, "runs", String::new());
    assert_eq!(story.take(0, own("alarm.space")), Some((1, How::New)));
    assert_eq!(story.take(1, own("alarm.space")), None);
    assert_eq!(
        story.take(2, own("alarm.space-cleared")),
        Some((1, How::Over))
    );
    assert_eq!(story.take(3, own("alarm.clock")), Some((2, How::New)));
    // What people do about alarms is none.
    assert_eq!(story.take(4, own("alarm.acked")), None);
    assert_eq!(story.take(4, own("git.push")), None);
    // One without an end is forgotten after a day.
    assert_eq!(story.take(60 * 26, own("alarm.space")), Some((3, How::New)));
    assert!(!story.table.alarms.contains_key(&2));
}

#[test]
fn nodes_that_come_back_end_the_alarm_that_they_went() {
    let mut story = Story::default();
    let down = story.take(0, nodes("node.down", "a", &["w1", "w2", "w3", "w4"]));
    assert_eq!(down, Some((1, How::New)));
    assert_eq!(
        story.take(1, nodes("node.down", "b", &["x1"])),
        Some((2, How::New))
    );
    let up = story.take(2, nodes("node.up", "c", &["w1", "w2"]));
    assert_eq!(up, Some((1, How::Fewer(2))));
    // One that is removed is not missed any more.
    let mut removed = ClusterEvent::own("d".into(), "node.removed", "w3", String::new());
    removed.fields.clear();
    assert_eq!(story.take(3, removed), Some((1, How::Fewer(1))));
    assert_eq!(
        story.take(4, nodes("node.up", "e", &["w4"])),
        Some((1, How::Over))
    );
    assert_eq!(story.table.alarms[&2].state, State::Firing);
}

#[test]
fn what_is_taken_again_changes_nothing_and_all_is_bounded() {
    let mut story = Story::default();
    for n in 0..2_000 {
        let names: Vec<String> = (0..50).map(|m| format!("n{n}-{m}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        story.take(0, nodes("node.down", &n.to_string(), &names));
    }
    assert_eq!(story.table.alarms.len(), 500);
    let size = serde_json::to_vec(&story.table).unwrap().len();
    assert!(size < 700_000, "{size}");
    let mut event = nodes("node.down", "again", &["w1"]);
    event.seq = story.seq;
    assert!(story.table.has(&event, ""));
    assert!(!story.table.has(&event, "other"));
}

#[tokio::test]
async fn somebody_acknowledges_and_silences_and_the_next_broker_knows() {
    let server = TestServer::start().await;
    let js = crate::store::context(server.broker().await);
    let open = async || {
        let bucket = ensure_bucket(&js, BucketConfig::new("muster_chat"));
        let lease = Lease::fixed(1);
        Alarms::open(
            bucket.await.unwrap(),
            lease,
            Events::log_only(),
            String::new(),
        )
        .await
        .unwrap()
    };
    let mut seq = 0;
    let mut next = |mut event: ClusterEvent| {
        seq += 1;
        event.seq = seq;
        event
    };
    let alarms = open().await;
    let take = async |alarms: &Alarms, event: &ClusterEvent| {
        let came = alarms.take(event, REPEAT).await;
        alarms.keep(event, REPEAT).await.unwrap();
        came
    };
    let event = next(alarm("alarm.firing", "DiskFull", &["web-1"]));
    assert!(matches!(take(&alarms, &event).await, Came::Told(_)));
    // The same event again is no news.
    assert_eq!(take(&alarms, &event).await, Came::Quiet);
    let acked = alarms.ack(1, &by("ana")).await.unwrap();
    assert_eq!(acked.acked.unwrap().by.as_str(), "ana");
    let error = alarms.ack(1, &by("bruno")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "ana looks after alarm 1 (DiskFull) already"
    );
    let error = alarms.ack(7, &by("bruno")).await.unwrap_err();
    assert!(matches!(error, AlarmsError::Unknown(7)));
    let hour = Span::from_secs(3_600);
    let load: What = "Load*".parse().unwrap();
    alarms.silence(&load, hour, &by("ana")).await.unwrap();

    // Another broker, and one whose revision is out of date.
    let (second, stale) = (open().await, alarms);
    let event = next(alarm("alarm.firing", "LoadHigh", &["web-9"]));
    assert_eq!(take(&second, &event).await, Came::Quiet);
    assert_eq!(second.list().await.len(), 2);
    let event = next(alarm("alarm.firing", "DiskFull", &["web-1"]));
    assert_eq!(take(&second, &event).await, Came::Quiet);
    stale
        .silence(&What::Number(1), hour, &by("bruno"))
        .await
        .unwrap();
    let list = open().await.list().await;
    assert!(list[0].silenced_until.is_some() && list[0].acked.is_some());
    // The silence ends, and what still fires is heard of.
    let zero = Span::from_secs(0);
    let third = open().await;
    third.silence(&load, zero, &by("ana")).await.unwrap();
    let error = third.silence(&load, zero, &by("ana")).await.unwrap_err();
    assert_eq!(error.to_string(), "`Load*` is not silenced");
    let event = next(alarm("alarm.firing", "LoadHigh", &["web-9"]));
    assert!(matches!(take(&third, &event).await, Came::Told(t) if t.how == How::New));
    let long = Span::from_secs(86_400 * 31);
    let error = third.silence(&load, long, &by("ana")).await.unwrap_err();
    assert!(matches!(error, AlarmsError::TooLong));
    let event = next(alarm("alarm.resolved", "DiskFull", &["web-1"]));
    assert_eq!(take(&third, &event).await, Came::Quiet, "it is silenced");
    let error = third.ack(1, &by("ana")).await.unwrap_err();
    assert_eq!(error.to_string(), "alarm 1 (DiskFull) is over");
}
