//! What is recorded of a request that somebody decides on.

use std::any::Any;

use muster_protocol::api::{CreateVms, HypervisorChange, PutImage, PutNetwork, TokenRequest};
use muster_protocol::audit::{About, Entry, SetAbout, Verdict, Who};
use muster_protocol::ids::RunId;
use muster_protocol::names::{ImageName, LanName, NodeName, ScheduleName};
use muster_protocol::text::printable;
use serde_json::{Value, json};

use super::{Audit, AuditError};
use crate::authz::{Action, Caller, Denied, Grant, Group, RunAsk};
use crate::runs::FrozenRun;
use crate::vm::{Act, Destroy};

tokio::task_local! {
    /// Method and path of the request that this task serves.
    static REQUEST: String;
}

/// Does `work` as that request: what is decided in it is recorded as of it.
pub async fn as_request<T>(method: &str, path: &str, work: impl Future<Output = T>) -> T {
    let text = printable(&format!("{method} {path}"), 300);
    REQUEST.scope(text, work).await
}

/// What is asked, before it is decided.
#[derive(Debug)]
pub(crate) struct Asked {
    entry: Entry,
    reads: bool,
}

/// What would run is only shown.
fn is_shown(request: Option<&str>) -> bool {
    request.is_some_and(|request| request.starts_with("GET "))
}

/// The word for what is asked.
fn word(action: &Action, subject: &dyn Any, request: Option<&str>) -> &'static str {
    // Letting a run begin is judged as running it, and is not the same.
    if matches!(action, Action::CreateRun(_)) && (is_shown(request) || !subject.is::<FrozenRun>()) {
        if is_shown(request) {
            return "read-plan";
        }
        return match request.and_then(|request| request.rsplit_once('/')) {
            Some((_, "approve")) => "approve-run",
            Some((_, "confirm")) => "confirm-run",
            _ => action.name(),
        };
    }
    action.name()
}

/// Who asks.
pub(crate) fn who(caller: &Caller) -> Who {
    Who {
        principal: Some(caller.principal.clone()),
        role: Some(caller.role.to_string()),
        token: Some(caller.token.clone()),
        door: serde_json::to_value(caller.door)
            .ok()
            .and_then(|door| door.as_str().map(str::to_owned)),
        origin: serde_json::to_value(&caller.origin).ok(),
    }
}

fn about_run(ask: &RunAsk) -> About {
    About {
        scenario: Some(ask.scenario.clone()),
        version: ask.version,
        mode: Some(ask.mode),
        params: Some(ask.params.clone()),
        sets: ask
            .sets
            .iter()
            .map(|set| SetAbout {
                name: set.name.clone(),
                count: u32::try_from(set.nodes.len()).unwrap_or(u32::MAX),
                nodes: set.nodes.clone(),
            })
            .collect(),
        ..About::default()
    }
}

/// What is known of the thing itself.
fn add_subject(about: &mut About, subject: &dyn Any) {
    let mut more = |name: &str, value: Value| {
        about.more.insert(name.to_owned(), value);
    };
    if let Some(run) = subject.downcast_ref::<FrozenRun>() {
        about.run = Some(run.spec.id);
        about.bundle = Some(run.spec.bundle);
        about.predicate = Some(run.spec.predicate.clone());
        if let Some(old) = run.spec.retry_of {
            about.more.insert("retry_of".to_owned(), json!(old));
        }
    } else if let Some(run) = subject.downcast_ref::<RunId>() {
        about.run = Some(*run);
    } else if let Some(node) = subject.downcast_ref::<NodeName>() {
        about.node = Some(node.clone());
    } else if let Some(request) = subject.downcast_ref::<TokenRequest>() {
        more("for", json!(request.principal));
        more("role", json!(request.role));
    } else if let Some(name) = subject.downcast_ref::<ScheduleName>() {
        more("schedule", json!(name));
    } else if let Some((node, change)) = subject.downcast_ref::<(NodeName, HypervisorChange)>() {
        about.node = Some(node.clone());
        about
            .more
            .insert("cordoned".to_owned(), json!(change.cordoned));
    } else if let Some(vms) = subject.downcast_ref::<CreateVms>() {
        more("vm", json!(vms.name));
        more("image", json!(vms.image));
        more("account", json!(vms.account));
    } else if let Some(destroy) = subject.downcast_ref::<Destroy>() {
        more("vm", json!(destroy.name));
        more("purge", json!(destroy.purge));
    } else if let Some(act) = subject.downcast_ref::<Act>() {
        more("vm", json!(act.name));
        more("what", json!(act.what));
    } else if let Some(name) = subject.downcast_ref::<LanName>() {
        more("network", json!(name));
    } else if let Some((name, put)) = subject.downcast_ref::<(LanName, PutNetwork)>() {
        more("network", json!(name));
        more("pools", json!(put.pools));
    } else if let Some(name) = subject.downcast_ref::<ImageName>() {
        more("image", json!(name));
    } else if let Some((name, put)) = subject.downcast_ref::<(ImageName, PutImage)>() {
        more("image", json!(name));
        more("sha256", json!(put.sha256));
    }
}

impl Asked {
    pub(crate) fn new(caller: &Caller, action: &Action, subject: &dyn Any) -> Self {
        let request = REQUEST.try_with(Clone::clone).ok();
        let mut about = match action {
            Action::CreateRun(ask) => about_run(ask),
            _ => About::default(),
        };
        add_subject(&mut about, subject);
        let word = word(action, subject, request.as_deref());
        // Their lists have no action of their own, and change nothing.
        let lists = matches!(action, Action::ManageTokens | Action::ManageInvites)
            && is_shown(request.as_deref());
        about.request = request;
        let entry = Entry {
            who: who(caller),
            about: Box::new(about),
            ..Audit::entry(word, Verdict::Allowed)
        };
        Self {
            entry,
            reads: action.group() == Group::Read || word == "read-plan" || lists,
        }
    }
}

impl Audit {
    /// Records what was answered. When this returns well, whoever was allowed
    /// may go on.
    ///
    /// # Errors
    /// [`AuditError`]: nobody may go on.
    pub(crate) async fn answered(
        &self,
        asked: Asked,
        answer: Result<&Grant, &Denied>,
    ) -> Result<(), AuditError> {
        let Asked { mut entry, reads } = asked;
        let by = match answer {
            Ok(grant) => {
                if grant.approvals > 0 {
                    let needs = json!(grant.approvals);
                    entry.about.more.insert("approvals".to_owned(), needs);
                }
                &grant.by
            }
            Err(denied) => {
                entry.verdict = Verdict::Denied;
                entry.why = Some(printable(&denied.to_string(), 500));
                &denied.by
            }
        };
        if !by.is_empty() {
            let by: Vec<&str> = by.iter().take(20).map(|id| id.as_str()).collect();
            entry.about.more.insert("policies".to_owned(), json!(by));
        }
        if reads && answer.is_ok() {
            self.note(entry);
            return Ok(());
        }
        self.append(entry).await
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::api::Role;
    use muster_protocol::envelope::Door;

    use super::*;
    use crate::authz::Origin;

    #[tokio::test]
    async fn a_request_says_who_what_and_how() {
        let caller = Caller {
            principal: "ana".parse().unwrap(),
            role: Role::Operator,
            token: "t7".into(),
            door: Door::Cli,
            origin: Origin::Address([127, 0, 0, 1].into()),
        };
        let run = RunId::from_bytes([3; 16]);
        let ask = RunAsk::named("deploy".parse().unwrap(), false);
        let action = Action::CreateRun(Box::new(ask));
        let path = "/v1/runs/abcd/approve";
        let asked = as_request("POST", path, async { Asked::new(&caller, &action, &run) }).await;
        assert_eq!(asked.entry.action, "approve-run");
        assert_eq!(asked.entry.about.run, Some(run));
        assert_eq!(
            asked.entry.about.scenario.as_ref().unwrap().as_str(),
            "deploy"
        );
        let request = asked.entry.about.request.as_deref();
        assert_eq!(request, Some("POST /v1/runs/abcd/approve"));
        assert_eq!(asked.entry.who.door.as_deref(), Some("cli"));
        assert!(!asked.reads);
        for (method, reads) in [("GET", true), ("POST", false)] {
            let made = async { Asked::new(&caller, &Action::ManageTokens, &()) };
            let asked = as_request(method, "/v1/tokens", made).await;
            assert_eq!(asked.reads, reads, "{method}");
        }
        let made = async { Asked::new(&caller, &Action::Backup, &()) };
        assert!(!as_request("GET", "/v1/backup", made).await.reads);
        let asked = Asked::new(&caller, &Action::ReadNodes, &());
        assert!(asked.reads && asked.entry.about.request.is_none());
    }
}
