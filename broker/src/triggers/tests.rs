use std::time::Duration;

use muster_protocol::api::{ClusterEvent, Role};
use muster_protocol::names::TriggerName;
use serde_json::{Map, Value, json};

use super::declared::{RawTrigger, Trigger, run_id};

fn name() -> TriggerName {
    "deploy".parse().unwrap()
}

fn trigger(text: &str) -> Trigger {
    let raw: RawTrigger = toml::from_str(text).unwrap();
    Trigger::checked(&name(), raw).unwrap()
}

fn event() -> ClusterEvent {
    let data = json!({
        "ref": "refs/heads/main", "forced": false, "labels": ["a", "deploy-me"], "number": 7,
        "head_commit": { "id": "4f1e" }, "nothing": null
    });
    let Value::Object(fields) = data else {
        unreachable!()
    };
    ClusterEvent {
        source: "/muster/hooks/github".into(),
        hook: Some("github".parse().unwrap()),
        delivery: Some("d1".into()),
        fields,
        seq: 12,
        ..ClusterEvent::own("d1".into(), "git.push", "acme/webapp", "text".into())
    }
}

fn unfit(when: &str, event: &ClusterEvent) -> Option<String> {
    let trigger = trigger(&format!("when = {when}\nscenario = \"deploy\""));
    trigger
        .when
        .unfit_whole(event, &serde_json::to_value(event).unwrap())
}

#[test]
fn an_event_fits_when_everything_that_is_said_holds() {
    for when in [
        r#"{ kind = "git.push" }"#,
        r#"{ kind = ["build.finished", "git.*"] }"#,
        r#"{ kind = "git.push", hook = "github", "data.ref" = "refs/heads/main" }"#,
        r#"{ kind = "git.push", data.ref = ["refs/heads/release-*", "refs/heads/m*n"] }"#,
        r#"{ kind = "git.push", subject = "acme/*", ref = "refs/heads/main" }"#,
        r#"{ kind = "git.push", "data.forced" = false, number = 7 }"#,
        r#"{ kind = "git.push", number = "7" }"#,
        r#"{ kind = "git.push", labels = "deploy-*" }"#,
    ] {
        assert_eq!(unfit(when, &event()), None, "{when}");
    }
    for (when, why) in [
        (
            r#"{ kind = ["git.tag", "build.*", "x"] }"#,
            "its kind is git.push, not git.tag, build.* or x",
        ),
        (
            r#"{ kind = "git.push", hook = "other" }"#,
            "it does not come through webhook other",
        ),
        (
            r#"{ kind = "git.push", data.ref = "refs/heads/x" }"#,
            r#"its data.ref is "refs/heads/main", not "refs/heads/x""#,
        ),
        (
            r#"{ kind = "git.push", data.a = "x", data.ref = ["y", "z"] }"#,
            r#"it has no data.a; its data.ref is "refs/heads/main", not "y" or "z""#,
        ),
        (
            r#"{ kind = "git.push", data.tag = "x" }"#,
            "it has no data.tag",
        ),
        (
            r#"{ kind = "git.push", data.forced = true }"#,
            "its data.forced is false, not true",
        ),
        (
            r#"{ kind = "git.push", principal = "ci/*" }"#,
            "it was not put in by ci/*",
        ),
    ] {
        assert_eq!(unfit(when, &event()).as_deref(), Some(why), "{when}");
    }
}

#[test]
fn what_somebody_put_in_counts_only_where_that_is_said() {
    let put = ClusterEvent {
        hook: None,
        principal: Some("ci/webapp".parse().unwrap()),
        ..event()
    };
    assert!(
        unfit(r#"{ kind = "git.push" }"#, &put)
            .unwrap()
            .contains("ci/webapp put it in")
    );
    assert_eq!(
        unfit(r#"{ kind = "git.push", principal = "ci/*" }"#, &put),
        None
    );
    assert!(unfit(r#"{ kind = "git.push", principal = "ana" }"#, &put).is_some());
    // What triggers themselves tell would go round and round.
    let own = ClusterEvent::own("1".into(), "alarm.trigger-refused", "x", String::new());
    assert!(unfit(r#"{ kind = "alarm.*" }"#, &own).is_some());
}

#[test]
fn parameters_come_from_the_event_or_are_what_they_are() {
    let params = |text: &str| {
        let text =
            format!("when = {{ kind = \"git.push\" }}\nscenario = \"deploy\"\nparams = {text}");
        trigger(&text).params(&serde_json::to_value(event()).unwrap())
    };
    assert_eq!(
        params(
            r#"{ commit = "$.data.head_commit.id", again = "$.head_commit.id", hook = "$.hook", n = 3, price = "$5", path = "$$.x" }"#
        ),
        Ok(Map::from_iter([
            ("commit".to_owned(), json!("4f1e")),
            ("again".to_owned(), json!("4f1e")),
            ("hook".to_owned(), json!("github")),
            ("n".to_owned(), json!(3)),
            ("price".to_owned(), json!("$5")),
            ("path".to_owned(), json!("$.x")),
        ]))
    );
    for missing in ["$.data.head_commit.sha", "$.nothing", "$.data.labels[9]"] {
        let error = params(&format!("{{ commit = \"{missing}\" }}")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("parameter `commit`: the event has nothing at {missing}")
        );
    }
}

#[test]
fn a_trigger_asks_as_itself_and_the_record_says_why() {
    let plain = trigger("when = { kind = \"git.push\" }\nscenario = \"deploy\"");
    let caller = plain.caller(&name(), &event());
    assert_eq!(
        (caller.principal.as_str(), caller.role),
        ("trigger:deploy", Role::Member)
    );
    let origin = serde_json::to_value(&caller.origin).unwrap();
    assert_eq!(
        origin["hook"],
        json!({ "hook": "github", "delivery": "d1", "trigger": "deploy", "event": "d1" })
    );
    let named = trigger(
        "when = { kind = \"git.push\" }\nscenario = \"deploy\"\nprincipal = \"ci/webapp\"\non = \"role=web\"\nbatch = \"25%\"\ndry_run = true",
    );
    assert_eq!(
        named.caller(&name(), &event()).principal.as_str(),
        "ci/webapp"
    );
    let request = serde_json::to_value(named.request(Map::new())).unwrap();
    assert_eq!(request["predicate"], "role=web");
    assert_eq!(
        (&request["batch"], &request["mode"]),
        (&json!("25%"), &json!("check"))
    );
    assert_eq!(request["confirm"], json!("yes"));
    assert!(named.in_time(Duration::from_secs(3_599)).is_ok());
    assert!(named.in_time(Duration::from_secs(3_601)).is_err());
}

#[test]
fn the_same_event_makes_the_same_run() {
    let again = ClusterEvent { seq: 99, ..event() };
    assert_eq!(run_id(&name(), &event()), run_id(&name(), &again));
    assert_ne!(
        run_id(&name(), &event()),
        run_id(&"other".parse().unwrap(), &event())
    );
    let other = ClusterEvent {
        source: "/muster/hooks/other".into(),
        ..event()
    };
    assert_ne!(run_id(&name(), &event()), run_id(&name(), &other));
}

#[test]
fn the_end_of_its_own_run_begins_no_other_one() {
    let trigger = trigger("when = { kind = \"run.ended\" }\nscenario = \"deploy\"");
    let ended = |door: &str, principal: &str, scenario: &str| {
        let data = json!({ "door": door, "principal": principal, "scenario": scenario });
        let Value::Object(fields) = data else {
            unreachable!()
        };
        ClusterEvent {
            fields,
            ..ClusterEvent::own("r1".into(), "run.ended", "4f1e", "text".into())
        }
    };
    assert!(trigger.is_own(&ended("hook", "trigger:deploy", "deploy")));
    for other in [
        ended("cli", "ana", "deploy"),
        ended("hook", "trigger:build", "deploy"),
        ended("hook", "trigger:deploy", "build"),
        ClusterEvent {
            source: "/elsewhere".into(),
            ..ended("hook", "trigger:deploy", "deploy")
        },
    ] {
        assert!(!trigger.is_own(&other), "{other:?}");
    }
}

/// A machine that is seen stopped, and should run.
fn stopped() -> ClusterEvent {
    let data = json!({
        "vm": "web-03", "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "hypervisor": "hv-2",
        "what": "state", "should_run": true, "roles": ["web"], "labels": { "keep": "yes" },
    });
    let text = "machine web-03 is stopped, and should run";
    let mut event = ClusterEvent::own("d1".into(), "vm.drift", "web-03", text.into());
    event.fields = data.as_object().cloned().unwrap();
    event
}

#[test]
fn a_machine_is_started_of_an_event_that_tells_that_it_is_stopped() {
    let keep = trigger(
        "when = { kind = \"vm.drift\", labels.keep = \"yes\", roles = \"web\" }\nmachine = \"start\"",
    );
    let event = stopped();
    let value = serde_json::to_value(&event).unwrap();
    assert_eq!(keep.when.unfit_whole(&event, &value), None);
    let repair = keep.machine(&event).unwrap().unwrap();
    assert_eq!(repair.name.as_str(), "web-03");
    assert_eq!(repair.event, event.id);
    assert_eq!(keep.view(&name()).scenario.as_str(), "vm-power");
    assert_eq!(keep.tested(&name(), &event, &value).unfit, None);
    // What a start does not mend, and what somebody else tells.
    let with = |field: &str, value: Value| {
        let mut event = stopped();
        event.fields.insert(field.to_owned(), value);
        event
    };
    let mut foreign = stopped();
    foreign.source = "ci".into();
    for other in [
        with("what", json!("memory")),
        with("what", json!("missing")),
        with("should_run", json!(false)),
        with("vm", json!("../x")),
        with("id", json!("x")),
        foreign,
    ] {
        assert!(keep.machine(&other).unwrap().is_err(), "{other:?}");
    }
    // A trigger that runs a scenario starts no machine.
    let other = trigger("when = { kind = \"vm.drift\" }\nscenario = \"deploy\"");
    assert!(other.machine(&event).is_none());
}

#[test]
fn a_trigger_that_starts_machines_does_nothing_else() {
    let wrong = |text: &str| {
        let raw: RawTrigger = toml::from_str(text).unwrap();
        Trigger::checked(&name(), raw).unwrap_err().join("; ")
    };
    for (text, why) in [
        (
            "when = { kind = \"vm.*\" }\nmachine = \"start\"",
            "`machine` is for `kind = \"vm.drift\"` alone",
        ),
        (
            "when = { kind = \"vm.drift\" }\nmachine = \"start\"\nscenario = \"deploy\"",
            "`scenario` or `machine`, not both",
        ),
        (
            "when = { kind = \"vm.drift\" }\nmachine = \"start\"\non = \"role=web\"",
            "with `machine` there are only `when`, `principal`, `role`, `rate` and `within`",
        ),
        (
            "when = { kind = \"vm.drift\" }",
            "`scenario` says what is run, or `machine = \"start\"` that the machine is started",
        ),
    ] {
        assert_eq!(wrong(text), why, "{text}");
    }
    let raw = "when = { kind = \"vm.drift\" }\nmachine = \"destroy\"";
    assert!(toml::from_str::<RawTrigger>(raw).is_err());
}
