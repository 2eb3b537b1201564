//! A build that can be asked for in chat, as it is declared.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use muster_protocol::api::{ClusterEvent, Secret};
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use reqwest::Url;
use serde::Deserialize;
use serde_json::json;

use crate::events::fields;
use crate::events::glob::Glob;
use crate::hooks::file::Secrets;
use crate::routes::parse_url;
use crate::routes::template::{MAX_TEMPLATE, Template};

/// How long the other side may take for an answer when nothing is said.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most parameters.
const MOST: usize = 32;
/// Longest value of a parameter, in bytes.
const MAX_VALUE: usize = 1_024;
/// The parameter in which a form says which request it is.
const ID: &str = "muster_build";

/// A build as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBuild {
    url: Option<String>,
    url_file: Option<PathBuf>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    user: Option<String>,
    format: Option<String>,
    template: Option<String>,
    template_file: Option<PathBuf>,
    content_type: Option<String>,
    ca_file: Option<PathBuf>,
    timeout: Option<Span>,
    #[serde(default)]
    params: BTreeMap<String, String>,
    repository: Option<toml::Value>,
    workflow: Option<toml::Value>,
    branch: Option<toml::Value>,
    help: Option<String>,
}

/// What is sent.
#[derive(Debug)]
enum Format {
    /// The parameters, as a form.
    Form,
    /// The parameters, as JSON.
    Json,
    /// What a template makes of them.
    Template(Template, String),
}

/// A build that can be asked for. Its URL can be a secret: it never prints.
#[derive(Clone)]
pub struct Build {
    /// How long the other side may take for an answer.
    pub timeout: Duration,
    /// Who signs the other side's certificate, PEM.
    pub ca: Option<String>,
    /// For people.
    pub help: Option<String>,
    /// Its parameters, and what they are when nothing is said.
    pub params: BTreeMap<String, String>,
    url: Url,
    headers: Vec<(HeaderName, HeaderValue)>,
    token: Option<Secret>,
    user: Option<String>,
    format: Arc<Format>,
    repositories: Vec<Glob>,
    workflows: Vec<Glob>,
    branches: Vec<Glob>,
}

impl fmt::Debug for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Build")
            .field("to", &self.url.host_str())
            .field("params", &self.params)
            .finish_non_exhaustive()
    }
}

impl Build {
    /// Holds what is written against everything that can be known of it.
    ///
    /// # Errors
    /// All mistakes.
    pub fn checked(raw: RawBuild, secrets: &mut Secrets<'_>) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let url = match (raw.url, raw.url_file) {
            (Some(text), None) => parse_url(&text),
            (None, Some(file)) => secrets
                .read("url", None, Some(file))
                .and_then(|secret| parse_url(secret.as_ref().map_or("", Secret::expose))),
            _ => Err("it needs a `url` or a `url_file`".to_owned()),
        };
        let token = secrets.read("token", raw.token, raw.token_file);
        if raw.user.is_some() && matches!(token, Ok(None)) {
            wrong.push("`user` needs a `token` or a `token_file`".to_owned());
        }
        let mut headers = Vec::new();
        for (name, value) in raw.headers {
            match (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
                (Ok(name), Ok(value)) if name != "authorization" => headers.push((name, value)),
                (Ok(_), Ok(_)) => {
                    wrong.push("`headers`: what authorises goes into `token_file`".to_owned());
                }
                _ => wrong.push(format!(
                    "`headers`: `{}` is no header",
                    printable(&name, 80)
                )),
            }
        }
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
        if content.parse::<HeaderValue>().is_err() {
            wrong.push("`content_type` is no content type".to_owned());
        }
        let format = template.and_then(|template| match (raw.format.as_deref(), template) {
            (None | Some("template"), Some(text)) => {
                Template::compile(text).map(|template| Format::Template(template, content))
            }
            (None | Some("json"), None) => Ok(Format::Json),
            (Some("form"), None) => Ok(Format::Form),
            _ => Err("`format` is `json`, `form` or `template`, with a `template`".to_owned()),
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
        let timeout = raw.timeout.map_or(TIMEOUT, Span::get);
        if timeout.is_zero() || timeout > Duration::from_secs(60) {
            wrong.push("`timeout` is a time of at most 60s".to_owned());
        }
        let plain = |name: &str| {
            let letters = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
            (1..=64).contains(&name.len()) && name.bytes().all(letters)
        };
        if raw.params.len() > MOST || !raw.params.keys().all(|name| plain(name)) {
            wrong.push(format!(
                "`params`: at most {MOST}, with names of letters, digits, `_` and `-`"
            ));
        }
        let mut globs = |name: &str, value: Option<toml::Value>| {
            let globs = value.map(fields::json).map(fields::globs).transpose();
            globs
                .map(Option::unwrap_or_default)
                .unwrap_or_else(|error| {
                    wrong.push(format!("`{name}`: {error}"));
                    Vec::new()
                })
        };
        let repositories = globs("repository", raw.repository);
        let workflows = globs("workflow", raw.workflow);
        let branches = globs("branch", raw.branch);
        match (url, token, format, ca) {
            (Ok(url), Ok(token), Ok(format), Ok(ca)) if wrong.is_empty() => Ok(Self {
                timeout,
                ca,
                help: raw.help.map(|help| printable(&help, 200)),
                params: raw.params,
                url,
                headers,
                token,
                user: raw.user,
                format: Arc::new(format),
                repositories,
                workflows,
                branches,
            }),
            (url, token, format, ca) => {
                let more = [url.err(), token.err(), format.err(), ca.err()];
                wrong.extend(more.into_iter().flatten());
                Err(wrong)
            }
        }
    }

    /// The parameters, with what is not said as it is declared.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn with(&self, said: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, String> {
        let mut params = self.params.clone();
        for (name, value) in said {
            if value.len() > MAX_VALUE || printable(&value, MAX_VALUE) != value {
                return Err(format!(
                    "`{}` is at most {MAX_VALUE} bytes of plain text",
                    printable(&name, 64)
                ));
            }
            match params.get_mut(&name) {
                Some(param) => *param = value,
                None => {
                    let names: Vec<&str> = self.params.keys().map(String::as_str).collect();
                    let there = match names.as_slice() {
                        [] => "it has none".to_owned(),
                        names => format!("there are: {}", names.join(", ")),
                    };
                    return Err(format!(
                        "there is no parameter `{}`; {there}",
                        printable(&name, 64)
                    ));
                }
            }
        }
        Ok(params)
    }

    /// The request that asks for it.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn request(
        &self,
        client: &reqwest::Client,
        id: &str,
        by: &str,
        params: &BTreeMap<String, String>,
    ) -> Result<reqwest::Request, String> {
        let (content, body) = match &*self.format {
            Format::Json => {
                let body = serde_json::to_vec(params).map_err(|e| e.to_string())?;
                ("application/json", body)
            }
            Format::Form => {
                let mut form = self.url.clone();
                form.set_query(None);
                form.query_pairs_mut()
                    .extend_pairs(params)
                    .append_pair(ID, id);
                let body = form.query().unwrap_or_default().to_owned();
                ("application/x-www-form-urlencoded", body.into_bytes())
            }
            Format::Template(template, content) => {
                let data = json!({ "id": id, "by": by, "params": params });
                (content.as_str(), template.fill(&data)?)
            }
        };
        let mut request = client
            .post(self.url.clone())
            .header("content-type", content)
            .body(body);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request = match (&self.user, &self.token) {
            (Some(user), Some(token)) => request.basic_auth(user, Some(token.expose())),
            (None, Some(token)) => request.bearer_auth(token.expose()),
            (_, None) => request,
        };
        request.build().map_err(|e| e.without_url().to_string())
    }

    /// Whether an event of a build can be one of these, by what is declared.
    #[must_use]
    pub fn fits(&self, event: &ClusterEvent, params: &BTreeMap<String, String>) -> bool {
        let word = |name: &str| event.fields.get(name).and_then(|value| value.as_str());
        let one_of = |globs: &[Glob], text: Option<&str>| {
            globs.is_empty()
                || text.is_some_and(|text| {
                    let short = text.rsplit('/').next().unwrap_or(text);
                    globs.iter().any(|glob| glob.fits(text) || glob.fits(short))
                })
        };
        if self.repositories.is_empty() && self.workflows.is_empty() {
            return false;
        }
        // A branch that was asked for is the one that is built.
        let branch = match (params.get("branch"), word("branch")) {
            (Some(wanted), Some(branch)) if self.branches.is_empty() => wanted == branch,
            (_, branch) => one_of(&self.branches, branch),
        };
        one_of(&self.repositories, word("repository"))
            && one_of(&self.workflows, word("name"))
            && branch
    }
}
