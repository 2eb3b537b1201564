//! GitHub, GitLab, Gitea and Forgejo.

use axum::http::HeaderMap;
use muster_protocol::api::HookKind;
use serde_json::{Map, Value, json};

use super::builds;
use super::{Draft, Unread, any, at, cut, first_line, keep, set, short, text_at, word};
use crate::hooks::verify::header;

/// Bytes that the messages of all commits of a push may take together.
const MESSAGES: usize = 192 * 1024;
/// Above so many commits only id and message are kept of each.
const WHOLE: usize = 300;
/// Most commits of a push: no product sends more.
const COMMITS: usize = 2_500;
/// Commits that are named in the text.
const NAMED: usize = 3;

fn not_this(kind: HookKind, why: &str) -> Unread {
    Unread::NotThis {
        kind,
        why: why.to_owned(),
    }
}

/// Which names the products have for the same things.
struct Names {
    kind: HookKind,
    repository: &'static [&'static [&'static str]],
    url: &'static [&'static [&'static str]],
    who: &'static [&'static [&'static str]],
}

const GITHUB: Names = Names {
    kind: HookKind::Github,
    repository: &[&["repository", "full_name"], &["repository", "name"]],
    url: &[&["repository", "html_url"]],
    who: &[
        &["pusher", "name"],
        &["pusher", "login"],
        &["sender", "login"],
    ],
};

const GITLAB: Names = Names {
    kind: HookKind::Gitlab,
    repository: &[&["project", "path_with_namespace"], &["repository", "name"]],
    url: &[&["project", "web_url"], &["repository", "homepage"]],
    who: &[
        &["user_username"],
        &["user_name"],
        &["user", "username"],
        &["user", "name"],
    ],
};

pub(super) fn github(headers: &HeaderMap, body: &Value) -> Result<Draft, Unread> {
    let event = header(headers, "x-github-event")
        .ok_or_else(|| not_this(HookKind::Github, "there is no header X-GitHub-Event"))?;
    match event {
        "ping" => Ok(ping(&GITHUB, body)),
        "push" => push(&GITHUB, body),
        "pull_request" => Ok(change(&GITHUB, body, &["pull_request"], "number")),
        "workflow_run" => builds::github_workflow(body),
        "check_suite" => builds::github_suite(body),
        "status" => builds::github_status(body),
        other => Ok(anything(&GITHUB, other, body)),
    }
}

pub(super) fn gitea(kind: HookKind, headers: &HeaderMap, body: &Value) -> Result<Draft, Unread> {
    let names = Names { kind, ..GITHUB };
    let event = header(headers, "x-forgejo-event")
        .or_else(|| header(headers, "x-gitea-event"))
        .or_else(|| header(headers, "x-github-event"))
        .ok_or_else(|| not_this(kind, "there is no header X-Gitea-Event"))?;
    match event {
        "push" => push(&names, body),
        // A push of it comes, too.
        "create" => Err(Unread::Ignored("a push tells the same")),
        "delete" => Ok(deleted(&names, body)),
        "pull_request" => Ok(change(&names, body, &["pull_request"], "number")),
        other => Ok(anything(&names, other, body)),
    }
}

pub(super) fn gitlab(body: &Value) -> Result<Draft, Unread> {
    let kind = text_at(body, &["object_kind"])
        .ok_or_else(|| not_this(HookKind::Gitlab, "there is no `object_kind`"))?;
    match kind.as_str() {
        "push" | "tag_push" => push(&GITLAB, body),
        "merge_request" => Ok(change(&GITLAB, body, &["object_attributes"], "iid")),
        "pipeline" => builds::gitlab_pipeline(body),
        "build" => builds::gitlab_job(body),
        other => Ok(anything(&GITLAB, other, body)),
    }
}

fn ping(names: &Names, body: &Value) -> Draft {
    let mut data = Map::new();
    keep(&mut data, body, &[]);
    let subject = any(body, names.repository).unwrap_or_default();
    let text = text_at(body, &["zen"]).unwrap_or_default();
    Draft {
        kind: "hook.ping".to_owned(),
        text: format!(
            "{} tries whether it is heard: {}",
            names.kind,
            first_line(&text)
        ),
        subject,
        at: None,
        data,
        unique: false,
    }
}

/// What every event of a forge has.
fn common(names: &Names, body: &Value) -> (Map<String, Value>, String, String) {
    let repository = any(body, names.repository).unwrap_or_default();
    let who = any(body, names.who).unwrap_or_else(|| "somebody".to_owned());
    let mut data = Map::new();
    data.insert("repository".to_owned(), repository.as_str().into());
    data.insert("pusher".to_owned(), who.as_str().into());
    set(&mut data, "repository_url", any(body, names.url));
    (data, repository, who)
}

fn is_nothing(hash: Option<&str>) -> bool {
    hash.is_some_and(|hash| !hash.is_empty() && hash.bytes().all(|b| b == b'0'))
}

/// The beginning of a text, at most so many bytes.
fn beginning(text: &str, room: usize) -> &str {
    let mut end = text.len().min(room);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn commit(value: &Value, room: usize, whole: bool) -> Option<Value> {
    let id = text_at(value, &["id"])?;
    let message = value.get("message").and_then(Value::as_str);
    let message = beginning(message.unwrap_or_default(), room);
    let mut commit = json!({ "id": beginning(&id, 64), "message": message });
    if !whole {
        return Some(commit);
    }
    let author = any(value, &[&["author", "name"], &["author", "username"]]);
    let fields = commit.as_object_mut()?;
    for (name, text) in [
        ("url", text_at(value, &["url"])),
        ("author", author),
        ("email", text_at(value, &["author", "email"])),
        ("time", text_at(value, &["timestamp"])),
    ] {
        set(
            fields,
            name,
            text.map(|text| beginning(&text, 256).to_owned()),
        );
    }
    Some(commit)
}

fn push(names: &Names, body: &Value) -> Result<Draft, Unread> {
    let full = text_at(body, &["ref"]).ok_or_else(|| not_this(names.kind, "there is no `ref`"))?;
    let (mut data, repository, who) = common(names, body);
    let (before, after) = (text_at(body, &["before"]), text_at(body, &["after"]));
    let deleted =
        is_nothing(after.as_deref()) || body.get("deleted").and_then(Value::as_bool) == Some(true);
    let created = is_nothing(before.as_deref());
    data.insert("ref".to_owned(), full.as_str().into());
    let (name, is_tag) = match full.strip_prefix("refs/tags/") {
        Some(tag) => (tag, true),
        None => (full.strip_prefix("refs/heads/").unwrap_or(&full), false),
    };
    let what = if is_tag { "tag" } else { "branch" };
    data.insert(what.to_owned(), name.into());
    set(&mut data, "before", before);
    set(&mut data, "after", after.clone());
    data.insert("created".to_owned(), created.into());
    data.insert("deleted".to_owned(), deleted.into());
    if let Some(forced) = body.get("forced").and_then(Value::as_bool) {
        data.insert("forced".to_owned(), forced.into());
    }
    let url = any(body, &[&["compare"], &["compare_url"]]);
    set(&mut data, "url", url);
    let listed = body.get("commits").and_then(Value::as_array);
    let listed: &[Value] = listed.map_or(&[], Vec::as_slice);
    let room = (MESSAGES / listed.len().max(1)).min(2_000);
    let commits: Vec<Value> = listed
        .iter()
        .take(COMMITS)
        .filter_map(|one| commit(one, room, listed.len() <= WHOLE))
        .collect();
    // GitLab says at most 20 of them, and how many there are.
    let total = body
        .get("total_commits_count")
        .or_else(|| body.get("total_commits"))
        .and_then(Value::as_u64)
        .unwrap_or(commits.len() as u64);
    let head = body
        .get("head_commit")
        .and_then(|head| commit(head, 2_000, true))
        .or_else(|| {
            let id = any(body, &[&["checkout_sha"], &["after"]])?;
            let listed = commits.iter().find(|commit| commit["id"] == *id);
            listed
                .cloned()
                .or_else(|| (!deleted).then(|| json!({ "id": id })))
        });
    let lines: Vec<String> = commits
        .iter()
        .take(NAMED)
        .map(|commit| first_line(commit["message"].as_str().unwrap_or_default()))
        .collect();
    let place = short(&repository);
    let text = if deleted {
        format!("{who} removed {what} {name} of {place}")
    } else if is_tag {
        format!("{who} pushed tag {name} of {place}")
    } else if commits.is_empty() && created {
        format!("{who} made branch {name} of {place}")
    } else {
        let more = usize::try_from(total)
            .unwrap_or(usize::MAX)
            .saturating_sub(lines.len());
        let more = match more {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let how = if data.get("forced") == Some(&Value::Bool(true)) {
            "forced"
        } else {
            "pushed"
        };
        format!(
            "{who} {how} {total} to {name} of {place}: {}{more}",
            lines.join("; ")
        )
    };
    if let Some(head) = head {
        data.insert("head_commit".to_owned(), head);
    }
    data.insert("commits_total".to_owned(), total.into());
    data.insert("commits".to_owned(), commits.into());
    keep(&mut data, body, &["commits", "head_commit"]);
    let kind = match (deleted, is_tag) {
        (true, _) => "git.deleted",
        (false, true) => "git.tag",
        (false, false) => "git.push",
    };
    Ok(Draft {
        kind: kind.to_owned(),
        subject: repository,
        text,
        at: None,
        data,
        unique: true,
    })
}

fn deleted(names: &Names, body: &Value) -> Draft {
    let (mut data, repository, who) = common(names, body);
    let what = text_at(body, &["ref_type"]).unwrap_or_else(|| "branch".to_owned());
    let name = text_at(body, &["ref"]).unwrap_or_default();
    let folder = if what == "tag" { "tags" } else { "heads" };
    data.insert("ref".to_owned(), format!("refs/{folder}/{name}").into());
    data.insert(word(&what), name.as_str().into());
    data.insert("deleted".to_owned(), true.into());
    keep(&mut data, body, &[]);
    Draft {
        kind: "git.deleted".to_owned(),
        text: format!("{who} removed {what} {name} of {}", short(&repository)),
        subject: repository,
        at: None,
        data,
        unique: false,
    }
}

fn change(names: &Names, body: &Value, of: &[&str], number: &str) -> Draft {
    let (mut data, repository, who) = common(names, body);
    let change = at(body, of).unwrap_or(&Value::Null);
    let action = any(body, &[&["action"], &["object_attributes", "action"]]);
    let merged = change.get("merged").and_then(Value::as_bool) == Some(true);
    let action = match action.as_deref() {
        Some("closed") if merged => "merged".to_owned(),
        Some("merge") => "merged".to_owned(),
        Some("synchronized" | "synchronize" | "update") => "changed".to_owned(),
        Some("open" | "opened") => "opened".to_owned(),
        Some("close" | "closed") => "closed".to_owned(),
        Some(other) => word(other),
        None => "changed".to_owned(),
    };
    let number = text_at(change, &[number]).unwrap_or_default();
    let title = text_at(change, &["title"]).unwrap_or_default();
    data.insert("action".to_owned(), action.as_str().into());
    data.insert("number".to_owned(), number.as_str().into());
    set(&mut data, "title", Some(cut(&title)));
    set(&mut data, "url", any(change, &[&["html_url"], &["url"]]));
    set(
        &mut data,
        "branch",
        any(change, &[&["head", "ref"], &["source_branch"]]),
    );
    set(
        &mut data,
        "base",
        any(change, &[&["base", "ref"], &["target_branch"]]),
    );
    set(
        &mut data,
        "commit",
        any(change, &[&["head", "sha"], &["last_commit", "id"]]),
    );
    keep(&mut data, body, &[]);
    Draft {
        kind: "git.change".to_owned(),
        text: format!(
            "{who}: {} #{number} {action}: {}",
            short(&repository),
            first_line(&title)
        ),
        subject: repository,
        at: None,
        data,
        unique: false,
    }
}

/// An event that muster has no kind for: it is kept as it came.
fn anything(names: &Names, event: &str, body: &Value) -> Draft {
    let (mut data, repository, who) = common(names, body);
    let action = text_at(body, &["action"]).unwrap_or_default();
    keep(&mut data, body, &[]);
    let text = format!("{who}: {event} {action}").trim_end().to_owned();
    Draft {
        kind: format!("{}.{}", names.kind, word(event)),
        subject: repository,
        text,
        at: None,
        data,
        unique: false,
    }
}
