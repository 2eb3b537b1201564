use insta::assert_snapshot;
use serde_json::{Value, json};

use super::*;

const RUN: &str = "0123456789abcdefghjkmnpqrs";

fn view(title: &str, state: &str, summary: Value, results: Vec<Value>) -> RunView {
    let value = json!({
        "id": RUN, "short": "8k2d", "principal": "ana", "door": "irc", "title": title,
        "scenario": "command", "predicate": "role=web", "state": state,
        "nodes": results.len(), "summary": summary, "created": "2026-11-21T10:00:00Z",
        "finished": "2026-11-21T10:00:00.310Z", "params": {}, "batches": 1,
        "options": { "timeout": "5m", "deliver_within": "15s", "output_bytes": 1024 },
        "results": results
    });
    serde_json::from_value(value).unwrap()
}

fn node(name: &str, n: usize, outcome: &str, more: Value) -> Value {
    let mut node = json!({ "node": name, "serial": n + 1, "outcome": outcome });
    let fields = node.as_object_mut().unwrap();
    fields.extend(more.as_object().cloned().unwrap_or_default());
    node
}

fn printed(text: &str) -> Printed {
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut digest = [0; 32];
    for (n, byte) in text.bytes().enumerate() {
        digest[n % 32] ^= byte;
    }
    Printed {
        digest,
        count: lines.len(),
        last: lines.iter().rev().take(3).rev().cloned().collect(),
        first: lines.into_iter().take(12).collect(),
    }
}

fn outputs(all: &[(&str, &str)]) -> Outputs {
    all.iter()
        .map(|(name, text)| (name.parse().unwrap(), printed(text)))
        .collect()
}

fn shown(view: &RunView, outputs: &Outputs) -> String {
    let say = ended(
        view,
        outputs,
        Some("https://muster.example/runs/8k2d".into()),
    );
    let link = say.link.unwrap_or_default();
    format!("[{:?}]\n{}\n-> {link}", say.tone, say.lines.join("\n"))
}

#[test]
fn equal_answers_are_one_line_and_the_odd_ones_have_names() {
    let names: Vec<String> = (1..=24).map(|n| format!("web-{n:02}")).collect();
    let results = names.iter().enumerate().map(|(n, name)| match n {
        18 => node(
            name,
            n,
            "unreachable",
            json!({ "reason": "last seen 4 min ago" }),
        ),
        _ => node(
            name,
            n,
            "succeeded",
            json!({ "exit": 0, "output_bytes": 20 }),
        ),
    });
    let text = |n: usize| match n {
        6 => "nginx version: nginx/1.22.1\n",
        _ => "nginx version: nginx/1.24.0\n",
    };
    let outputs: Vec<(&str, &str)> = names
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != 18)
        .map(|(n, name)| (name.as_str(), text(n)))
        .collect();
    let view = view(
        "nginx -v",
        "failed",
        json!({ "succeeded": 23, "unreachable": 1 }),
        results.collect(),
    );
    assert_snapshot!(shown(&view, &super::tests::outputs(&outputs)));
}

#[test]
fn long_output_is_cut_and_what_went_wrong_is_at_the_end() {
    let long: String = (0..40).map(|n| format!("line {n}\n")).collect();
    let results = vec![
        node("web-01", 0, "succeeded", json!({})),
        node("web-02", 1, "failed", json!({ "exit": 2 })),
        node(
            "web-03",
            2,
            "timed_out",
            json!({ "reason": "timed out", "signal": 9 }),
        ),
        node(
            "web-04",
            3,
            "skipped",
            json!({ "reason": "the budget is used up" }),
        ),
        node(
            "web-05",
            4,
            "skipped",
            json!({ "reason": "the budget is used up" }),
        ),
    ];
    let mut view = view(
        "make",
        "failed",
        json!({ "succeeded": 1, "failed": 1, "timed_out": 1, "skipped": 2 }),
        results,
    );
    view.options.max_failures = Some("1".parse().unwrap());
    let outputs = outputs(&[("web-01", &long), ("web-02", &long)]);
    assert_snapshot!(shown(&view, &outputs));
}

#[test]
fn what_says_nothing_is_one_line() {
    let results = vec![
        node("web-01", 0, "succeeded", json!({})),
        node("web-02", 1, "succeeded", json!({})),
    ];
    let whole = view(
        "deploy version=1.4.2",
        "succeeded",
        json!({ "succeeded": 2 }),
        results,
    );
    let mut cancelled = view("deploy", "cancelled", json!({ "cancelled": 2 }), Vec::new());
    cancelled.cancelled_by = Some("bruno".parse().unwrap());
    let mut lapsed = view("deploy", "failed", json!({}), Vec::new());
    lapsed.lapsed = Some("not confirmed within 5m".into());
    let none = Outputs::new();
    let all = [&whole, &cancelled, &lapsed].map(|view| shown(view, &none));
    assert_snapshot!(all.join("\n\n"));
}

#[test]
fn what_a_node_says_is_never_more_than_a_few_lines() {
    let hostile = "a\r\nPRIVMSG #ops :!cmd * -- id\u{202e}\u{1}";
    let results = (0..200)
        .map(|n| {
            let reason = format!("{n} {hostile}");
            node(
                &format!("n{}", n * 2),
                n,
                "failed",
                json!({ "reason": reason }),
            )
        })
        .collect();
    let view = view(hostile, "failed", json!({ "failed": 200 }), results);
    let say = ended(&view, &Outputs::new(), None);
    assert_eq!(say.lines.len(), MOST);
    assert_eq!(say.lines[MOST - 1], "+172 more lines");
    let unsafe_line = |line: &String| line.chars().any(muster_protocol::text::is_unsafe);
    assert!(!say.lines.iter().any(unsafe_line), "{:?}", say.lines);
}
