//! Lines that a witness has heard, through the whole broker: who they are of,
//! and that nothing else reaches a node.

use muster_protocol::units::Timestamp;

use super::*;
use crate::authz::cedar::STOCK;

pub(super) const PRINCIPALS: &str = r#"
[principals.ana]
kind = "person"
role = "operator"
irc = ["ops:ana"]

[principals.bruno]
kind = "person"
role = "operator"
irc = ["ops:bruno"]
"#;

/// Somebody in a channel.
#[derive(Clone, Copy)]
pub(super) struct Who<'a> {
    nick: &'a str,
    sight: &'a str,
    account: Option<(&'a str, &'a str)>,
    channel: Option<&'a str>,
}

pub(super) const ANA: Who<'static> = Who {
    nick: "ana",
    sight: "s-ana",
    account: Some(("ana", "tag")),
    channel: Some("#ops"),
};

impl<'a> Who<'a> {
    fn account(self, name: &'a str, vouched: &'a str) -> Self {
        Self {
            account: Some((name, vouched)),
            ..self
        }
    }

    fn nobody(self) -> Self {
        Self {
            account: None,
            ..self
        }
    }

    fn to(self, channel: Option<&'a str>) -> Self {
        Self { channel, ..self }
    }

    pub(super) fn line(self, id: &str, text: &str) -> Value {
        let mut speaker = json!({
            "nick": self.nick, "mask": format!("{}!u@h", self.nick), "sight": self.sight,
        });
        if let Some((name, vouched)) = self.account {
            speaker["account"] = json!({ "name": name, "vouched": vouched });
        }
        let mut line = json!({
            "id": id, "network": "ops", "speaker": speaker, "line": text,
            "heard": Timestamp::now(),
        });
        if let Some(channel) = self.channel {
            line["channel"] = json!(channel);
        }
        line
    }
}

/// The witness of `ops`.
struct Chat {
    world: World,
    token: String,
    count: std::sync::atomic::AtomicU32,
}

impl Chat {
    async fn new(names: &[&str], confirm_above: u32, more: &str) -> Self {
        let world = World::new(names, confirm_above).await;
        let files = json!({ "policies": format!("{STOCK}{more}"), "principals": PRINCIPALS });
        let body = json!({ "files": files });
        let (status, stored) = world.broker.call("PUT", "/v1/policy", Some(body)).await;
        assert_eq!(status, 200, "{stored}");
        let token = world.bearer("irc:ops", "witness").await;
        Self {
            world,
            token,
            count: 0.into(),
        }
    }

    async fn tell(&self, line: Value) -> (u16, Value) {
        let asked = self
            .world
            .broker
            .send("POST", "/v1/chat/lines", Some(&self.token), Some(line));
        asked.await
    }

    /// What is said to that line.
    async fn said(&self, who: Who<'_>, text: &str) -> String {
        let n = self
            .count
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (status, answer) = self.tell(who.line(&format!("m{n}"), text)).await;
        assert_eq!(status, 200, "{answer}");
        lines(&answer)
    }

    async fn runs(&self) -> Vec<Value> {
        let (_, runs) = self.world.broker.call("GET", "/v1/runs", None).await;
        runs["items"].as_array().unwrap().clone()
    }

    fn executed(&self) -> usize {
        self.world.nodes.iter().map(Node::executed).sum()
    }
}

pub(super) fn lines(answer: &Value) -> String {
    let says = answer["says"].as_array().unwrap();
    let lines = says.iter().flat_map(|say| {
        let about = say["about"].as_str().map(|about| format!("{about} "));
        let lines = say["lines"].as_array().unwrap().iter();
        lines.map(move |line| {
            format!(
                "{}{}",
                about.clone().unwrap_or_default(),
                line.as_str().unwrap()
            )
        })
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_run_by_a_yes_of_the_same_person_in_the_same_place() {
    let chat = Chat::new(&["web-1", "web-2"], 1, "").await;
    let plan = chat.said(ANA, "cmd role=web -- true").await;
    assert!(
        plan.contains("true on 2 nodes (role=web: web-1, web-2).  !yes · !no  (5 min)"),
        "{plan}"
    );
    let id = plan.split(' ').next().unwrap().to_owned();
    // Nobody else, nowhere else, and nobody who only has her nick.
    let mallory = Who {
        nick: "mallory",
        sight: "s-m",
        ..ANA.nobody()
    };
    let said = chat.said(mallory, &format!("yes {id}")).await;
    assert_eq!(
        said,
        format!("{id} waits for ana, not for you. You are not logged in to services")
    );
    let thief = Who {
        sight: "s-thief",
        ..ANA.nobody()
    };
    let said = chat.said(thief, "yes").await;
    assert!(said.starts_with("nothing of yours waits here"), "{said}");
    let other = chat
        .said(ANA.account("bruno", "tag"), &format!("yes {id}"))
        .await;
    assert_eq!(other, format!("{id} waits for ana, not for you"));
    let elsewhere = chat.said(ANA.to(Some("#dev")), &format!("yes {id}")).await;
    assert!(elsewhere.contains("was shown in #ops"), "{elsewhere}");
    // She herself, where the server does not say so on the line itself.
    let tracked = chat.said(ANA.account("ana", "tracked"), "yes").await;
    assert!(
        tracked.contains("it is not sure that it is you"),
        "{tracked}"
    );
    assert_eq!((chat.runs().await.len(), chat.executed()), (0, 0));

    let (status, answer) = chat.tell(ANA.line("the-yes", "yes")).await;
    assert_eq!(status, 200, "{answer}");
    let runs = chat.runs().await;
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0]["principal"], "ana");
    assert_eq!(runs[0]["door"], "irc");
    assert!(runs[0]["id"].as_str().unwrap().starts_with(&id));
    chat.world.ended(&runs[0]).await;
    // The same line again, and another one.
    let (_, again) = chat.tell(ANA.line("the-yes", "yes")).await;
    assert_eq!(again, answer);
    let late = chat.said(ANA, &format!("yes {id}")).await;
    assert!(
        late.starts_with(&format!("nothing called {id} waits")),
        "{late}"
    );
    assert_eq!((chat.runs().await.len(), chat.executed()), (1, 2));
    let last = chat.said(ANA, "last").await;
    assert!(
        last.contains("true by ana on 2 nodes: succeeded, 2 succeeded"),
        "{last}"
    );
    let shown = chat.said(ANA, &format!("show {id}")).await;
    assert!(shown.contains("2 succeeded"), "{shown}");
    chat.world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_counts_once_and_only_while_it_is_fresh() {
    let chat = Chat::new(&["web-1"], 5, "").await;
    let one = ANA.line("m-1", "cmd web-1 -- true");
    let (_, first) = chat.tell(one.clone()).await;
    let (_, again) = chat.tell(one).await;
    assert_eq!(first, again);
    assert_eq!(chat.runs().await.len(), 1);
    let before = Timestamp::now() - std::time::Duration::from_secs(120);
    for field in ["heard", "server_time"] {
        let mut old = ANA.line("m-2", "cmd web-1 -- true");
        old[field] = json!(before);
        let (_, said) = chat.tell(old).await;
        assert!(
            lines(&said).contains("nothing was done, say it again"),
            "{said}"
        );
    }
    let mut ahead = ANA.line("m-3", "cmd web-1 -- true");
    ahead["server_time"] = json!(Timestamp::now() + std::time::Duration::from_secs(120));
    let (_, said) = chat.tell(ahead).await;
    assert!(lines(&said).contains("in the future"), "{said}");
    assert_eq!(chat.runs().await.len(), 1);
    chat.world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_tells_of_its_own_network_and_does_nothing_else() {
    let chat = Chat::new(&["web-1"], 5, "").await;
    let mut line = ANA.line("m-1", "ping");
    line["network"] = json!("dev");
    let (status, problem) = chat.tell(line).await;
    assert_eq!(
        (status, problem["kind"].as_str()),
        (403, Some("denied")),
        "{problem}"
    );
    let broker = &chat.world.broker;
    for (method, path) in [
        ("GET", "/v1/nodes"),
        ("GET", "/v1/runs"),
        ("GET", "/v1/events"),
    ] {
        let (status, _) = broker.send(method, path, Some(&chat.token), None).await;
        assert_eq!(status, 403, "{path}");
    }
    // Nobody who is no witness tells anything, whatever else they may.
    let operator = chat.world.bearer("bruno", "operator").await;
    let line = ANA.line("m-2", "ping");
    let (status, _) = broker
        .send("POST", "/v1/chat/lines", Some(&operator), Some(line))
        .await;
    assert_eq!(status, 403);
    for (field, wrong) in [("id", json!("")), ("id", json!("a\nb"))] {
        let mut line = ANA.line("m-3", "ping");
        line[field] = wrong;
        assert_eq!(chat.tell(line).await.0, 400);
    }
    chat.world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_may_nothing_and_learns_that() {
    let chat = Chat::new(&["web-1"], 5, "").await;
    let stranger = ANA.account("mallory", "tag");
    for (who, name) in [(ANA.nobody(), "irc-nobody"), (stranger, "irc:ops:mallory")] {
        for line in [
            "cmd web-1 -- true",
            "nodes",
            "ping",
            "freeze now",
            "cancel abcd",
        ] {
            let said = chat.said(who, line).await;
            assert!(
                said.contains(&format!("{name} (member) may not")),
                "{line}: {said}"
            );
        }
    }
    assert_eq!(
        chat.said(ANA.nobody(), "who").await,
        "I do not know you: nobody vouches for you"
    );
    let said = chat.said(stranger, "who").await;
    assert!(
        said.contains("irc:ops:mallory, whom principals.toml does not name"),
        "{said}"
    );
    assert_eq!(
        chat.said(ANA, "who").await,
        "you are ana (person, operator): the network vouches for every line of yours"
    );
    let help = chat.said(ANA.nobody(), "help").await;
    assert!(
        !help.contains("!freeze") && !help.contains("!runs"),
        "{help}"
    );
    let help = chat.said(ANA, "help").await;
    assert!(help.contains("!freeze") && help.contains("!runs"), "{help}");
    assert_eq!(chat.executed(), 0);
    chat.world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_lets_read_and_a_code_of_a_device_lets_change() {
    let chat = Chat::new(&["web-1"], 5, "").await;
    let token = chat.world.bearer("ana", "operator").await;
    let broker = &chat.world.broker;
    let link = broker.send("POST", "/v1/chat/links", Some(&token), None);
    let (status, link) = link.await;
    assert_eq!(status, 200, "{link}");
    let code = link["code"].as_str().unwrap();
    // Not in a channel, where everybody would read it.
    let ghost = Who {
        nick: "ana_",
        sight: "s-1",
        ..ANA.nobody()
    };
    let said = chat.said(ghost, &format!("link {code}")).await;
    assert!(said.contains("there is no command `link`"), "{said}");
    let alone = ghost.to(None);
    let said = chat.said(alone, &format!("link {code}")).await;
    assert!(
        said.starts_with("you are ana here until you leave"),
        "{said}"
    );
    assert!(chat.said(ghost, "nodes").await.contains("1 node"));
    // Somebody else with that nick, and the same one after it was gone.
    let next = Who {
        sight: "s-2",
        ..ghost
    };
    assert!(chat.said(next, "nodes").await.contains("may not"));
    let said = chat.said(next.to(None), &format!("link {code}")).await;
    assert!(said.contains("unknown, used, or over"), "{said}");
    let said = chat.said(ghost, "cmd web-1 -- true").await;
    assert!(said.contains("it is not sure that it is you"), "{said}");

    let ask = broker.send("POST", "/v1/chat/device", Some(&token), Some(json!({})));
    let (status, device) = ask.await;
    assert_eq!(status, 200, "{device}");
    let secret = device["secret"].as_str().unwrap();
    let device = totp_rs::Builder::new()
        .with_secret(totp_rs::Secret::try_from_base32(secret).unwrap())
        .build()
        .unwrap();
    let now = u64::try_from(Timestamp::now().as_second()).unwrap();
    let code = device.generate(now).to_string();
    let wrong = if code == "000000" { "000001" } else { "000000" };
    let said = chat
        .said(ghost, &format!("cmd web-1 --code {wrong} -- true"))
        .await;
    assert!(said.contains("that code is wrong"), "{said}");
    assert_eq!(chat.runs().await.len(), 0);
    let line = format!("cmd web-1 --code {code} -- true");
    chat.said(ghost, &line).await;
    let runs = chat.runs().await;
    assert_eq!(
        (runs.len(), runs[0]["principal"].as_str()),
        (1, Some("ana"))
    );
    let said = chat.said(ghost, &line).await;
    assert!(said.contains("used already"), "{said}");
    assert_eq!(chat.runs().await.len(), 1);
    chat.world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_say_how_sure_it_must_be() {
    // A forbid by the proof itself, and a permit that takes less of it.
    let more = r#"
@id("channel only")
forbid (principal, action == Action::"run", resource)
when { context.door == "irc" && !(context has channel) };
@proof("tracked")
permit (principal == Principal::"ana", action == Action::"freeze", resource);
"#;
    let chat = Chat::new(&["web-1"], 5, more).await;
    let said = chat.said(ANA.to(None), "cmd web-1 -- true").await;
    assert!(said.contains("`channel only` forbids it"), "{said}");
    let tracked = ANA.account("ANA", "tracked");
    let said = chat.said(tracked, "freeze the store burns").await;
    assert!(said.contains("frozen"), "{said}");
    let said = chat.said(ANA, "cmd web-1 -- true").await;
    assert!(said.contains("frozen"), "{said}");
    let said = chat.said(ANA, "thaw").await;
    assert!(said.contains("thawed"), "{said}");
    assert_eq!(chat.executed(), 0);
    chat.world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_is_short_and_says_what_it_means() {
    let chat = Chat::new(&["web-1", "web-2"], 5, "").await;
    assert_eq!(chat.said(ANA, "nodes").await, "2 nodes, up 2: web-1, web-2");
    assert_eq!(
        chat.said(ANA, "match role=web and zone=gva2").await,
        "2 nodes match role=web and zone=gva2: web-1, web-2"
    );
    let said = chat.said(ANA, "match zoen=gva2").await;
    assert!(said.contains("`zoen`"), "{said}");
    let said = chat.said(ANA, "match (zone=gva2").await;
    assert!(said.contains("never closed"), "{said}");
    let said = chat.said(ANA, "ping role=web").await;
    assert!(said.starts_with("2 of 2 nodes answered"), "{said}");
    assert_eq!(chat.said(ANA, "runs").await, "nothing was run yet");
    let said = chat.said(ANA, "run web-upgrde x=1").await;
    assert!(
        said.starts_with("there is no scenario web-upgrde"),
        "{said}"
    );
    let said = chat.said(ANA, "help cmd").await;
    assert_eq!(said, "!cmd PREDICATE -- COMMAND: run a command on nodes");
    let said = chat.said(ANA, "show zzzz").await;
    assert!(said.contains("zzzz"), "{said}");
    assert_eq!(chat.said(ANA, "alarms").await, "no alarm");
    assert_eq!(chat.executed(), 0);
    chat.world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn above_a_threshold_another_door_can_be_asked_for() {
    let more = r#"
@id("large from a terminal")
forbid (principal, action == Action::"run", resource)
when { context.door == "irc" && context.whole > 1 };
"#;
    let chat = Chat::new(&["web-1", "web-2"], 5, more).await;
    let said = chat.said(ANA, "cmd role=web -- true").await;
    assert!(
        said.contains("`large from a terminal` forbids it"),
        "{said}"
    );
    assert_eq!(chat.runs().await.len(), 0);
    chat.said(ANA, "cmd web-1 -- true").await;
    assert_eq!(chat.runs().await.len(), 1);
    chat.world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_of_somebody_else_who_may_run_it() {
    let chat = Chat::new(&["web-1"], 5, "").await;
    let policies = r#"
permit (principal in Role::"admin", action, resource);
permit (principal in Role::"witness", action == Action::"witness", resource);
permit (principal in Role::"operator", action in [Action::"read", Action::"change"], resource);
@approvals("1")
permit (principal in Role::"operator", action == Action::"run", resource);
"#;
    let files = json!({ "policies": policies, "principals": PRINCIPALS });
    let body = json!({ "files": files });
    let (status, stored) = chat
        .world
        .broker
        .call("PUT", "/v1/policy", Some(body))
        .await;
    assert_eq!(status, 200, "{stored}");
    let said = chat.said(ANA, "cmd web-1 -- true").await;
    assert!(
        said.contains("waits for 1 approval of others: !approve"),
        "{said}"
    );
    let id = said.split(' ').next().unwrap().to_owned();
    let own = chat.said(ANA, &format!("approve {id}")).await;
    assert!(!own.contains("approved"), "{own}");
    let nobody = chat.said(ANA.nobody(), &format!("approve {id}")).await;
    assert!(nobody.contains("may not"), "{nobody}");
    assert_eq!(chat.executed(), 0);
    let bruno = Who {
        nick: "bruno",
        sight: "s-b",
        ..ANA.account("bruno", "tag")
    };
    let said = chat.said(bruno, &format!("approve {id}")).await;
    assert!(said.contains("approved: true of ana goes on"), "{said}");
    let runs = chat.runs().await;
    chat.world.ended(&runs[0]).await;
    assert_eq!(chat.executed(), 1);
    chat.world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_judged_in_the_channel_as_anywhere() {
    let chat = Chat::new(&["web-1"], 5, "").await;
    assert_eq!(chat.said(ANA, "vm list").await, "no machines yet");
    assert_eq!(
        chat.said(ANA, "vm list --deleted").await,
        "no machine was destroyed"
    );
    let said = chat.said(ANA, "hypervisor list").await;
    assert!(said.starts_with("no hypervisors yet"), "{said}");
    let said = chat.said(ANA, "image list").await;
    assert!(said.starts_with("no images yet"), "{said}");
    let said = chat.said(ANA, "network list").await;
    assert!(said.starts_with("no networks yet"), "{said}");
    let create = "vm create web-3 --image debian-12 --cpus 1 --memory 1GiB";
    let said = chat.said(ANA, create).await;
    assert_eq!(said, "there is no image debian-12");
    for line in [
        "vm show web-3",
        "vm start web-3",
        "vm destroy web-3",
        "vm destroy web-3 --yes",
    ] {
        let said = chat.said(ANA, line).await;
        assert_eq!(said, "there is no machine web-3", "{line}");
    }
    // What operators may not do over HTTP they may not do here.
    for line in ["hypervisor cordon web-1", "hypervisor drain web-1"] {
        let said = chat.said(ANA, line).await;
        assert!(
            said.contains("ana (person) may not change networks or hypervisors"),
            "{line}: {said}"
        );
    }
    let said = chat.said(ANA, "vm log web-3").await;
    assert_eq!(said, "nothing is known to have happened to web-3");
    let said = chat.said(ANA, "vm start ../x").await;
    assert!(
        said.contains("`../x` is not a valid machine name"),
        "{said}"
    );
    let said = chat.said(ANA, &format!("{create} --user-data x")).await;
    assert!(said.contains("has no place in a chat"), "{said}");
    // Not so sure that it is she; nobody; somebody whom nobody knows.
    let tracked = ANA.account("ana", "tracked");
    let stranger = ANA.account("mallory", "tag");
    let changes = [
        create,
        "vm start web-3",
        "vm destroy web-3",
        "vm destroy web-3 --purge --yes",
        "vm exec web-3 -- id",
        "vm console web-3",
        "vm provision web-3",
    ];
    for line in changes {
        let said = chat.said(tracked, line).await;
        assert!(
            said.contains("it is not sure that it is you"),
            "{line}: {said}"
        );
        for who in [ANA.nobody(), stranger] {
            let said = chat.said(who, line).await;
            assert!(said.contains("(member) may not"), "{line}: {said}");
        }
    }
    let looks = [
        "vm list",
        "vm show web-3",
        "vm where web-3",
        "vm log web-3",
        "image list",
    ];
    for line in looks {
        let said = chat.said(ANA.nobody(), line).await;
        assert!(said.contains("(member) may not"), "{line}: {said}");
    }
    let help = chat.said(ANA, "help vm").await;
    assert!(
        help.contains("!vm destroy: destroy it once you confirm"),
        "{help}"
    );
    let help = chat.said(ANA, "help vm destroy").await;
    assert!(help.starts_with("!vm destroy VM [--purge]: "), "{help}");
    let help = chat.said(ANA.nobody(), "help").await;
    assert!(!help.contains("!vm"), "{help}");
    let said = chat.said(ANA, "yes").await;
    assert!(said.starts_with("nothing of yours waits here"), "{said}");
    assert_eq!((chat.runs().await.len(), chat.executed()), (0, 0));
    chat.world.broker.stop().await;
}
