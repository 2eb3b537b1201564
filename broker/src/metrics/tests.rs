use std::collections::BTreeSet;

use super::*;

#[tokio::test]
async fn a_parser_reads_what_is_written() {
    let metrics = Metrics::new();
    let took = Duration::from_millis(7);
    metrics.answered(Method::GET, "/v1/nodes", 200, took);
    metrics.answered(Method::GET, "/v1/nodes", 404, took);
    metrics.refused(Why::Watchers);
    metrics.appended(took, false);
    metrics.outcomes("succeeded", 2);
    metrics.ended("failed");
    let own: Counter = Counter::default();
    metrics.register("hook_deliveries", "Webhooks that came", own.clone());
    own.inc_by(3);
    let watching = metrics.begin_watching();
    let standing = Standing {
        epoch: Some(7),
        nodes: Some([("up", 3), ("down", 1)].into()),
        certificate_ends: Some(1_800_000_000),
        stored: vec![Stored {
            name: "MUSTER_EVENTS".into(),
            bytes: 10,
            messages: 2,
            last: 5,
        }],
        ..Standing::default()
    };
    let text = metrics.text(&standing).await.unwrap();
    drop(watching);
    assert!(text.ends_with("# EOF\n"), "{text}");
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    let parsed = prometheus_parse::Scrape::parse(lines).unwrap();
    let value = |name: &str, labels: &[(&str, &str)]| {
        parsed
            .samples
            .iter()
            .find(|s| s.metric == name && labels.iter().all(|(k, v)| s.labels.get(k) == Some(*v)))
            .map(|s| match s.value {
                prometheus_parse::Value::Counter(v)
                | prometheus_parse::Value::Gauge(v)
                | prometheus_parse::Value::Untyped(v) => v,
                ref other => panic!("{name}: {other:?}"),
            })
    };
    let labels = [("method", "GET"), ("route", "/v1/nodes"), ("status", "404")];
    assert_eq!(value("muster_http_requests_total", &labels), Some(1.0));
    assert_eq!(value("muster_nodes", &[("state", "up")]), Some(3.0));
    assert_eq!(value("muster_active", &[]), Some(1.0));
    assert_eq!(value("muster_lease_epoch", &[]), Some(7.0));
    assert_eq!(value("muster_watchers", &[]), Some(1.0));
    assert_eq!(value("muster_hook_deliveries_total", &[]), Some(3.0));
    assert_eq!(
        value("muster_journal_append_failures_total", &[]),
        Some(1.0)
    );
    let stream = [("stream", "MUSTER_EVENTS")];
    assert_eq!(value("muster_stream_size_bytes", &stream), Some(10.0));
    assert_eq!(
        value("muster_tls_certificate_expiry_timestamp_seconds", &[]),
        Some(1_800_000_000.0)
    );
    // What is no more is not told any more.
    let text = metrics.text(&Standing::default()).await.unwrap();
    assert!(
        !text.contains("state=\"up\"") && !text.contains("MUSTER_EVENTS"),
        "{text}"
    );
    assert!(text.contains("muster_watchers 0\n"), "{text}");
}

#[tokio::test]
async fn names_and_units_are_by_the_convention() {
    let metrics = Metrics::new();
    metrics.answered(Method::Other, "none", 404, Duration::ZERO);
    metrics.refused(Why::Rate);
    metrics.outcomes("unknown", 1);
    metrics.ended("cancelled");
    let standing = Standing {
        nodes: Some([("up", 3)].into()),
        runs: [("running", 1)].into(),
        certificate_ends: Some(1),
        stored: vec![Stored {
            name: "S".into(),
            bytes: 1,
            messages: 1,
            last: 1,
        }],
        ..Standing::default()
    };
    let text = metrics.text(&standing).await.unwrap();
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some("#"), Some(what), Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        assert!(name.starts_with("muster_"), "{line}");
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{line}"
        );
        match what {
            "TYPE" => assert!(names.insert(name.to_owned()), "twice: {line}"),
            "UNIT" => assert!(
                name.ends_with(&format!("_{}", words.next().unwrap())),
                "{line}"
            ),
            "HELP" => assert!(words.next().is_some(), "{line}"),
            _ => panic!("{line}"),
        }
        // A time is in seconds, and says so.
        assert!(!name.contains("_ms") && !name.contains("millis"), "{line}");
        if name.contains("duration") {
            assert!(name.ends_with("_seconds"), "{line}");
        }
    }
    assert!(names.len() > 20, "{names:?}");
}
