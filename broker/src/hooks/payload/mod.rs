//! What a delivery says: the body of each product as events. Pure.

mod alerts;
mod builds;
mod forge;
#[cfg(test)]
mod tests;

use axum::http::HeaderMap;
use muster_protocol::api::HookKind;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use serde_json::{Map, Value};

use super::verify::header;

/// Longest text that is kept of a field.
const MAX_FIELD: usize = 2_000;
/// Largest part of a body that is kept as it came, as JSON.
const MAX_PAYLOAD: usize = 64 * 1024;

/// An event that a delivery becomes, before it has a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// Its kind.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// For people.
    pub text: String,
    /// When it happened, where the body says so.
    pub at: Option<Timestamp>,
    /// For programs.
    pub data: Map<String, Value>,
    /// No two of them can come of the same bytes: whoever sends these bytes
    /// again means the same event.
    pub unique: bool,
}

/// Why a body is no event.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unread {
    /// Nothing is wrong; there is nothing to tell.
    #[error("{0}")]
    Ignored(&'static str),
    /// It is not what that product sends.
    #[error("the body is not what {kind} sends: {why}")]
    NotThis {
        /// The product.
        kind: HookKind,
        /// What is missing.
        why: String,
    },
}

/// What a delivery says.
///
/// # Errors
/// [`Unread`].
pub fn read(kind: HookKind, headers: &HeaderMap, body: Value) -> Result<Vec<Draft>, Unread> {
    match kind {
        HookKind::Github => forge::github(headers, &body).map(|one| vec![one]),
        HookKind::Gitlab => forge::gitlab(&body).map(|one| vec![one]),
        HookKind::Gitea | HookKind::Forgejo => {
            forge::gitea(kind, headers, &body).map(|one| vec![one])
        }
        HookKind::Jenkins => builds::jenkins(&body).map(|one| vec![one]),
        HookKind::Alertmanager | HookKind::Grafana => alerts::group(kind, &body),
        HookKind::Generic => Ok(vec![generic(body)]),
    }
}

/// What identifies a delivery, where the sender says it.
#[must_use]
pub fn delivery_id(kind: HookKind, headers: &HeaderMap) -> Option<String> {
    let names: &[&str] = match kind {
        HookKind::Github => &["x-github-delivery"],
        // The same for each try; the other is of the webhook's event.
        HookKind::Gitlab => &["idempotency-key", "x-gitlab-event-uuid"],
        HookKind::Gitea | HookKind::Forgejo => &["x-forgejo-delivery", "x-gitea-delivery"],
        HookKind::Generic => &["webhook-id"],
        HookKind::Jenkins | HookKind::Alertmanager | HookKind::Grafana => &[],
    };
    let plain =
        |text: &&str| (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    names
        .iter()
        .find_map(|name| header(headers, name).filter(plain))
        .map(str::to_owned)
}

fn generic(body: Value) -> Draft {
    let mut data = match body {
        Value::Object(data) => data,
        other => Map::from_iter([("payload".to_owned(), other)]),
    };
    let text = match data.get("text") {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    };
    if !text.is_empty() {
        data.remove("text");
    }
    let subject = text_at(&Value::Object(data.clone()), &["subject"]).unwrap_or_default();
    Draft {
        kind: "hook.received".to_owned(),
        subject,
        text: if text.is_empty() {
            "a webhook was called".to_owned()
        } else {
            text
        },
        at: None,
        data,
        unique: false,
    }
}

fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, name| value.get(name))
}

/// A text that is there and says something.
fn text_at(value: &Value, path: &[&str]) -> Option<String> {
    match at(value, path)? {
        Value::String(text) if !text.is_empty() => Some(cut(text)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The first of several places that says something.
fn any(value: &Value, paths: &[&[&str]]) -> Option<String> {
    paths.iter().find_map(|path| text_at(value, path))
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_FIELD).collect()
}

fn time_at(value: &Value, path: &[&str]) -> Option<Timestamp> {
    match at(value, path)? {
        Value::String(text) => text.parse().ok(),
        // Seconds, or milliseconds as Jenkins has them.
        Value::Number(number) => match number.as_i64()? {
            ms @ 100_000_000_000.. => Timestamp::from_millisecond(ms).ok(),
            secs => Timestamp::from_second(secs).ok(),
        },
        _ => None,
    }
}

/// Puts a text in when there is one.
fn set(data: &mut Map<String, Value>, name: &str, value: Option<String>) {
    if let Some(value) = value {
        data.insert(name.to_owned(), Value::String(value));
    }
}

/// The body as it came, without what is in the event already and without links
/// into the product's own API, which nobody asks an event for; nothing, but
/// for a word about it, when that is too large.
fn keep(data: &mut Map<String, Value>, body: &Value, without: &[&str]) {
    let mut body = body.clone();
    if let Value::Object(body) = &mut body {
        for name in without {
            body.remove(*name);
        }
    }
    prune(&mut body);
    let size = body.to_string().len();
    if size <= MAX_PAYLOAD {
        data.insert("payload".to_owned(), body);
    } else {
        data.insert("payload_left_out".to_owned(), size.into());
    }
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !is_api_link(value));
            fields.values_mut().for_each(prune);
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

fn is_api_link(value: &Value) -> bool {
    value.as_str().is_some_and(|text| {
        text.starts_with("https://api.")
            || (text.starts_with("http") && (text.contains("/api/v") || text.contains("{/")))
    })
}

/// A word that can be a part of a kind.
fn word(text: &str) -> String {
    let word: String = text
        .chars()
        .take(40)
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => c,
            _ => '-',
        })
        .collect();
    word.trim_matches('-').to_owned()
}

/// The first line of a message, for people.
fn first_line(text: &str) -> String {
    printable(text.lines().next().unwrap_or_default(), 100)
}

/// The last part of a path, as people call a repository.
fn short(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}
