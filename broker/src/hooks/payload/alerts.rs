//! Alarms of Alertmanager and Grafana, which have one form.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use muster_protocol::api::HookKind;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Draft, Unread, any, at, set, text_at, time_at};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;

/// Most alarms of one delivery that are kept.
const MOST: usize = 500;
/// Alarms that are named in the text.
const NAMED: usize = 5;
/// Labels and annotations of an alarm together, as JSON; more is left out.
const MAX_ALARM: usize = 8 * 1024;
/// All alarms together, as JSON; above it only what identifies them is kept.
const MAX_ALL: usize = 256 * 1024;

/// An event for those that are firing, and one for those that are over.
pub(super) fn group(kind: HookKind, body: &Value) -> Result<Vec<Draft>, Unread> {
    let alerts = body
        .get("alerts")
        .and_then(Value::as_array)
        .ok_or_else(|| Unread::NotThis {
            kind,
            why: "there is no list `alerts`".to_owned(),
        })?;
    let (mut firing, mut resolved) = (BTreeMap::new(), BTreeMap::new());
    for alert in alerts.iter().take(MOST) {
        let (print, alarm) = alarm(alert);
        // The same fingerprint twice is one alarm.
        match text_at(alert, &["status"]).as_deref() {
            Some("resolved") => resolved.insert(print, alarm),
            _ => firing.insert(print, alarm),
        };
    }
    let drafts: Vec<Draft> = [("alarm.firing", firing), ("alarm.resolved", resolved)]
        .into_iter()
        .filter(|(_, alarms)| !alarms.is_empty())
        .map(|(kind, alarms)| draft(kind, alarms.into_values().collect(), body, alerts.len()))
        .collect();
    if drafts.is_empty() {
        return Err(Unread::Ignored("no alarm is in it"));
    }
    Ok(drafts)
}

/// What an alarm is known by, and what is kept of it.
fn alarm(alert: &Value) -> (String, Value) {
    let labels = alert.get("labels").cloned().unwrap_or_else(|| json!({}));
    let print = text_at(alert, &["fingerprint"]).unwrap_or_else(|| {
        // Older ones have none: the labels are what an alarm is.
        let mut labels = labels.clone();
        labels.sort_all_objects();
        let digest = Sha256::digest(labels.to_string());
        HEXLOWER.encode(&digest[..8])
    });
    let annotations = alert
        .get("annotations")
        .cloned()
        .unwrap_or_else(|| json!({}));
    let mut fields = Map::new();
    fields.insert("fingerprint".to_owned(), print.as_str().into());
    set(&mut fields, "name", text_at(&labels, &["alertname"]));
    set(&mut fields, "severity", text_at(&labels, &["severity"]));
    set(&mut fields, "instance", text_at(&labels, &["instance"]));
    set(
        &mut fields,
        "summary",
        any(
            &annotations,
            &[&["summary"], &["description"], &["message"]],
        ),
    );
    let since = time_at(alert, &["startsAt"]);
    set(&mut fields, "since", since.map(|at| at.to_string()));
    // The year 1 stands for "not yet".
    let until = time_at(alert, &["endsAt"]).filter(|at| *at > Timestamp::UNIX_EPOCH);
    set(&mut fields, "until", until.map(|at| at.to_string()));
    set(&mut fields, "url", text_at(alert, &["generatorURL"]));
    set(&mut fields, "silence_url", text_at(alert, &["silenceURL"]));
    for (name, value) in [("labels", labels), ("annotations", annotations)] {
        if value.to_string().len() <= MAX_ALARM {
            fields.insert(name.to_owned(), value);
        }
    }
    (print, Value::Object(fields))
}

/// The alarms, with less of each when they are too many.
fn fitted(mut alarms: Vec<Value>) -> Vec<Value> {
    let size: usize = alarms.iter().map(|alarm| alarm.to_string().len()).sum();
    if size > MAX_ALL {
        for alarm in alarms.iter_mut().filter_map(Value::as_object_mut) {
            let kept = ["fingerprint", "name", "severity", "instance"];
            alarm.retain(|name, _| kept.contains(&name.as_str()));
            for value in alarm.values_mut() {
                *value = printable(value.as_str().unwrap_or_default(), 128).into();
            }
        }
    }
    alarms
}

fn draft(kind: &str, alarms: Vec<Value>, body: &Value, of: usize) -> Draft {
    let over = kind == "alarm.resolved";
    let text_of = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let mut lines: Vec<String> = alarms
        .iter()
        .take(NAMED)
        .map(|alarm| {
            let mut line = text_of(alarm, "name");
            let instance = text_of(alarm, "instance");
            if !instance.is_empty() {
                line += &format!(" on {instance}");
            }
            let summary = text_of(alarm, "summary");
            if !summary.is_empty() && !over {
                line += &format!(": {summary}");
            }
            printable(&line, 200)
        })
        .collect();
    if alarms.len() > NAMED {
        lines.push(format!("and {} more", alarms.len() - NAMED));
    }
    let group = any(
        body,
        &[
            &["groupLabels", "alertname"],
            &["commonLabels", "alertname"],
        ],
    );
    let first = alarms.first();
    let subject = group
        .or_else(|| first.map(|alarm| text_of(alarm, "name")))
        .unwrap_or_default();
    let severity = text_at(body, &["commonLabels", "severity"])
        .or_else(|| first.map(|alarm| text_of(alarm, "severity")))
        .filter(|severity| !severity.is_empty());
    let text = format!(
        "{} {}: {}",
        alarms.len(),
        if over { "resolved" } else { "firing" },
        lines.join("; ")
    );
    let mut data = Map::new();
    data.insert(
        "status".to_owned(),
        (if over { "resolved" } else { "firing" }).into(),
    );
    data.insert("count".to_owned(), alarms.len().into());
    set(&mut data, "severity", severity);
    set(&mut data, "group", text_at(body, &["groupKey"]));
    set(&mut data, "receiver", text_at(body, &["receiver"]));
    set(&mut data, "url", any(body, &[&["externalURL"]]));
    for name in ["groupLabels", "commonLabels"] {
        if let Some(labels @ Value::Object(_)) = at(body, &[name])
            && labels.to_string().len() <= MAX_ALARM
        {
            data.insert(name.to_owned(), labels.clone());
        }
    }
    let left_out = body
        .get("truncatedAlerts")
        .and_then(Value::as_u64)
        .unwrap_or(0)
        + of.saturating_sub(MOST) as u64;
    if left_out > 0 {
        data.insert("left_out".to_owned(), left_out.into());
    }
    data.insert("alarms".to_owned(), fitted(alarms).into());
    Draft {
        kind: kind.to_owned(),
        subject,
        text,
        at: None,
        data,
        unique: true,
    }
}
