//! Events of the cluster, in memory and as `CloudEvents` 1.0.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::names::{HookName, PrincipalName};
use crate::units::Timestamp;

/// The version of `CloudEvents` that muster speaks.
pub const SPEC_VERSION: &str = "1.0";
/// The `source` of events that muster itself makes; of a webhook's events it
/// is `/muster/hooks/NAME`. Nobody else may use what begins with it.
pub const OWN_SOURCE: &str = "/muster";
/// The field of an event's data that is for people.
const TEXT: &str = "text";
/// The field that holds data which is no object.
const VALUE: &str = "value";

/// Something that happened. In JSON it is a `CloudEvent`, see [`CloudEvent`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "CloudEvent", into = "CloudEvent")]
pub struct ClusterEvent {
    /// Position in the stream of events; 0 before it is stored.
    pub seq: u64,
    /// What no other event of the same source has.
    pub id: String,
    /// Where it comes from, a URI reference.
    pub source: String,
    /// What kind: `alarm.cloned-node`, `git.push`, …
    pub kind: String,
    /// What it is about: a node's name, a repository, …
    pub subject: String,
    /// When.
    pub at: Timestamp,
    /// For people.
    pub text: String,
    /// For programs.
    pub fields: Map<String, Value>,
    /// The webhook that it came through.
    pub hook: Option<HookName>,
    /// Which delivery of that it was.
    pub delivery: Option<String>,
    /// Who put it in, when it was somebody with a token.
    pub principal: Option<PrincipalName>,
    /// SHA-256 of the bytes that it was made of, where no two events can be
    /// made of the same.
    pub digest: Option<String>,
    /// Extension attributes that muster does not know.
    pub extensions: Map<String, Value>,
}

impl ClusterEvent {
    /// An event of muster's own.
    #[must_use]
    pub fn own(id: String, kind: &str, subject: &str, text: String) -> Self {
        Self {
            seq: 0,
            id,
            source: OWN_SOURCE.to_owned(),
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            at: Timestamp::now(),
            text,
            fields: Map::new(),
            hook: None,
            delivery: None,
            principal: None,
            digest: None,
            extensions: Map::new(),
        }
    }
}

/// An event as `CloudEvents` 1.0 has it in JSON.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct CloudEvent {
    /// `1.0`.
    #[serde(default)]
    pub specversion: String,
    /// What no other event of the same source has.
    #[serde(default)]
    pub id: String,
    /// Where it comes from, a URI reference.
    #[serde(default)]
    pub source: String,
    /// What kind: `alarm.cloned-node`, `git.push`, …
    #[serde(default, rename = "type")]
    pub kind: String,
    /// What it is about: a node's name, a repository, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub time: Option<Timestamp>,
    /// `application/json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacontenttype: Option<String>,
    /// `text` for people, and more for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub data: Option<Value>,
    /// Position in the stream of events; an extension. Absent before it is
    /// stored.
    #[serde(default, skip_serializing_if = "is_unplaced")]
    pub seq: u64,
    /// The webhook that it came through; an extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub hook: Option<HookName>,
    /// Which delivery of that it was; an extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<String>,
    /// Who put it in, when it was somebody with a token; an extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub principal: Option<PrincipalName>,
    /// SHA-256 of the bytes that it was made of; an extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Other extensions.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub extensions: Map<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_unplaced(seq: &u64) -> bool {
    *seq == 0
}

/// Why a `CloudEvent` is none.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotAnEvent {
    /// Another version.
    #[error("`specversion` must be `{SPEC_VERSION}`")]
    Version,
    /// An attribute is missing or empty.
    #[error("`{0}` is missing or empty")]
    Missing(&'static str),
    /// Data that is not JSON.
    #[error("only JSON data is taken: `data_base64`, and data of another content type, are not")]
    NotJson,
}

impl TryFrom<CloudEvent> for ClusterEvent {
    type Error = NotAnEvent;

    fn try_from(event: CloudEvent) -> Result<Self, NotAnEvent> {
        let mut extensions = event.extensions;
        // As events were stored before they were CloudEvents.
        if event.specversion.is_empty()
            && let Some(Value::String(kind)) = extensions.remove("kind")
        {
            let at = extensions.remove("at");
            let at = at.and_then(|at| serde_json::from_value(at).ok());
            return Ok(Self {
                seq: event.seq,
                at: at.ok_or(NotAnEvent::Missing("at"))?,
                subject: event.subject.unwrap_or_default(),
                fields: match extensions.remove("fields") {
                    Some(Value::Object(fields)) => fields,
                    _ => Map::new(),
                },
                ..Self::own(
                    String::new(),
                    &kind,
                    "",
                    match extensions.remove(TEXT) {
                        Some(Value::String(text)) => text,
                        _ => String::new(),
                    },
                )
            });
        }
        if event.specversion != SPEC_VERSION {
            return Err(NotAnEvent::Version);
        }
        for (name, value) in [
            ("id", &event.id),
            ("source", &event.source),
            ("type", &event.kind),
        ] {
            if value.is_empty() {
                return Err(NotAnEvent::Missing(name));
            }
        }
        let json = event.datacontenttype.as_deref().is_none_or(|kind| {
            let kind = kind.split(';').next().unwrap_or_default().trim();
            kind.ends_with("/json") || kind.ends_with("+json")
        });
        if extensions.contains_key("data_base64") || !json {
            return Err(NotAnEvent::NotJson);
        }
        let mut fields = match event.data {
            Some(Value::Object(fields)) => fields,
            None | Some(Value::Null) => Map::new(),
            Some(value) => Map::from_iter([(VALUE.to_owned(), value)]),
        };
        let text = match fields.get(TEXT) {
            Some(Value::String(text)) => text.clone(),
            _ => String::new(),
        };
        if !text.is_empty() {
            fields.remove(TEXT);
        }
        Ok(Self {
            seq: event.seq,
            id: event.id,
            source: event.source,
            kind: event.kind,
            subject: event.subject.unwrap_or_default(),
            at: event.time.unwrap_or_else(Timestamp::now),
            text,
            fields,
            hook: event.hook,
            delivery: event.delivery,
            principal: event.principal,
            digest: event.digest,
            extensions,
        })
    }
}

impl From<ClusterEvent> for CloudEvent {
    fn from(event: ClusterEvent) -> Self {
        let mut data = event.fields;
        if !event.text.is_empty() {
            data.insert(TEXT.to_owned(), Value::String(event.text));
        }
        Self {
            specversion: SPEC_VERSION.to_owned(),
            id: event.id,
            source: event.source,
            kind: event.kind,
            subject: (!event.subject.is_empty()).then_some(event.subject),
            time: Some(event.at),
            datacontenttype: Some("application/json".to_owned()),
            data: Some(Value::Object(data)),
            seq: event.seq,
            hook: event.hook,
            delivery: event.delivery,
            principal: event.principal,
            digest: event.digest,
            extensions: event.extensions,
        }
    }
}

/// What came of events that were put in.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct EventsStored {
    /// Of each, in their order.
    pub events: Vec<EventStored>,
}

/// What came of an event that was put in.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct EventStored {
    /// Its id.
    pub id: String,
    /// Its position in the stream of events.
    pub seq: u64,
    /// It was there already: the same source and id came before.
    pub duplicate: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_a_cloud_event_and_comes_back() {
        let mut event = ClusterEvent::own("i1".into(), "node.up", "web-01", "web-01 is up".into());
        event.at = "2026-11-21T10:00:00Z".parse().unwrap();
        event.fields.insert("nodes".into(), json!(1));
        event.hook = Some("ci".parse().unwrap());
        event.seq = 7;
        let value = serde_json::to_value(&event).unwrap();
        assert_eq!(
            value,
            json!({
                "specversion": "1.0", "id": "i1", "source": "/muster", "type": "node.up",
                "subject": "web-01", "time": "2026-11-21T10:00:00Z",
                "datacontenttype": "application/json",
                "data": { "text": "web-01 is up", "nodes": 1 }, "seq": 7, "hook": "ci"
            })
        );
        assert_eq!(
            serde_json::from_value::<ClusterEvent>(value).unwrap(),
            event
        );
    }

    #[test]
    fn what_was_stored_before_is_read() {
        let old = json!({
            "seq": 0, "at": "2026-11-21T10:00:00Z", "kind": "alarm.clock", "subject": "broker",
            "text": "it was set", "fields": { "a": 1 }
        });
        let event: ClusterEvent = serde_json::from_value(old).unwrap();
        assert_eq!(
            (
                event.kind.as_str(),
                event.subject.as_str(),
                event.text.as_str()
            ),
            ("alarm.clock", "broker", "it was set")
        );
        assert_eq!(event.fields["a"], json!(1));
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let good = json!({ "specversion": "1.0", "id": "1", "source": "/x", "type": "a.b" });
        let parse = |change: &dyn Fn(&mut Value)| {
            let mut value = good.clone();
            change(&mut value);
            serde_json::from_value::<ClusterEvent>(value).map_err(|e| e.to_string())
        };
        assert!(parse(&|_| {}).is_ok());
        for (name, value) in [
            ("specversion", json!("0.3")),
            ("id", json!("")),
            ("source", json!("")),
            ("type", json!("")),
            ("data_base64", json!("AA==")),
            ("datacontenttype", json!("text/xml")),
        ] {
            assert!(
                parse(&|event| event[name] = value.clone()).is_err(),
                "{name}"
            );
        }
        // Data that is no object is kept, and so is what muster does not know.
        let event = parse(&|event| {
            event["data"] = json!([1, 2]);
            event["traceparent"] = json!("x");
        });
        let event = event.unwrap();
        assert_eq!(event.fields["value"], json!([1, 2]));
        assert_eq!(event.extensions["traceparent"], json!("x"));
        let back = serde_json::to_value(&event).unwrap();
        assert_eq!(back["data"], json!({ "value": [1, 2] }));
    }
}
