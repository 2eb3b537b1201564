use super::*;
use crate::irc::tests::settings;

/// What a server is told, one line after another.
fn said(steps: &[Step]) -> Vec<String> {
    steps
        .iter()
        .filter_map(|s| match s {
            Step::Send(line) => Some(line.expose().to_owned()),
            _ => None,
        })
        .collect()
}

struct Script {
    register: Register,
    done: Option<Registered>,
    failed: Option<RegisterError>,
}

impl Script {
    fn new(change: impl FnOnce(&mut NetworkSettings)) -> Self {
        let mut settings = settings("127.0.0.1", 1);
        change(&mut settings);
        let (register, first) = Register::begin(Arc::new(settings));
        assert_eq!(said(&first)[0], "CAP LS 302");
        Self {
            register,
            done: None,
            failed: None,
        }
    }

    /// What comes of a line of the server.
    fn server(&mut self, line: &str) -> Vec<String> {
        let steps = self.register.step(&line.parse().unwrap());
        let lines = said(&steps);
        for step in steps {
            match step {
                Step::Send(_) => {}
                Step::Done(registered) => self.done = Some(*registered),
                Step::Fail(error) => self.failed = Some(error),
            }
        }
        lines
    }

    fn failure(&self) -> String {
        self.failed.as_ref().expect("it failed").to_string()
    }
}

fn plain(settings: &mut NetworkSettings) {
    settings.sasl = Some(Sasl::Plain {
        account: "a".into(),
        password: Secret::new("p"),
    });
}

#[test]
fn a_registration_from_beginning_to_end() {
    let mut s = Script::new(plain);
    assert!(
        s.server(":s CAP * LS * :multi-prefix sasl=EXTERNAL,PLAIN")
            .is_empty()
    );
    assert_eq!(
        s.server(":s CAP * LS :server-time account-tag nonsense/x"),
        ["CAP REQ :account-tag multi-prefix sasl server-time"]
    );
    assert_eq!(
        s.server(":s CAP me ACK :account-tag multi-prefix sasl server-time"),
        ["AUTHENTICATE PLAIN"]
    );
    assert_eq!(s.server("AUTHENTICATE +"), ["AUTHENTICATE YQBhAHA="]);
    assert!(
        s.server(":s 900 me me!u@h a :You are now logged in as a")
            .is_empty()
    );
    assert_eq!(
        s.server(":s 903 me :SASL authentication successful"),
        ["CAP END"]
    );
    assert_eq!(s.server("PING :abc def"), ["PONG :abc def"]);
    s.server(":s 001 muster :Welcome to Test muster!~m@host.example");
    s.server(":s 005 muster CASEMAPPING=ascii LINELEN=1024 WHOX :are supported by this server");
    assert!(s.done.is_none());
    s.server(":s 422 muster :no motd");
    let done = s.done.unwrap();
    assert_eq!(done.nick, "muster");
    assert_eq!(done.from.as_deref(), Some("~m@host.example"));
    assert!(done.caps.account_tag && done.caps.server_time && !done.caps.echo_message);
    assert_eq!((done.features.line_bytes, done.features.whox), (1024, true));
}

#[test]
fn the_password_of_the_server_is_sent_and_not_printed() {
    let mut settings = settings("127.0.0.1", 1);
    settings.server_password = Some(Secret::new("let me in"));
    let (register, first) = Register::begin(Arc::new(settings));
    assert_eq!(
        said(&first),
        [
            "CAP LS 302",
            "PASS :let me in",
            "NICK muster",
            "USER muster 0 * :muster"
        ]
    );
    assert!(!format!("{register:?}{first:?}").contains("let me in"));
}

#[test]
fn a_server_without_capabilities_just_goes_on() {
    let mut s = Script::new(|_| {});
    assert!(s.server(":s 421 * CAP :Unknown command").is_empty());
    s.server(":s 001 muster :Welcome");
    s.server(":s 376 muster :End");
    let done = s.done.unwrap();
    assert_eq!((done.caps, done.from), (Caps::default(), None));
    let mut s = Script::new(plain);
    s.server(":s 001 muster :Welcome");
    assert_eq!(s.failed, Some(RegisterError::NoSasl));
}

#[test]
fn an_empty_offer_is_one() {
    let mut s = Script::new(|_| {});
    assert_eq!(s.server(":s CAP * LS :"), ["CAP END"]);
}

#[test]
fn a_refused_request_is_made_again_one_by_one() {
    for nak in [
        ":s CAP * NAK :multi-prefix server-time away",
        ":s CAP * NAK :multi-prefix server-time",
        ":s CAP * NAK :server-time",
        ":s CAP * NAK :",
    ] {
        let mut s = Script::new(|_| {});
        assert_eq!(
            s.server(":s CAP * LS :multi-prefix server-time"),
            ["CAP REQ :multi-prefix server-time"]
        );
        let mut asked = s.server(nak);
        let mut order = Vec::new();
        while let Some(name) = asked[0].strip_prefix("CAP REQ :") {
            let verdict = if name == "server-time" { "NAK" } else { "ACK" };
            order.push(name.to_owned());
            asked = s.server(&format!(":s CAP * {verdict} :{name}"));
        }
        order.sort();
        assert_eq!(order, ["multi-prefix", "server-time"], "{nak}");
        assert_eq!(asked, ["CAP END"], "{nak}");
        s.server(":s 001 muster :Hello");
        s.server(":s 376 muster :End");
        assert_eq!(s.done.unwrap().agreed, ["multi-prefix"]);
    }
}

#[test]
fn a_list_without_end_ends_the_attempt() {
    let mut s = Script::new(|_| {});
    let mut lines = 0;
    while s.failed.is_none() {
        s.server(&format!(":s CAP * LS * :cap{lines}"));
        lines += 1;
        assert!(lines < 10_000);
    }
    assert_eq!(s.failed, Some(RegisterError::EndlessOffers));
    // Nothing revives it.
    assert!(s.server(":s CAP * LS :sasl").is_empty());
}

#[test]
fn nothing_is_joined_without_the_login() {
    let mut all = Vec::new();
    for lines in [
        &[":s CAP * LS :multi-prefix"][..],
        &[":s CAP * LS :sasl=EXTERNAL,X"],
        &[":s CAP * LS :sasl", ":s CAP * NAK :sasl"],
        &[
            ":s CAP * LS :sasl",
            ":s CAP * ACK :sasl",
            ":s 001 muster :Welcome",
        ],
        &[":s CAP * LS :sasl", ":s 001 muster :Welcome"],
        &[
            ":s CAP * LS :sasl",
            ":s CAP * ACK :sasl",
            "AUTHENTICATE +",
            ":s 902 me :locked",
        ],
        &[
            ":s CAP * LS :sasl",
            ":s CAP * ACK :sasl",
            "AUTHENTICATE +",
            ":s 904 me :failed",
        ],
        &[
            ":s CAP * LS :sasl",
            ":s CAP * ACK :sasl",
            "AUTHENTICATE +",
            ":s 905 me :long",
        ],
        &[
            ":s CAP * LS :sasl",
            ":s CAP * ACK :sasl",
            "AUTHENTICATE +",
            ":s 906 me :aborted",
        ],
        &[
            ":s CAP * LS :sasl",
            ":s CAP * ACK :sasl",
            "AUTHENTICATE +",
            ":s 907 me :already",
        ],
        &[
            ":s CAP * LS :sasl",
            ":s CAP * ACK :sasl",
            ":s 908 me EXTERNAL,X :are available",
        ],
        &[
            ":s CAP * LS :sasl",
            ":s CAP * ACK :sasl",
            "AUTHENTICATE Zm9v",
        ],
        &[
            ":s CAP * LS :sasl",
            ":s CAP * ACK :sasl",
            "AUTHENTICATE +",
            "AUTHENTICATE +",
        ],
        &[":s 464 * :Password incorrect"],
        &[":s 465 * :You are banned"],
        &["ERROR :Closing link: \u{1b}[2J"],
    ] {
        let mut s = Script::new(plain);
        let mut sent = Vec::new();
        for line in lines {
            assert!(s.failed.is_none(), "{lines:?}");
            sent.extend(s.server(line));
        }
        assert!(!sent.iter().any(|l| l == "CAP END"), "{lines:?}: {sent:?}");
        assert!(s.done.is_none());
        all.push(format!("{}\n    {}", lines.join("; "), s.failure()));
    }
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn success_before_anything_was_asked_is_none() {
    let mut s = Script::new(plain);
    s.server(":s CAP * LS :sasl");
    s.server(":s CAP * ACK :sasl");
    assert!(
        s.server(":s 903 muster :SASL authentication successful")
            .is_empty()
    );
    assert_eq!(s.server(":s AUTHENTICATE :+"), ["AUTHENTICATE YQBhAHA="]);
    s.server(":s 900 me me!u@h a :You are now logged in as a");
    assert_eq!(s.server(":s 907 muster :already"), ["CAP END"]);
}

#[test]
fn another_name_is_taken_when_one_is_in_use() {
    let mut s = Script::new(|settings| settings.alt_nicks = vec!["muster2".into()]);
    s.server(":s CAP * LS :");
    assert_eq!(
        s.server(":s 433 * muster :Nickname is already in use"),
        ["NICK muster2"]
    );
    assert_eq!(s.server(":s 437 * muster2 :unavailable"), ["NICK muster_"]);
    assert_eq!(s.server(":s 433 * muster_ :in use"), ["NICK muster__"]);
    s.server(":s 001 muster__ :Welcome");
    assert!(s.server(":s 433 muster__ muster :in use").is_empty());
    s.server(":s 376 muster__ :End");
    assert_eq!(s.done.unwrap().nick, "muster__");
}

#[test]
fn when_no_name_is_free_it_is_said() {
    let mut s = Script::new(|settings| settings.nick = "a-rather-long-name".into());
    let mut tried = BTreeSet::new();
    while s.failed.is_none() {
        for line in s.server(":s 433 * x :Nickname is already in use") {
            let nick = line.strip_prefix("NICK ").unwrap().to_owned();
            assert!(nick.len() <= 9 && nick.starts_with('a'), "{nick}");
            assert!(tried.insert(nick));
        }
    }
    assert!(s.failure().contains("alt_nicks"), "{}", s.failure());
}
