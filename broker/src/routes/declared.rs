//! A route as it is declared.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{ClusterEvent, Secret};
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use reqwest::Url;
use serde::Deserialize;

use super::template::{MAX_TEMPLATE, Template};
use crate::chat::place::ChannelAt;
use crate::events::fields::{self, Fields, MOST};
use crate::events::glob::Glob;
use crate::hooks::file::Secrets;

/// How long one event is tried when nothing is said.
const GIVE_UP: Duration = Duration::from_secs(86_400);
/// Longest time that can be said.
const MOST_GIVE_UP: Duration = Duration::from_secs(7 * 86_400);
/// How long the other side may take for an answer when nothing is said.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A route as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRoute {
    kinds: Vec<String>,
    #[serde(rename = "where", default)]
    conditions: toml::Table,
    repository: Option<toml::Value>,
    channel: Option<String>,
    channels: Option<Vec<String>>,
    url: Option<String>,
    url_file: Option<PathBuf>,
    secret: Option<String>,
    secret_file: Option<PathBuf>,
    format: Option<String>,
    template: Option<String>,
    template_file: Option<PathBuf>,
    content_type: Option<String>,
    ca_file: Option<PathBuf>,
    timeout: Option<Span>,
    give_up: Option<Span>,
}

impl RawRoute {
    /// Whether anything is said that is for outgoing webhooks alone.
    fn is_outgoing(&self) -> bool {
        self.url.is_some()
            || self.url_file.is_some()
            || self.secret.is_some()
            || self.secret_file.is_some()
            || self.format.is_some()
            || self.template.is_some()
            || self.template_file.is_some()
            || self.content_type.is_some()
            || self.ca_file.is_some()
            || self.timeout.is_some()
            || self.give_up.is_some()
    }
}

/// What is sent.
pub enum Format {
    /// The event as a `CloudEvent`.
    CloudEvents,
    /// What a template makes of it.
    Template {
        /// The template.
        template: Template,
        /// As what it is sent.
        content_type: String,
    },
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Format {
    /// The word for it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::CloudEvents => "cloudevents",
            Self::Template { .. } => "template",
        }
    }

    /// Content type and body for an event.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn body(&self, event: &ClusterEvent) -> Result<(String, Vec<u8>), String> {
        match self {
            Self::CloudEvents => Ok((
                "application/cloudevents+json".to_owned(),
                serde_json::to_vec(event).map_err(|e| e.to_string())?,
            )),
            Self::Template {
                template,
                content_type,
            } => {
                let event = serde_json::to_value(event).map_err(|e| e.to_string())?;
                Ok((content_type.clone(), template.fill(&event)?))
            }
        }
    }
}

/// An outgoing webhook. Its URL can be a secret: it never prints.
#[derive(Clone)]
pub struct Outgoing {
    /// What is sent.
    pub format: Arc<Format>,
    /// With what it is signed.
    pub secret: Option<Secret>,
    /// How long one event is tried.
    pub give_up: Duration,
    /// How long the other side may take for an answer.
    pub timeout: Duration,
    /// Who signs the other side's certificate, PEM; whom the machine trusts
    /// when absent.
    pub ca: Option<String>,
    url: Url,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("to", &self.to())
            .finish_non_exhaustive()
    }
}

impl PartialEq for Outgoing {
    /// The same place, asked in the same way.
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
            && self.secret == other.secret
            && self.ca == other.ca
            && self.timeout == other.timeout
            && self.give_up == other.give_up
            && Arc::ptr_eq(&self.format, &other.format)
    }
}

impl Outgoing {
    /// Where to, to send.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Where to, to show.
    #[must_use]
    pub fn to(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port().map(|p| format!(":{p}")).unwrap_or_default();
        format!("{}://{host}{port}", self.url.scheme())
    }
}

/// Where events go.
#[derive(Clone, Debug, PartialEq)]
pub enum To {
    /// Somebody else's webhook.
    Webhook(Outgoing),
    /// Channels of chat networks.
    Channels(Vec<ChannelAt>),
}

/// Which events a route is for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Which kinds.
    pub kinds: Vec<Glob>,
    /// What their fields must be.
    fields: Fields,
    /// Of which repositories: the whole name, or what follows its last `/`.
    repositories: Vec<Glob>,
}

impl Wanted {
    /// Whether it is for this event.
    #[must_use]
    pub fn takes(&self, event: &ClusterEvent) -> bool {
        self.kinds.iter().any(|kind| kind.fits(&event.kind))
            && (self.repositories.is_empty() || self.is_of_repository(event))
            // Of most routes nothing more is asked, and a JSON form costs.
            && (self.fields.is_empty()
                || serde_json::to_value(event).is_ok_and(|event| self.fields.fit(&event)))
    }

    /// Whether a kind is named as it is, without a `*`.
    #[must_use]
    pub fn names(&self, kind: &str) -> bool {
        self.kinds.iter().any(|glob| glob.as_str() == kind)
    }

    fn is_of_repository(&self, event: &ClusterEvent) -> bool {
        let name = event
            .fields
            .get("repository")
            .and_then(|name| name.as_str());
        name.is_some_and(|name| {
            let short = name.rsplit('/').next().unwrap_or(name);
            self.repositories
                .iter()
                .any(|glob| glob.fits(name) || glob.fits(short))
        })
    }

    fn checked(
        kinds: &[String],
        conditions: toml::Table,
        repository: Option<toml::Value>,
    ) -> Result<Self, Vec<String>> {
        let (mut wanted, mut wrong) = (Self::default(), Vec::new());
        for kind in kinds {
            match kind.parse::<Glob>() {
                Ok(glob) => wanted.kinds.push(glob),
                Err(error) => wrong.push(format!("`kinds`: {error}")),
            }
        }
        if kinds.is_empty() || kinds.len() > MOST {
            wrong.push(format!(
                "`kinds` names 1 to {MOST} kinds of events, such as `alarm.*`"
            ));
        }
        match Fields::checked("where", conditions) {
            Ok(fields) => wanted.fields = fields,
            Err(errors) => wrong.extend(errors),
        }
        match repository.map(fields::json).map(fields::globs).transpose() {
            Ok(globs) => wanted.repositories = globs.unwrap_or_default(),
            Err(error) => wrong.push(format!("`repository`: {error}")),
        }
        if wrong.is_empty() {
            Ok(wanted)
        } else {
            Err(wrong)
        }
    }
}

/// A route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Which events.
    pub wanted: Arc<Wanted>,
    /// Where they go.
    pub to: To,
}

impl PartialEq for Route {
    /// Declared once: one that is read anew is another one unless nothing can
    /// be told from it.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.wanted, &other.wanted) && self.to == other.to
    }
}

impl Route {
    /// Holds what is written against everything that can be known of it.
    ///
    /// # Errors
    /// All mistakes.
    pub fn checked(mut raw: RawRoute, secrets: &mut Secrets<'_>) -> Result<Self, Vec<String>> {
        let conditions = std::mem::take(&mut raw.conditions);
        let wanted = Wanted::checked(&raw.kinds, conditions, raw.repository.take());
        let to = match (raw.channel.take(), raw.channels.take()) {
            (None, None) => outgoing(raw, secrets).map(To::Webhook),
            (Some(_), Some(_)) => Err(vec![
                "`channel` and `channels`: only one of them".to_owned(),
            ]),
            _ if raw.is_outgoing() => Err(vec![
                "a route to a channel has `kinds`, `where` and `repository`, and nothing of what is for a `url`"
                    .to_owned(),
            ]),
            (one, several) => channels(&several.unwrap_or_else(|| one.into_iter().collect())),
        };
        match (wanted, to) {
            (Ok(wanted), Ok(to)) => Ok(Self {
                wanted: Arc::new(wanted),
                to,
            }),
            (wanted, to) => {
                let wrong = [wanted.err(), to.err()];
                Err(wrong.into_iter().flatten().flatten().collect())
            }
        }
    }

    /// Where to, to show.
    #[must_use]
    pub fn to(&self) -> String {
        match &self.to {
            To::Webhook(outgoing) => outgoing.to(),
            To::Channels(channels) => {
                let names: Vec<String> = channels.iter().map(ToString::to_string).collect();
                names.join(", ")
            }
        }
    }

    /// What is sent, in a word.
    #[must_use]
    pub fn format(&self) -> &'static str {
        match &self.to {
            To::Webhook(outgoing) => outgoing.format.as_str(),
            To::Channels(_) => "chat",
        }
    }

    /// Whether it is for this event.
    #[must_use]
    pub fn takes(&self, event: &ClusterEvent) -> bool {
        self.wanted.takes(event)
    }
}

fn channels(names: &[String]) -> Result<To, Vec<String>> {
    let (mut channels, mut wrong) = (Vec::new(), Vec::new());
    for name in names {
        match name.parse::<ChannelAt>() {
            Ok(channel) if channels.contains(&channel) => {}
            Ok(channel) => channels.push(channel),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    if names.is_empty() || names.len() > MOST {
        wrong.push(format!("`channels` names 1 to {MOST} channels"));
    }
    if wrong.is_empty() {
        Ok(To::Channels(channels))
    } else {
        Err(wrong)
    }
}

fn outgoing(raw: RawRoute, secrets: &mut Secrets<'_>) -> Result<Outgoing, Vec<String>> {
    let mut wrong = Vec::new();
    let url = match (raw.url, raw.url_file) {
        (Some(text), None) => parse_url(&text),
        (None, Some(file)) => secrets
            .read("url", None, Some(file))
            .and_then(|secret| parse_url(secret.as_ref().map_or("", Secret::expose))),
        _ => Err("it needs a `url` or a `url_file`, or a `channel`".to_owned()),
    };
    let secret = secrets.read("secret", raw.secret, raw.secret_file);
    let template = match (raw.template, raw.template_file) {
        (Some(_), Some(_)) => Err("`template` and `template_file`: only one of them".to_owned()),
        (None, Some(file)) => secrets.text("template_file", &file, MAX_TEMPLATE).map(Some),
        (template, None) => Ok(template),
    };
    let content = raw
        .content_type
        .unwrap_or_else(|| "application/json".to_owned());
    if content.parse::<axum::http::HeaderValue>().is_err() {
        wrong.push("`content_type` is no content type".to_owned());
    }
    let format = template.and_then(|template| match (raw.format.as_deref(), template) {
        (None | Some("cloudevents"), None) => Ok(Format::CloudEvents),
        (None | Some("template"), Some(text)) => {
            Template::compile(text).map(|template| Format::Template {
                template,
                content_type: content,
            })
        }
        (Some("template"), None) => {
            Err("format `template` needs a `template` or a `template_file`".to_owned())
        }
        (Some("cloudevents"), Some(_)) => {
            Err("a `template` is for format `template` only".to_owned())
        }
        (Some(other), _) => Err(format!(
            "`format` is `cloudevents` or `template`, not `{}`",
            printable(other, 40)
        )),
    });
    let ca = raw
        .ca_file
        .map(|file| secrets.text("ca_file", &file, 1 << 20))
        .transpose();
    let ca = ca.and_then(|ca| match &ca {
        Some(pem) if reqwest::Certificate::from_pem_bundle(pem.as_bytes()).is_err() => {
            Err("`ca_file` holds no certificate".to_owned())
        }
        _ => Ok(ca),
    });
    let give_up = raw.give_up.map_or(GIVE_UP, Span::get);
    if give_up.is_zero() || give_up > MOST_GIVE_UP {
        wrong.push("`give_up` is a time of at most 7d".to_owned());
    }
    let timeout = raw.timeout.map_or(TIMEOUT, Span::get);
    if timeout.is_zero() || timeout > Duration::from_secs(60) {
        wrong.push("`timeout` is a time of at most 60s".to_owned());
    }
    match (url, secret, format, ca) {
        (Ok(url), Ok(secret), Ok(format), Ok(ca)) if wrong.is_empty() => Ok(Outgoing {
            format: Arc::new(format),
            secret,
            give_up,
            timeout,
            ca,
            url,
        }),
        (url, secret, format, ca) => {
            wrong.extend(
                [url.err(), secret.err(), format.err(), ca.err()]
                    .into_iter()
                    .flatten(),
            );
            Err(wrong)
        }
    }
}

/// A URL that something can be sent to.
///
/// # Errors
/// What is wrong with it, without the URL itself.
pub fn parse_url(text: &str) -> Result<Url, String> {
    // Never the URL itself in the message: it can be a secret.
    let url = Url::parse(text.trim()).map_err(|e| format!("the URL cannot be read: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("the URL must begin with https:// or http://".to_owned());
    }
    Ok(url)
}
