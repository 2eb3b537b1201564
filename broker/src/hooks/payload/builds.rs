//! Builds: Jenkins, and those of GitHub and GitLab.

use muster_protocol::api::HookKind;
use serde_json::{Map, Value};

use super::{Draft, Unread, any, at, first_line, keep, set, short, text_at, word};

/// Largest parameters of a build that are kept, as JSON.
const MAX_PARAMETERS: usize = 16 * 1024;

/// Where a build is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Queued,
    Started,
    Finished,
}

impl Phase {
    fn kind(self) -> &'static str {
        match self {
            Self::Queued => "build.queued",
            Self::Started => "build.started",
            Self::Finished => "build.finished",
        }
    }
}

/// One build, whoever makes it.
struct Build {
    phase: Phase,
    /// The job, workflow or pipeline.
    name: String,
    number: Option<String>,
    /// As the product says how it ended.
    result: Option<String>,
    repository: Option<String>,
    branch: Option<String>,
    commit: Option<String>,
    url: Option<String>,
    /// More words for people.
    note: Option<String>,
}

/// How a build ended, in the same words for all products.
fn result(text: &str) -> &'static str {
    match word(text).as_str() {
        "success" | "fixed" | "passed" => "success",
        "failure" | "failed" | "error" | "startup-failure" | "still-failing" => "failure",
        "unstable" => "unstable",
        "cancelled" | "canceled" | "aborted" | "stale" => "cancelled",
        "skipped" | "not-built" | "neutral" => "skipped",
        "timed-out" => "timed_out",
        _ => "other",
    }
}

impl Build {
    fn draft(self, body: &Value) -> Draft {
        let mut data = Map::new();
        data.insert("name".to_owned(), self.name.as_str().into());
        set(&mut data, "number", self.number.clone());
        let how = match (self.phase, &self.result) {
            (Phase::Queued, _) => "waits for its turn".to_owned(),
            (Phase::Started, _) => "has begun".to_owned(),
            (Phase::Finished, Some(text)) => {
                let result = result(text);
                data.insert("result".to_owned(), result.into());
                set(&mut data, "result_text", Some(text.clone()));
                match result {
                    "success" => "succeeded".to_owned(),
                    "failure" => "failed".to_owned(),
                    "cancelled" => "was cancelled".to_owned(),
                    "timed_out" => "timed out".to_owned(),
                    _ => format!("ended: {}", first_line(text)),
                }
            }
            (Phase::Finished, None) => {
                data.insert("result".to_owned(), "other".into());
                "ended".to_owned()
            }
        };
        let name = short(&self.name).to_owned();
        let number = self.number.map(|n| format!(" {n}")).unwrap_or_default();
        let on = self
            .branch
            .as_deref()
            .map(|branch| format!(" of {branch}"))
            .unwrap_or_default();
        set(&mut data, "note", self.note.as_deref().map(first_line));
        let note = self
            .note
            .map(|note| format!(": {}", first_line(&note)))
            .unwrap_or_default();
        let text = format!("{name} build{number}{on} {how}{note}");
        let subject = self.repository.clone().unwrap_or(self.name);
        set(&mut data, "repository", self.repository);
        set(&mut data, "branch", self.branch);
        set(&mut data, "commit", self.commit);
        set(&mut data, "url", self.url);
        keep(&mut data, body, &[]);
        Draft {
            kind: self.phase.kind().to_owned(),
            subject,
            text,
            at: None,
            data,
            unique: true,
        }
    }
}

pub(super) fn jenkins(body: &Value) -> Result<Draft, Unread> {
    let not_this = |why: &str| Unread::NotThis {
        kind: HookKind::Jenkins,
        why: why.to_owned(),
    };
    let build = body
        .get("build")
        .ok_or_else(|| not_this("there is no `build`"))?;
    let phase = text_at(build, &["phase"]).ok_or_else(|| not_this("`build` has no `phase`"))?;
    let phase = match phase.to_ascii_uppercase().as_str() {
        "QUEUED" => Phase::Queued,
        "STARTED" => Phase::Started,
        "FINALIZED" | "FINISHED" => Phase::Finished,
        // What is built is archived after that, and it is said again.
        "COMPLETED" => {
            return Err(Unread::Ignored(
                "a build that is completed is told once it is finalized",
            ));
        }
        _ => return Err(Unread::Ignored("a phase that muster does not know")),
    };
    let name =
        any(body, &[&["name"], &["display_name"]]).ok_or_else(|| not_this("there is no `name`"))?;
    let branch = text_at(build, &["scm", "branch"]);
    let branch = branch.map(|b| b.strip_prefix("origin/").unwrap_or(&b).to_owned());
    let mut draft = Build {
        phase,
        name,
        number: text_at(build, &["number"]),
        // Before it has ended, it is that of the build before.
        result: (phase == Phase::Finished)
            .then(|| text_at(build, &["status"]))
            .flatten(),
        repository: None,
        branch,
        commit: text_at(build, &["scm", "commit"]),
        url: any(build, &[&["full_url"], &["url"]]),
        note: None,
    }
    .draft(body);
    if let Some(params @ Value::Object(_)) = build.get("parameters")
        && params.to_string().len() <= MAX_PARAMETERS
    {
        draft.data.insert("parameters".to_owned(), params.clone());
    }
    Ok(draft)
}

fn github_phase(status: Option<&str>, action: Option<&str>) -> Phase {
    match (status, action) {
        (Some("completed"), _) | (_, Some("completed")) => Phase::Finished,
        (Some("queued" | "requested" | "waiting" | "pending"), _) => Phase::Queued,
        _ => Phase::Started,
    }
}

fn github(body: &Value, of: &str, name: Option<String>) -> Result<Draft, Unread> {
    let run = body.get(of).ok_or_else(|| Unread::NotThis {
        kind: HookKind::Github,
        why: format!("there is no `{of}`"),
    })?;
    let status = text_at(run, &["status"]);
    let action = text_at(body, &["action"]);
    Ok(Build {
        phase: github_phase(status.as_deref(), action.as_deref()),
        name: name.unwrap_or_else(|| "build".to_owned()),
        number: any(run, &[&["run_number"], &["id"]]),
        result: text_at(run, &["conclusion"]),
        repository: text_at(body, &["repository", "full_name"]),
        branch: text_at(run, &["head_branch"]),
        commit: text_at(run, &["head_sha"]),
        url: any(run, &[&["html_url"]]),
        note: any(run, &[&["display_title"], &["head_commit", "message"]]),
    }
    .draft(body))
}

pub(super) fn github_workflow(body: &Value) -> Result<Draft, Unread> {
    github(
        body,
        "workflow_run",
        text_at(body, &["workflow_run", "name"]),
    )
}

pub(super) fn github_suite(body: &Value) -> Result<Draft, Unread> {
    github(
        body,
        "check_suite",
        text_at(body, &["check_suite", "app", "name"]),
    )
}

pub(super) fn github_status(body: &Value) -> Result<Draft, Unread> {
    let state = text_at(body, &["state"]).unwrap_or_default();
    let phase = if state == "pending" {
        Phase::Started
    } else {
        Phase::Finished
    };
    Ok(Build {
        phase,
        name: text_at(body, &["context"]).unwrap_or_else(|| "status".to_owned()),
        number: None,
        result: (phase == Phase::Finished).then_some(state),
        repository: text_at(body, &["repository", "full_name"]),
        branch: at(body, &["branches"]).and_then(|branches| text_at(branches.get(0)?, &["name"])),
        commit: text_at(body, &["sha"]),
        url: text_at(body, &["target_url"]),
        note: text_at(body, &["description"]),
    }
    .draft(body))
}

fn gitlab_phase(status: &str) -> Option<Phase> {
    Some(match status {
        "created" | "pending" | "waiting_for_resource" | "preparing" | "scheduled" => Phase::Queued,
        "running" => Phase::Started,
        "success" | "failed" | "canceled" | "skipped" => Phase::Finished,
        _ => return None,
    })
}

pub(super) fn gitlab_pipeline(body: &Value) -> Result<Draft, Unread> {
    let status = text_at(body, &["object_attributes", "status"]).unwrap_or_default();
    let phase =
        gitlab_phase(&status).ok_or(Unread::Ignored("a status that muster does not know"))?;
    let of = |name: &str| text_at(body, &["object_attributes", name]);
    Ok(Build {
        phase,
        name: of("name").unwrap_or_else(|| "pipeline".to_owned()),
        number: of("iid").or_else(|| of("id")),
        result: (phase == Phase::Finished).then_some(status),
        repository: text_at(body, &["project", "path_with_namespace"]),
        branch: of("ref"),
        commit: of("sha"),
        url: of("url").or_else(|| {
            let project = text_at(body, &["project", "web_url"])?;
            Some(format!("{project}/-/pipelines/{}", of("id")?))
        }),
        note: text_at(body, &["commit", "title"]),
    }
    .draft(body))
}

pub(super) fn gitlab_job(body: &Value) -> Result<Draft, Unread> {
    let status = text_at(body, &["build_status"]).unwrap_or_default();
    let phase =
        gitlab_phase(&status).ok_or(Unread::Ignored("a status that muster does not know"))?;
    Ok(Build {
        phase,
        name: text_at(body, &["build_name"]).unwrap_or_else(|| "job".to_owned()),
        number: text_at(body, &["build_id"]),
        result: (phase == Phase::Finished).then_some(status),
        repository: any(
            body,
            &[&["project", "path_with_namespace"], &["project_name"]],
        ),
        branch: text_at(body, &["ref"]),
        commit: text_at(body, &["sha"]),
        url: text_at(body, &["repository", "homepage"])
            .zip(text_at(body, &["build_id"]))
            .map(|(home, id)| format!("{home}/-/jobs/{id}")),
        note: text_at(body, &["build_failure_reason"]).filter(|why| why != "unknown_failure"),
    }
    .draft(body))
}
