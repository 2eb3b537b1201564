//! How groups and sets are shown.

use muster_protocol::api::{GroupChanged, GroupView, InForce, Version};
use muster_protocol::text::printable_line;

use crate::Context;
use crate::failure::Failure;
use crate::ui::table::Table;
use crate::ui::time::moment;
use crate::ui::{Paint, thousands};

/// Names in one sentence.
const NAMED: usize = 5;

/// `in force on 4 of 4 hypervisors`.
pub(in crate::verbs) fn in_force(force: &InForce) -> String {
    if force.of == 0 {
        return "no hypervisor is concerned".to_owned();
    }
    let many = if force.of == 1 { "" } else { "s" };
    let mut text = format!("in force on {} of {} hypervisor{many}", force.on, force.of);
    if !force.waiting.is_empty() {
        let mut names: Vec<String> = force.waiting.iter().map(ToString::to_string).collect();
        let more = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        if more > 0 {
            names.push(format!("{more} more"));
        }
        text.push_str(&format!("; waits for {}", names.join(", ")));
    }
    text
}

/// Says what became of a change.
pub(super) fn changed(context: &Context, answer: &GroupChanged, json: bool) -> Result<u8, Failure> {
    if json {
        context.term.json(answer)?;
    } else {
        let text = format!("{}, {}", answer.what, in_force(&answer.force));
        context.term.line(&text)?;
    }
    Ok(0)
}

pub(super) fn table(all: &[GroupView], paint: Paint, width: usize) -> String {
    let mut table = Table::new(&["NAME", "RULES", "MACHINES", "VERSION", "ACCOUNT", "CHANGED"]);
    for view in all {
        table.row([
            view.name.to_string().into(),
            thousands(view.count.into()).into(),
            thousands(view.machines.into()).into(),
            view.version.to_string().into(),
            view.account.as_ref().map_or("-", |a| a.as_str()).into(),
            format!("{} by {}", moment(view.at), view.by).into(),
        ]);
    }
    table.render(paint, width)
}

/// Names, or a dash.
pub(super) fn names<T: ToString>(all: &[T], of: u32) -> String {
    if all.is_empty() {
        return "-".to_owned();
    }
    let shown: Vec<String> = all.iter().take(20).map(ToString::to_string).collect();
    let more = usize::try_from(of)
        .unwrap_or(usize::MAX)
        .saturating_sub(shown.len());
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Lines of a card.
pub(super) fn lines(all: &[(&str, String)]) -> String {
    let mut out = String::new();
    for (what, value) in all {
        out.push_str(&printable_line(&format!("{what:<10}{value}")));
        out.push('\n');
    }
    out
}

pub(super) fn card(view: &GroupView, paint: Paint, width: usize) -> String {
    let named_by = u32::try_from(view.named_by.len()).unwrap_or(u32::MAX);
    let account = view.account.as_ref().map_or("-", |a| a.as_str());
    let labels = crate::verbs::labels(&view.labels);
    let mut out = lines(&[
        ("group", view.name.to_string()),
        ("account", account.to_owned()),
        (
            "labels",
            if labels.is_empty() {
                "-".to_owned()
            } else {
                labels
            },
        ),
        ("machines", names(&view.members, view.machines)),
        ("named by", names(&view.named_by, named_by)),
        (
            "version",
            format!("{}, {} by {}", view.version, moment(view.at), view.by),
        ),
    ]);
    out.push('\n');
    if view.rules.is_empty() {
        out.push_str("no rules: nothing gets in\n");
        return out;
    }
    let mut table = Table::new(&["RULE", "DIRECTION", "TRAFFIC", "FROM/TO", "COMMENT"]);
    for rule in &view.rules {
        let comment = rule.comment.as_ref().map_or("", |text| text.as_str());
        table.row([
            rule.id.to_string().into(),
            rule.direction.to_string().into(),
            rule.traffic.to_string().into(),
            rule.peer.to_string().into(),
            printable_line(comment).into(),
        ]);
    }
    out.push_str(&table.render(paint, width));
    out
}

pub(super) fn versions<T>(all: &[Version<T>], paint: Paint, width: usize) -> String {
    let mut table = Table::new(&["VERSION", "WHEN", "WHO", "WHAT"]);
    for one in all {
        table.row([
            one.version.to_string().into(),
            moment(one.at).into(),
            one.by.to_string().into(),
            printable_line(&one.what).into(),
        ]);
    }
    table.render(paint, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::api::GroupVersion;
    use serde_json::json;

    #[test]
    fn a_group_is_shown_with_its_rules_and_who_is_in_it() {
        let view: GroupView = serde_json::from_value(json!({
            "name": "web", "account": "acme", "version": 4, "count": 2, "machines": 23,
            "rules": [
                {"id": 1, "direction": "ingress", "traffic": "tcp 80,443", "peer": "any"},
                {"id": 3, "direction": "ingress", "traffic": "tcp 22", "peer": "set:office",
                 "comment": "the \"front\" door"},
            ],
            "members": ["web-01", "web-02"], "named_by": ["db"],
            "by": "ana", "at": "2026-11-22T10:00:00Z",
        }))
        .expect("a group");
        insta::assert_snapshot!(card(&view, Paint::plain(), 100), @r#"
        group     web
        account   acme
        labels    -
        machines  web-01, web-02 and 21 more
        named by  db
        version   4, 2026-11-22 10:00:00 by ana

        RULE  DIRECTION  TRAFFIC     FROM/TO     COMMENT
        1     ingress    tcp 80,443  any
        3     ingress    tcp 22      set:office  the "front" door
        "#);
        insta::assert_snapshot!(table(&[view], Paint::plain(), 100), @"
        NAME  RULES  MACHINES  VERSION  ACCOUNT  CHANGED
        web   2      23        4        acme     2026-11-22 10:00:00 by ana
        ");
    }

    #[test]
    fn what_waits_is_named() {
        let said = |force: serde_json::Value| {
            in_force(&serde_json::from_value(force).expect("where it is in force"))
        };
        insta::assert_snapshot!(said(json!({"of": 0, "on": 0})), @"no hypervisor is concerned");
        insta::assert_snapshot!(said(json!({"of": 1, "on": 1})), @"in force on 1 of 1 hypervisor");
        insta::assert_snapshot!(
            said(json!({"of": 9, "on": 2, "waiting": ["a", "b", "c", "d", "e", "f", "g"]})),
            @"in force on 2 of 9 hypervisors; waits for a, b, c, d, e, 2 more"
        );
    }

    #[test]
    fn versions_are_a_table() {
        let all: Vec<GroupVersion> = serde_json::from_value(json!([
            {"version": 2, "by": "ana", "at": "2026-11-22T10:00:00Z",
             "what": "added rule 1: ingress tcp 80 from any"},
            {"version": 1, "by": "bob", "at": "2026-11-22T09:00:00Z", "what": "made: group web"},
        ]))
        .expect("versions");
        insta::assert_snapshot!(versions(&all, Paint::plain(), 100), @"
        VERSION  WHEN                 WHO  WHAT
        2        2026-11-22 10:00:00  ana  added rule 1: ingress tcp 80 from any
        1        2026-11-22 09:00:00  bob  made: group web
        ");
    }
}
