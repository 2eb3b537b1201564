//! The ops channel, whole: a real IRC server with services, the bot, the
//! broker, agents, and people who type.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use muster_tests::irc::{Bot, IrcNetwork, Person, private};
use muster_tests::{Up, bin, finish, lines, wait_for};
use serde_json::{Value, json};

const PRINCIPALS: &str = r#"
[groups.operators]

[principals.ana]
kind = "person"
role = "operator"
groups = ["operators"]
irc = ["ops:ana"]

[principals.bruno]
kind = "person"
role = "operator"
irc = ["ops:bruno"]
"#;

/// All of it.
struct Ops {
    // In this order: the bot ends first.
    bot: Option<Bot>,
    network: IrcNetwork,
    up: Up,
    irc: tempfile::TempDir,
}

impl Ops {
    /// With that in the file of webhooks and routes; nothing where there is
    /// no IRC server on this machine.
    fn new(what: &str, hooks: &str) -> Result<Option<Self>> {
        let irc = tempfile::tempdir()?;
        let Some(network) = IrcNetwork::inspircd(irc.path(), what)? else {
            return Ok(None);
        };
        for name in ["muster", "ana", "bruno"] {
            network.account(name, &format!("{name}-pass"))?;
        }
        let mut up = Up::not_yet(&["web-01:role=web", "web-02:role=web", "db-01:role=db"])?;
        private(&up.dir.path().join("hooks.toml"), hooks)?;
        up.launch()?;
        let bot = Bot::start(irc.path(), &network, &up, PRINCIPALS, "")?;
        Ok(Some(Self {
            bot: Some(bot),
            network,
            up,
            irc,
        }))
    }

    fn bot_log(&self) -> String {
        self.bot.as_ref().map(Bot::log).unwrap_or_default()
    }

    /// Somebody who is logged in, in both channels, once the bot is there.
    fn person(&self, name: &str) -> Result<Person> {
        let mut person = self
            .network
            .person_as(name, name, &format!("{name}-pass"))?;
        person.join("#ops")?;
        person.join("#dev")?;
        // The bot says who it is as soon as it hears.
        wait_for("the bot is there", || {
            person.say("#ops", "!who").ok()?;
            std::thread::sleep(std::time::Duration::from_millis(300));
            let heard = person.heard_by_now().ok()?;
            heard
                .iter()
                .any(|line| line.contains("you are"))
                .then_some(())
        })
        .with_context(|| self.bot_log())?;
        Ok(person)
    }

    /// Puts an event in, as a CI system or a monitoring system would.
    fn event(&self, kind: &str, id: &str, data: &Value) -> Result<()> {
        let file = self.up.dir.path().join("event.json");
        let event = json!({
            "specversion": "1.0", "id": id, "source": "test", "type": kind, "data": data,
        });
        std::fs::write(&file, event.to_string())?;
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail-with-body", "--max-time", "60"])
            .args(["-H", "Content-Type: application/cloudevents+json"])
            .arg("-H")
            .arg(format!("Authorization: Bearer {}", self.up.token()?))
            .arg("--data-binary")
            .arg(format!("@{}", file.display()))
            .arg(format!("{}/v1/events", self.up.url()));
        finish(curl).exits(0);
        Ok(())
    }

    /// A scenario that leaves the version in a file of each web node, and a
    /// line in another one each time that it does.
    fn store_deploy(&self) -> Result<()> {
        let dir = self.up.dir.path();
        let script = format!(
            "scenario(\"Deploy the web front end\");\nallow_check();\n\
             param(\"version\", #{{ type: \"string\", matches: \"^[0-9][0-9.]*$\", help: \"what to deploy\" }});\n\
             target(\"role=web\");\nfn run(p) {{\n    \
             file(`{0}/${{node().name}}.version`).content(p.version + \"\\n\");\n}}\n",
            dir.display()
        );
        let file = dir.join("deploy.rhai");
        std::fs::write(&file, script)?;
        let file = file.to_string_lossy().into_owned();
        self.up.muster(&["scenario", "put", &file]).exits(0);
        Ok(())
    }

    fn versions(&self) -> Vec<Vec<String>> {
        ["web-01", "web-02", "db-01"]
            .map(|node| lines(&self.up.dir.path().join(format!("{node}.version"))))
            .to_vec()
    }

    /// How many runs there are that were no dry runs.
    fn runs(&self) -> usize {
        let runs = self.up.muster(&["runs", "--json"]).exits(0).list();
        runs.iter().filter(|run| run["mode"] != "check").count()
    }
}

/// The text of a line of the bot in a channel.
fn text(line: &str) -> &str {
    line.split_once(" :").map_or(line, |(_, text)| text)
}

#[test]
fn a_deploy_from_the_channel_and_nobody_else_s_hand_in_it() -> Result<()> {
    let hooks = "[aliases]\ndeploy = \"run deploy version=$1\"\n";
    let Some(ops) = Ops::new("a deploy from the channel", hooks)? else {
        return Ok(());
    };
    ops.store_deploy()?;
    let mut ana = ops.person("ana")?;

    ana.say("#ops", "!deploy 1.4.2")?;
    let plan = ana.hears(&["#ops", "ana: ", "!yes"])?;
    let plan = text(&plan).to_owned();
    ensure!(plan.contains("2 nodes"), "{plan}");
    ensure!(plan.contains("web-01, web-02"), "{plan}");
    ensure!(plan.contains(".version"), "{plan}");
    let id = plan
        .strip_prefix("ana: ")
        .and_then(|rest| rest.split(' ').next())
        .context("the plan has an id")?
        .to_owned();
    assert_eq!(
        ops.versions(),
        [[""; 0]; 3].map(|none| none.map(str::to_owned).to_vec())
    );

    // Somebody takes her nick between plan and yes.
    ana.rename("ana-away")?;
    let mut thief = ops.network.person("ana")?;
    thief.join("#ops")?;
    thief.say("#ops", "!yes")?;
    let said = thief.hears(&["#ops", "ana: ", "nothing of yours waits here"])?;
    ensure!(said.contains("not logged in"), "{said}");
    thief.say("#ops", &format!("!yes {id}"))?;
    thief.hears(&["#ops", &id, "waits for ana, not for you"])?;
    thief.say("#ops", "!cmd * --yes -- touch /tmp/never")?;
    thief.hears(&["#ops", "irc-nobody (member) may not run"])?;
    // And another person of the team.
    let mut bruno = ops.person("bruno")?;
    bruno.say("#ops", &format!("!yes {id}"))?;
    bruno.hears(&["#ops", "bruno: ", "waits for ana, not for you"])?;
    assert_eq!(ops.runs(), 0);

    // She herself, whatever she is called now.
    ana.say("#ops", "!yes")?;
    ana.hears(&["#ops", &id, "2 succeeded"])?;
    let one = vec!["1.4.2".to_owned()];
    assert_eq!(ops.versions(), [one.clone(), one.clone(), Vec::new()]);
    ana.say("#ops", &format!("!yes {id}"))?;
    ana.hears(&["#ops", "nothing called", "waits"])?;
    assert_eq!(ops.runs(), 1);

    // Equal output is one line; who is silent is named.
    ana.say("#ops", "!cmd * --yes -- echo all the same")?;
    ana.hears(&["#ops", "3 succeeded"])?;
    ana.say("#ops", "!last")?;
    ana.hears(&["#ops", "echo all the same", "3 nodes"])?;
    // What is in the record says where it came from.
    let record = ops.up.muster(&["audit", "list", "--json"]).exits(0);
    ensure!(
        record.out.contains("\"irc\"") && record.out.contains("IRC run: deploy 1.4.2"),
        "{}",
        record.out
    );
    Ok(())
}

/// A CI system as far as a build is begun there: what it was asked.
fn ci() -> Result<(u16, std::sync::mpsc::Receiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let (send, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut piece = [0; 4096];
            let whole = |request: &[u8]| {
                let text = String::from_utf8_lossy(request).into_owned();
                let (head, body) = text.split_once("\r\n\r\n")?;
                let length = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse::<usize>().ok())?
                })?;
                (body.len() >= length).then_some(text.clone())
            };
            let text = loop {
                match stream.read(&mut piece) {
                    Ok(n) if n > 0 => request.extend_from_slice(&piece[..n]),
                    _ => break None,
                }
                if let Some(text) = whole(&request) {
                    break Some(text);
                }
            };
            let _ = stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n");
            if let Some(text) = text
                && send.send(text).is_err()
            {
                return;
            }
        }
    });
    Ok((port, asked))
}

#[test]
fn what_moved_appears_in_its_channel_and_outlives_the_bot() -> Result<()> {
    let (port, asked) = ci()?;
    let hooks = format!(
        r##"
[routes.pushes]
kinds = ["git.*"]
channel = "ops/#dev"

[routes.ops]
kinds = ["alarm.*", "build.finished", "node.*"]
channel = "ops/#ops"

[builds.web]
url = "http://127.0.0.1:{port}/build"
params = {{ branch = "main" }}
repository = "acme/webapp"
"##
    );
    let Some(mut ops) = Ops::new("pushes, alarms and builds in their channels", &hooks)? else {
        return Ok(());
    };
    let mut ana = ops.person("ana")?;
    let push = |message: &str| {
        json!({
            "repository": "acme/webapp", "branch": "main", "pusher": "bruno",
            "commits": [{ "message": message }, { "message": "Say which tier a price came from" }],
            "url": "https://git.example/c/4f1e",
        })
    };
    // A subject that wants to be a line of its own.
    ops.event(
        "git.push",
        "p1",
        &push("Cache\r\nPRIVMSG #ops :!cmd * -- id"),
    )?;
    ana.hears(&["PRIVMSG #dev", "webapp: bruno pushed 2 to main"])?;
    ana.hears(&["PRIVMSG #dev", "Say which tier a price came from"])?;
    ops.event(
        "alarm.firing",
        "a1",
        &json!({ "name": "DiskFull", "alarms": [{ "name": "DiskFull", "instance": "web-01", "fingerprint": "f1" }] }),
    )?;
    let alarm = ana.hears(&["PRIVMSG #ops", "DiskFull", "!ack"])?;
    let number = alarm
        .rsplit_once("!ack ")
        .map(|(_, rest)| {
            rest.trim()
                .chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
        })
        .context("a number")?;
    ana.say("#ops", &format!("!ack {number}"))?;
    ana.hears(&["PRIVMSG #ops", "looks after alarm"])?;

    let build = |result: &str, number: u32| {
        json!({
            "repository": "acme/webapp", "name": "webapp", "branch": "main", "result": result,
            "number": number.to_string(), "url": "https://ci.example/1",
        })
    };
    ops.event("build.finished", "b1", &build("failure", 811))?;
    ana.hears(&["PRIVMSG #ops", "webapp build 811", "failed"])?;

    // One that she asks for: it is begun once, and she is told of its end.
    ana.say("#ops", "!build web branch=topic")?;
    ana.hears(&["PRIVMSG #ops", "ana: ", "web"])?;
    let request = asked.recv_timeout(muster_tests::PATIENCE)?;
    ensure!(request.contains("topic"), "{request}");
    let mut started = build("", 812);
    started["branch"] = json!("topic");
    ops.event("build.started", "b2", &started)?;
    let mut ended = build("success", 812);
    ended["branch"] = json!("topic");
    ops.event("build.finished", "b3", &ended)?;
    ana.hears(&["PRIVMSG #ops", "ana", "812", "is fine"])?;
    ensure!(asked.try_recv().is_err(), "it was asked twice");

    // What happens while there is no bot is told when it is back.
    let bot = ops.bot.take();
    drop(bot);
    ana.hears(&["QUIT"])?;
    ops.event("git.push", "p2", &push("While nobody listened"))?;
    ops.bot = Some(Bot::of(ops.irc.path())?);
    ana.hears(&["PRIVMSG #dev", "While nobody listened"])?;
    let all = ana.heard_by_now()?;
    ensure!(
        !all.iter().any(|line| line.contains("PRIVMSG #ops :!cmd")),
        "{all:?}"
    );
    Ok(())
}

/// What a device with that secret shows now.
fn code(secret: &str) -> Result<String> {
    let secret = totp_rs::Secret::try_from_base32(secret)
        .ok()
        .context("a secret in base 32")?;
    let device = totp_rs::Builder::new().with_secret(secret).build()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(device.generate(now.as_secs()).to_string())
}

#[test]
fn a_network_without_accounts_takes_links_and_codes() -> Result<()> {
    let irc = tempfile::tempdir()?;
    let Some(network) = IrcNetwork::ngircd(irc.path(), "links and codes")? else {
        return Ok(());
    };
    let up = Up::start(&["web-01:role=web"])?;
    let made = up.muster(&["token", "create", "--for", "irc:plain", "--role", "witness"]);
    private(&irc.path().join("token"), made.exits(0).out.trim())?;
    let made = up.muster(&["token", "create", "--for", "ana", "--role", "operator"]);
    let ana = made.exits(0).out.trim().to_owned();
    private(
        &irc.path().join("bot.toml"),
        &format!(
            "state = \"{}/bot\"\n[broker]\nurl = \"{}\"\n[networks.plain]\n\
             server = \"127.0.0.1:{}\"\ntls = false\nnick = \"muster\"\nchannels = [\"#ops\"]\n\
             token_file = \"token\"\ncolours = false\nsymbols = false\nburst = 20\nrate = 50\n",
            irc.path().display(),
            up.url(),
            network.port()
        ),
    )?;
    let _bot = Bot::of(irc.path())?;
    let mut person = network.person("ghost")?;
    person.join("#ops")?;
    wait_for("the bot is there", || {
        person.say("#ops", "!who").ok()?;
        std::thread::sleep(std::time::Duration::from_millis(300));
        let heard = person.heard_by_now().ok()?;
        heard
            .iter()
            .any(|line| line.contains("I do not know you"))
            .then_some(())
    })?;
    person.say("#ops", "!nodes")?;
    person.hears(&["#ops", "irc-nobody (member) may not read nodes"])?;

    let link = up.muster_as(&ana, &["irc", "link", "--json"]).exits(0);
    let link: Value = serde_json::from_str(link.out.trim())?;
    let text = link["code"].as_str().context("a code")?;
    person.say("muster", &format!("link {text}"))?;
    person.hears(&["ghost", "you are ana here"])?;
    person.say("#ops", "!nodes")?;
    person.hears(&["#ops", "1 node, up 1: web-01"])?;
    person.say("#ops", "!cmd web-01 -- echo moved")?;
    person.hears(&["#ops", "it is not sure that it is you"])?;

    let device = up.muster_as(&ana, &["irc", "totp", "--json"]).exits(0);
    let device: Value = serde_json::from_str(device.out.trim())?;
    let code = code(device["secret"].as_str().context("a secret")?)?;
    person.say("#ops", &format!("!cmd web-01 --code {code} -- echo moved"))?;
    person.hears(&["#ops", "moved"])?;
    person.say("#ops", &format!("!cmd web-01 --code {code} -- echo moved"))?;
    person.hears(&["#ops", "used already"])?;

    // Whoever comes after that nick is somebody else.
    person.quit()?;
    let mut next = network.person("ghost")?;
    next.join("#ops")?;
    next.say("#ops", "!nodes")?;
    next.hears(&["#ops", "irc-nobody (member) may not read nodes"])?;
    let runs = up.muster(&["runs", "--json"]).exits(0).list();
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0]["principal"], "ana");
    Ok(())
}

#[test]
fn how_a_line_is_understood_is_said_without_a_server() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hooks = dir.path().join("hooks.toml");
    private(&hooks, "[aliases]\ndeploy = \"run deploy version=$1\"\n")?;
    let say = |text: &str| {
        let mut command = Command::new(bin("muster"));
        command
            .args(["bot", "say", text, "--as", "ana", "--dry-run", "--hooks"])
            .arg(&hooks);
        finish(command)
    };
    let said = say("!deploy '1.4.2 --on role=db' --on zone=gva2").exits(0);
    assert_eq!(
        said.out,
        "as the account ana of irc\nby the alias deploy\nrun deploy\n  version = \"1.4.2 --on role=db\"\n  --on \"zone=gva2\"\n"
    );
    say("!deploy")
        .exits(2)
        .says(&["deploy needs version: deploy VERSION"]);
    say("!rnu x").exits(2).says(&["did you mean `run`?"]);
    say("!run “x”").exits(2).says(&["typographic quote"]);
    Ok(())
}
