//! A route as it is declared.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use muster_protocol::api::{ClusterEvent, Secret};
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use reqwest::Url;
use serde::Deserialize;

use crate::events::glob::Glob;
use crate::hooks::file::Secrets;

/// How long one event is tried when nothing is said.
const GIVE_UP: Duration = Duration::from_secs(86_400);
/// Longest time that can be said.
const MOST_GIVE_UP: Duration = Duration::from_secs(7 * 86_400);
/// How long the other side may take for an answer when nothing is said.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest template, in bytes.
const MAX_TEMPLATE: u64 = 64 * 1024;
/// Work that a template may do for one event.
const FUEL: u64 = 200_000;
/// Largest body that a template may make, in bytes.
const MAX_BODY: usize = 1 << 20;
/// Name of the template.
const TEMPLATE: &str = "template";

/// A route as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRoute {
    kinds: Vec<String>,
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

/// What is sent.
pub enum Format {
    /// The event as a `CloudEvent`.
    CloudEvents,
    /// What a template makes of it.
    Template {
        /// The template, under its name.
        environment: Box<minijinja::Environment<'static>>,
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
                environment,
                content_type,
            } => {
                let template = environment
                    .get_template(TEMPLATE)
                    .map_err(|e| e.to_string())?;
                let event = serde_json::to_value(event).map_err(|e| e.to_string())?;
                let body = template
                    .render(event)
                    .map_err(|e| format!("the template cannot be filled in: {e}"))?;
                if body.len() > MAX_BODY {
                    return Err("what the template makes is too large".to_owned());
                }
                Ok((content_type.clone(), body.into_bytes()))
            }
        }
    }
}

/// A route. Its URL can be a secret: it never prints.
#[derive(Clone)]
pub struct Route {
    /// Which kinds of events.
    pub kinds: Vec<Glob>,
    /// What is sent.
    pub format: std::sync::Arc<Format>,
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

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("kinds", &self.kinds)
            .field("to", &self.to())
            .finish_non_exhaustive()
    }
}

impl PartialEq for Route {
    /// The same place, asked in the same way.
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
            && self.secret == other.secret
            && self.ca == other.ca
            && self.kinds == other.kinds
            && self.timeout == other.timeout
            && self.give_up == other.give_up
            && std::sync::Arc::ptr_eq(&self.format, &other.format)
    }
}

impl Route {
    /// Holds what is written against everything that can be known of it.
    ///
    /// # Errors
    /// All mistakes.
    pub fn checked(raw: RawRoute, secrets: &mut Secrets<'_>) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let mut kinds = Vec::new();
        for kind in &raw.kinds {
            match kind.parse::<Glob>() {
                Ok(glob) => kinds.push(glob),
                Err(error) => wrong.push(format!("`kinds`: {error}")),
            }
        }
        if raw.kinds.is_empty() || raw.kinds.len() > 64 {
            wrong.push("`kinds` names 1 to 64 kinds of events, such as `alarm.*`".to_owned());
        }
        let url = match (raw.url, raw.url_file) {
            (Some(text), None) => parse_url(&text),
            (None, Some(file)) => secrets
                .read("url", None, Some(file))
                .and_then(|secret| parse_url(secret.as_ref().map_or("", Secret::expose))),
            _ => Err("it needs a `url` or a `url_file`".to_owned()),
        };
        let secret = secrets.read("secret", raw.secret, raw.secret_file);
        let template = match (raw.template, raw.template_file) {
            (Some(_), Some(_)) => {
                Err("`template` and `template_file`: only one of them".to_owned())
            }
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
            (None | Some("template"), Some(text)) => compile(text, content),
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
            (Ok(url), Ok(secret), Ok(format), Ok(ca)) if wrong.is_empty() => Ok(Self {
                kinds,
                format: std::sync::Arc::new(format),
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

    /// Whether it is for this event.
    #[must_use]
    pub fn takes(&self, event: &ClusterEvent) -> bool {
        self.kinds.iter().any(|kind| kind.fits(&event.kind))
    }
}

fn parse_url(text: &str) -> Result<Url, String> {
    // Never the URL itself in the message: it can be a secret.
    let url = Url::parse(text.trim()).map_err(|e| format!("the URL cannot be read: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("the URL must begin with https:// or http://".to_owned());
    }
    Ok(url)
}

fn compile(text: String, content_type: String) -> Result<Format, String> {
    if text.len() as u64 > MAX_TEMPLATE {
        return Err(format!("`template` has more than {MAX_TEMPLATE} bytes"));
    }
    let mut environment = minijinja::Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.add_filter("json", |value: minijinja::Value| {
        serde_json::to_string(&value).map_err(|error| {
            minijinja::Error::new(minijinja::ErrorKind::BadSerialization, error.to_string())
        })
    });
    environment
        .add_template_owned(TEMPLATE, text)
        .map_err(|e| format!("`template`: {e}"))?;
    Ok(Format::Template {
        environment: Box::new(environment),
        content_type,
    })
}
