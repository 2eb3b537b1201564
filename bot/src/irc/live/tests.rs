use std::time::Duration;

use muster_protocol::api::{ChatPerson, Vouched};

use super::*;
use crate::irc::tests::{channel, settings};
use crate::irc::{Casemapping, Line, Multiline};

const ALL: Caps = Caps {
    echo_message: true,
    labeled_response: true,
    server_time: true,
    message_tags: true,
    account_tag: true,
    account_notify: true,
    extended_join: true,
    multiline: Some(Multiline {
        max_bytes: 100,
        max_lines: 3,
    }),
};
const NONE: Caps = Caps {
    echo_message: false,
    labeled_response: false,
    server_time: false,
    message_tags: false,
    account_tag: false,
    account_notify: false,
    extended_join: false,
    multiline: None,
};
/// All but that lines say who wrote them.
const TRACKING: Caps = Caps {
    account_notify: true,
    extended_join: true,
    ..NONE
};

struct Script {
    live: Live,
    users: Users,
    now: Now,
}

impl Script {
    fn new(caps: Caps) -> Self {
        Self::with(caps, |_| {}).0
    }

    fn with(caps: Caps, change: impl FnOnce(&mut NetworkSettings)) -> (Self, Vec<Out>) {
        let mut settings = settings("127.0.0.1", 1);
        change(&mut settings);
        let users = Users::default();
        let now = Now {
            instant: Instant::now(),
            time: "2026-01-01T12:00:00Z".parse().unwrap(),
        };
        let mut features = Features::default();
        features.take(&["WHOX".to_owned(), "CASEMAPPING=ascii".to_owned()]);
        let registered = Registered {
            nick: "muster".into(),
            from: Some("m@bot.example".into()),
            caps,
            agreed: vec!["account-tag".into()],
            features,
        };
        let (live, out) = Live::begin(Arc::new(settings), users.clone(), registered, now);
        (Self { live, users, now }, out)
    }

    /// In #ops, with ana (logged in) and bob (not).
    fn joined(caps: Caps) -> Self {
        let mut s = Self::new(caps);
        s.server(":muster!m@bot.example JOIN #ops * :muster");
        s.server(":s 353 muster = #ops :@ana +bob muster");
        s.server(":s 366 muster #ops :End");
        s.server(":s 354 muster 774 #ops ua ha ana H@ ana");
        s.server(":s 354 muster 774 #ops ub hb bob H 0");
        s.server(":s 354 muster 774 #ops m bot.example muster H muster");
        s.server(":s 315 muster #ops :End");
        s
    }

    fn server(&mut self, line: &str) -> Vec<Out> {
        self.live.step(&line.parse().unwrap(), self.now)
    }

    fn pass(&mut self, time: Duration) -> Vec<Out> {
        self.now.instant += time;
        self.live.tick(self.now)
    }

    /// The line for the bot that comes of that.
    fn heard(&mut self, line: &str) -> Option<Line> {
        let mut out = self.server(line);
        match out.pop() {
            Some(Out::Tell(Heard::Line(line))) => Some(line),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    /// The account of who says `!x` in #ops, and the sight.
    fn who(&mut self, tags: &str, mask: &str) -> (Option<(String, Vouched)>, Option<String>) {
        let line = self
            .heard(&format!("{tags}:{mask} PRIVMSG #ops :!x"))
            .unwrap();
        let account = line.speaker.account.map(|a| (a.name, a.vouched));
        (account, line.speaker.sight)
    }
}

fn tracked(name: &str) -> Option<(String, Vouched)> {
    Some((name.to_owned(), Vouched::Tracked))
}

fn sent(out: &[Out]) -> Vec<&str> {
    out.iter()
        .filter_map(|o| match o {
            Out::Send(line) => Some(line.as_str()),
            _ => None,
        })
        .collect()
}

#[test]
fn it_joins_and_asks_who_is_there_one_channel_after_the_other() {
    let (mut s, out) = Script::with(ALL, |settings| {
        let mut secret = channel("#secret");
        secret.key = Some(muster_protocol::api::Secret::new("k"));
        settings.channels.extend([secret, channel("#dev")]);
    });
    assert_eq!(sent(&out), ["JOIN #secret,#dev,#ops k"]);
    let Some(Out::Tell(Heard::Ready(ready))) = out.last() else {
        panic!("{out:?}")
    };
    assert_eq!(ready.mask_bytes, ":muster!m@bot.example ".len());
    let out = s.server(":muster!m@bot.example JOIN #OPS");
    assert_eq!(out, [Out::Tell(Heard::Joined("#ops".parse().unwrap()))]);
    s.server(":muster!m@bot.example JOIN #dev");
    assert_eq!(
        sent(&s.server(":s 366 muster #ops :End")),
        ["WHO #ops %tcuhnaf,774"]
    );
    assert!(s.server(":s 366 muster #dev :End").is_empty());
    assert_eq!(
        sent(&s.server(":s 315 muster #ops :End")),
        ["WHO #dev %tcuhnaf,774"]
    );
    // Put where the operators do not want it.
    assert_eq!(
        sent(&s.server(":muster!m@bot.example JOIN #other")),
        ["PART #other"]
    );
    assert!(s.server(":ana!u@h INVITE muster :#other").is_empty());
}

#[test]
fn many_channels_are_joined_in_lines_that_are_not_cut() {
    let (_, out) = Script::with(NONE, |settings| {
        settings.channels = (0..100)
            .map(|n| channel(&format!("#channel-number-{n}")))
            .collect();
    });
    let lines = sent(&out);
    assert!(
        lines.len() > 3 && lines.iter().all(|l| l.len() < 450),
        "{lines:?}"
    );
    let names: usize = lines.iter().map(|l| l.split(',').count()).sum();
    assert_eq!(names, 100);
}

#[test]
fn the_account_on_the_line_wins_and_none_on_it_is_none() {
    let mut s = Script::joined(ALL);
    let tag = |name: &str| Some((name.to_owned(), Vouched::Tag));
    assert_eq!(s.who("@account=ana ", "ana!ua@ha").0, tag("ana"));
    assert_eq!(s.who("@account=eve ", "ana!ua@ha").0, tag("eve"));
    // Tracked or not: without the tag nobody is logged in.
    assert_eq!(s.who("", "ana!ua@ha").0, None);
    assert_eq!(s.who("@account=* ", "ana!ua@ha").0, None);
    assert_eq!(s.who("@account ", "ana!ua@ha").0, None);
    assert_eq!(s.who("@+account=root ", "ana!ua@ha").0, None);
    assert_eq!(s.who("@account=zed ", "stranger!u@h"), (tag("zed"), None));
}

#[test]
fn a_tag_counts_only_where_it_was_agreed_on() {
    let mut s = Script::joined(TRACKING);
    assert_eq!(s.who("@account=root ", "bob!ub@hb").0, None);
    assert_eq!(s.who("@account=root ", "ana!ua@ha").0, tracked("ana"));
    // And where nobody would tell of a logout, nobody is tracked.
    let mut s = Script::joined(Caps {
        account_notify: false,
        ..TRACKING
    });
    assert_eq!(s.who("", "ana!ua@ha").0, None);
    s.server(":cleo!uc@hc JOIN #ops cleo :Cleo");
    assert_eq!(s.who("", "cleo!uc@hc").0, None);
}

#[test]
fn logins_and_logouts_change_the_account_and_not_the_sight() {
    let mut s = Script::joined(TRACKING);
    let (account, sight) = s.who("", "ana!ua@ha");
    assert_eq!(account, tracked("ana"));
    s.server(":ana!ua@ha ACCOUNT *");
    assert_eq!(s.who("", "ana!ua@ha"), (None, sight.clone()));
    s.server(":ana!ua@ha ACCOUNT eve");
    assert_eq!(s.who("", "ana!ua@ha"), (tracked("eve"), sight.clone()));
    s.server(":ana!ua@ha CHGHOST new new.example");
    assert_eq!(s.who("", "ana!new@new.example"), (tracked("eve"), sight));
}

#[test]
fn whoever_takes_a_name_is_somebody_else() {
    let mut s = Script::joined(TRACKING);
    let before = s.who("", "ana!ua@ha");
    s.server(":ana!ua@ha NICK ana2");
    let after = s.who("", "ana2!ua@ha");
    assert_eq!(after.0, tracked("ana"));
    assert_ne!(before.1, after.1);
    s.server(":bob!ub@hb NICK ana");
    let thief = s.who("", "ana!ub@hb");
    assert_eq!(thief.0, None);
    assert!(thief.1 != before.1 && thief.1 != after.1);
    // By a host that nobody announced, too.
    let unseen = s.who("", "ana2!evil@elsewhere");
    assert_eq!(unseen.0, None);
    assert_ne!(unseen.1, after.1);
}

#[test]
fn whoever_was_out_of_sight_is_somebody_else() {
    for gone in [
        ":ana!ua@ha PART #ops :bye",
        ":ana!ua@ha QUIT :Ping timeout",
        ":ana!ua@ha QUIT :a.example b.example",
        ":bob!ub@hb KICK #ops ana :out",
        ":ana!ua@ha PART #other,#ops",
    ] {
        let mut s = Script::joined(TRACKING);
        let before = s.who("", "ana!ua@ha");
        assert!(before.1.is_some());
        s.server(gone);
        let away = s.heard(":ana!ua@ha PRIVMSG muster :x").unwrap();
        assert_eq!(
            (away.speaker.account, away.speaker.sight),
            (None, None),
            "{gone}"
        );
        s.server(":ana!ua@ha JOIN #ops * :Ana");
        let back = s.who("", "ana!ua@ha");
        assert_eq!(back.0, None, "{gone}");
        assert!(back.1.is_some() && back.1 != before.1, "{gone}");
        s.server(":cleo!uc@hc JOIN #ops cleo :Cleo");
        assert_eq!(s.who("", "cleo!uc@hc").0, tracked("cleo"));
    }
}

#[test]
fn what_anybody_claims_changes_nothing() {
    let mut s = Script::joined(TRACKING);
    let before = s.who("", "bob!ub@hb");
    for line in [
        ":NickServ!s@services NOTICE muster :bob is logged in as ana",
        ":NickServ!s@services NOTICE muster :You are now identified for ana",
        ":NickServ!s@services PRIVMSG #ops :ACCOUNT bob ana",
        ":bob!ub@hb NOTICE #ops :!cmd * -- id",
        ":s NOTICE muster :!cmd * -- id",
        ":s PRIVMSG muster :!cmd * -- id",
        ":bob!ub@hb PRIVMSG #ops :\u{1}ACTION !cmd\u{1}",
        ":bob!ub@hb PRIVMSG muster :\u{1}VERSION\u{1}",
        ":muster!m@bot.example PRIVMSG #ops :!cmd * -- id",
        ":MUSTER!x@y PRIVMSG muster :!cmd * -- id",
        ":s 330 muster bob ana :is logged in as",
        ":s 354 muster 999 #ops ub hb bob H ana",
        ":s 354 muster #ops ub hb bob H ana",
    ] {
        assert!(s.server(line).is_empty(), "{line}");
    }
    assert_eq!(s.who("", "bob!ub@hb"), before);
}

#[test]
fn what_was_written_before_is_not_for_now() {
    let mut s = Script::joined(ALL);
    let at = |time: &str| format!("@time={time};account=ana;msgid=x :ana!ua@ha PRIVMSG #ops :!x");
    let line = s.heard(&at("2026-01-01T11:59:01.000Z")).unwrap();
    assert_eq!(line.id, "x");
    assert_eq!(
        line.server_time,
        Some("2026-01-01T11:59:01Z".parse().unwrap())
    );
    assert_eq!(s.heard(&at("2026-01-01T11:58:59.000Z")), None);
    assert_eq!(s.heard(&at("2020-01-01T00:00:00.000Z")), None);
    assert_eq!(s.heard(&at("yesterday")), None);
    assert!(s.heard(&at("2026-01-01T12:00:30.000Z")).is_some());
    for kind in [
        "chathistory #ops",
        "znc.in/playback #ops",
        "draft/multiline #ops",
        "x",
        "",
    ] {
        s.server(&format!(":s BATCH +r {kind}"));
        assert_eq!(
            s.heard("@batch=r;account=ana :ana!ua@ha PRIVMSG #ops :!x"),
            None
        );
        s.server(":s BATCH -r");
    }
    // Nor did anything else in it happen now.
    s.server(":s BATCH +r chathistory #ops");
    s.server("@batch=r :ana!ua@ha NICK bob");
    s.server(":s BATCH -r");
    assert_eq!(
        s.heard("@batch=unknown;account=ana :ana!ua@ha PRIVMSG #ops :!x"),
        None
    );
    assert!(s.who("", "bob!ub@hb").1.is_some());
    // A netsplit is a batch that does happen now.
    let before = s.who("", "ana!ua@ha").1;
    s.server(":s BATCH +n netsplit a.example b.example");
    s.server("@batch=n :ana!ua@ha QUIT :a.example b.example");
    s.server(":s BATCH -n");
    s.server(":ana!ua@ha JOIN #ops ana :Ana");
    assert_ne!(s.who("", "ana!ua@ha").1, before);
}

#[test]
fn what_another_bot_writes_is_not_for_this_one() {
    let mut s = Script::joined(ALL);
    for tag in ["bot", "draft/bot", "inspircd.org/bot"] {
        let line = format!("@account=ana;{tag} :ana!ua@ha PRIVMSG #ops :!x");
        assert_eq!(s.heard(&line), None, "{tag}");
    }
    assert!(
        s.heard("@account=ana :ana!ua@ha PRIVMSG #ops :!x")
            .is_some()
    );
}

#[test]
fn lines_are_passed_on_as_they_were_written() {
    let mut s = Script::joined(ALL);
    let line = s
        .heard(":ana!ua@ha PRIVMSG #OPS :!deploy  \"1 2\" x=: ")
        .unwrap();
    assert_eq!(line.text, "deploy  \"1 2\" x=: ");
    assert_eq!(line.channel.unwrap().as_str(), "#ops");
    assert_eq!(line.speaker.mask, "ana!ua@ha");
    let other = s.heard(":ana!ua@ha PRIVMSG #ops :!x").unwrap();
    assert!(!other.id.is_empty() && other.id != line.id);
    let alone = s.heard(":ana!ua@ha PRIVMSG Muster :link ABC").unwrap();
    assert_eq!((alone.channel, alone.text.as_str()), (None, "link ABC"));
    for target in ["@#ops", "#other", "$*", "bob", "muster,bob"] {
        assert_eq!(
            s.heard(&format!(":ana!ua@ha PRIVMSG {target} :!x")),
            None,
            "{target}"
        );
    }
    let odd = s
        .heard("@msgid=\u{1b}[2J :ana!ua@ha PRIVMSG #ops :!x")
        .unwrap();
    assert!(
        odd.id.bytes().all(|b| b.is_ascii_alphanumeric()),
        "{}",
        odd.id
    );
}

#[test]
fn persons_are_found_by_account_or_sight_and_never_by_name() {
    let mut s = Script::joined(TRACKING);
    let person = |nick: &str, account: Option<&str>, sight: Option<String>| ChatPerson {
        nick: nick.into(),
        account: account.map(str::to_owned),
        sight,
    };
    let sight = s.who("", "bob!ub@hb").1;
    s.server(":ana!ua@ha NICK ana2");
    assert_eq!(
        s.users
            .nick_of(&person("ana", Some("Ana"), None))
            .as_deref(),
        Some("ana2")
    );
    let bob = person("bob", None, sight);
    assert_eq!(s.users.nick_of(&bob).as_deref(), Some("bob"));
    s.server(":bob!ub@hb NICK rob");
    assert_eq!(s.users.nick_of(&bob), None);
    assert_eq!(s.users.nick_of(&person("rob", None, None)), None);
    assert_eq!(s.users.nick_of(&person("ana2", Some("zed"), None)), None);
    // With two connections: where they asked.
    s.server(":ana!uc@hc JOIN #ops ana :Ana");
    assert_eq!(
        s.users
            .nick_of(&person("ana2", Some("ana"), None))
            .as_deref(),
        Some("ana2")
    );
    assert_eq!(
        s.users
            .nick_of(&person("ana", Some("ana"), None))
            .as_deref(),
        Some("ana")
    );
    s.server(":ana2!ua@ha QUIT :x");
    s.server(":ana!uc@hc ACCOUNT *");
    assert_eq!(s.users.nick_of(&person("ana", Some("ana"), None)), None);
}

#[test]
fn after_being_thrown_out_it_comes_back_ever_more_slowly() {
    let mut s = Script::joined(TRACKING);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let out = s.server(":op!u@h KICK #ops muster :out");
        assert_eq!(out, [Out::Tell(Heard::Left("#ops".parse().unwrap()))]);
        assert_eq!(
            s.users.nick_of(&ChatPerson {
                nick: "ana".into(),
                account: Some("ana".into()),
                sight: None,
            }),
            None
        );
        let mut waited = 0;
        while sent(&s.pass(Duration::from_secs(1))) != ["JOIN #ops"] {
            waited += 1;
            assert!(waited < 1_000);
        }
        pauses.push(waited + 1);
        s.server(":muster!m@bot.example JOIN #ops");
    }
    assert_eq!(pauses[..4], [2, 4, 8, 16]);
    assert_eq!(pauses.last(), Some(&300));
    // One in which it lasted counts no more.
    s.pass(Duration::from_secs(301));
    s.server(":op!u@h KICK #ops muster :out");
    assert!(s.pass(Duration::from_secs(1)).is_empty());
    assert_eq!(sent(&s.pass(Duration::from_secs(1))), ["JOIN #ops"]);
    // Refused: tried again, too.
    assert!(
        s.server(":s 473 muster #ops :Cannot join channel (+i)")
            .is_empty()
    );
    assert!(s.pass(Duration::from_secs(3)).is_empty());
    assert_eq!(sent(&s.pass(Duration::from_secs(1))), ["JOIN #ops"]);
}

#[test]
fn the_wanted_name_is_taken_when_it_is_free() {
    let (mut s, out) = Script::with(NONE, |settings| settings.nick = "wanted".into());
    assert_eq!(sent(&out), ["JOIN #ops", "ISON wanted"]);
    assert!(s.server(":s 303 muster :wanted").is_empty());
    assert!(s.pass(Duration::from_secs(59)).is_empty());
    assert_eq!(sent(&s.pass(Duration::from_secs(1))), ["ISON wanted"]);
    assert_eq!(sent(&s.server(":s 303 muster :")), ["NICK wanted"]);
    // Somebody was quicker; it is not tried again at once.
    assert!(s.server(":s 433 muster wanted :in use").is_empty());
    assert!(s.server(":Wanted!u@h QUIT :x").is_empty());
    s.now.instant += Duration::from_secs(4);
    assert_eq!(sent(&s.server(":Wanted!u@h NICK other")), ["NICK wanted"]);
    let out = s.server(":muster!m@bot.example NICK :wanted");
    assert_eq!(
        out,
        [
            Out::Tell(Heard::Nick("wanted".into())),
            Out::Tell(Heard::Mask(":wanted!m@bot.example ".len())),
        ]
    );
    assert!(s.server(":s 303 wanted :").is_empty());
    // And it answers to it.
    assert!(s.heard(":ana!u@h PRIVMSG #ops :wanted: nodes").is_some());
    assert!(s.heard(":ana!u@h PRIVMSG #ops :muster: nodes").is_none());
}

#[test]
fn a_server_that_watches_names_tells_when_one_is_free() {
    let (mut s, _) = Script::with(NONE, |_| {});
    s.live.features.monitor = true;
    s.server(":muster!m@bot.example NICK muster_");
    assert_eq!(sent(&s.pass(Duration::from_secs(60))), ["MONITOR + muster"]);
    assert_eq!(sent(&s.server(":s 731 muster_ :muster")), ["NICK muster"]);
}

#[test]
fn the_own_mask_is_followed() {
    let mut s = Script::new(ALL);
    let mask = |text: &str| Out::Tell(Heard::Mask(text.len()));
    assert_eq!(
        s.server(":muster!m@bot.example CHGHOST mm cloaked.example"),
        [mask(":muster!mm@cloaked.example ")]
    );
    assert_eq!(
        s.server(":s 396 muster x.y.z :is now your displayed host"),
        [mask(":muster!mm@x.y.z ")]
    );
    assert_eq!(s.server(":muster!m@h JOIN #ops")[0], mask(":muster!m@h "));
}

#[test]
fn what_was_sent_comes_back_with_its_label() {
    let mut s = Script::joined(ALL);
    let target = Target::Channel("#ops".parse().unwrap());
    let line = |token, text: &str| Send::Privmsg {
        target: target.clone(),
        text: text.into(),
        token,
    };
    let echo = |token| vec![Out::Tell(Heard::Echo { token })];
    assert_eq!(
        sent(&s.live.send(&line(7, "a :b"))),
        ["@label=m7 PRIVMSG #ops :a :b"]
    );
    s.live.send(&line(8, "c"));
    assert_eq!(
        s.server("@label=m8 :muster!m@bot.example PRIVMSG #ops :c"),
        echo(8)
    );
    assert_eq!(
        s.server("@label=m7 :muster!m@bot.example PRIVMSG #ops :cut"),
        echo(7)
    );
    // Neither twice nor of anybody else.
    assert!(
        s.server("@label=m7 :muster!m@bot.example PRIVMSG #ops :cut")
            .is_empty()
    );
    s.live.send(&line(9, "d"));
    assert!(s.server(":muster!m@bot.example PRIVMSG #ops :d").is_empty());
    assert!(s.server("@label=m9 :bob!ub@hb PRIVMSG #ops :d").is_empty());
    let refused = s.server("@label=m9 :s 404 muster #ops :Cannot send to channel");
    let why = "Cannot send to channel (404)".to_owned();
    assert_eq!(refused, [Out::Tell(Heard::Refused { token: 9, why })]);
    // Inside a batch, with something more.
    s.live.send(&line(10, "e"));
    s.server("@label=m10 :s BATCH +l labeled-response");
    assert!(s.server("@batch=l :s 301 muster ana :away").is_empty());
    assert_eq!(
        s.server("@batch=l :muster!m@bot.example PRIVMSG #ops :e"),
        echo(10)
    );
    assert!(s.server(":s BATCH -l").is_empty());
    s.live.send(&line(11, "f"));
    assert_eq!(s.server("@label=m11 :s ACK"), echo(11));
}

#[test]
fn several_lines_as_one_come_back_as_one() {
    let mut s = Script::joined(ALL);
    let target = Target::Channel("#ops".parse().unwrap());
    let send = |lines: &[&str], token| Send::Multiline {
        target: target.clone(),
        lines: lines.iter().map(|l| (*l).to_owned()).collect(),
        token,
    };
    assert_eq!(
        sent(&s.live.send(&send(&["a", "", "b c"], 5))),
        [
            "@label=m5 BATCH +b5 draft/multiline #ops",
            "@batch=b5 PRIVMSG #ops :a",
            "@batch=b5 PRIVMSG #ops :",
            "@batch=b5 PRIVMSG #ops :b c",
            "BATCH -b5",
        ]
    );
    s.server("@label=m5 :muster!m@bot.example BATCH +x draft/multiline #ops");
    assert!(
        s.server("@batch=x :muster!m@bot.example PRIVMSG #ops :a")
            .is_empty()
    );
    assert_eq!(
        s.server(":muster!m@bot.example BATCH -x"),
        [Out::Tell(Heard::Echo { token: 5 })]
    );
    for bad in [
        &["a\r\nQUIT"][..],
        &[],
        &[""],
        &["1", "2", "3", "4"],
        &["x".repeat(101).as_str()],
    ] {
        let out = s.live.send(&send(bad, 6));
        assert!(
            matches!(&out[..], [Out::Tell(Heard::Refused { token: 6, .. })]),
            "{bad:?}"
        );
    }
}

#[test]
fn without_labels_lines_are_known_by_what_they_say() {
    let mut s = Script::joined(Caps {
        echo_message: true,
        ..NONE
    });
    let target = Target::Nick("Ana".into());
    for (token, text) in [(1, "one"), (2, "two"), (3, "three")] {
        let text = text.to_owned();
        let out = s.live.send(&Send::Privmsg {
            target: target.clone(),
            text,
            token,
        });
        assert!(sent(&out)[0].starts_with("PRIVMSG Ana :"));
    }
    let echo = |token| vec![Out::Tell(Heard::Echo { token })];
    assert_eq!(s.server(":muster!m@bot.example PRIVMSG ana :two"), echo(2));
    let out = s.server(":s 401 muster Ana :No such nick");
    assert!(
        matches!(&out[..], [Out::Tell(Heard::Refused { token: 1, .. })]),
        "{out:?}"
    );
    let ping = s.live.send(&Send::Ping { token: 4 });
    assert_eq!(sent(&ping), ["PING p4"]);
    assert_eq!(
        s.server(":s PONG s :p4"),
        [Out::Tell(Heard::Pong { token: 4 })]
    );
    assert!(
        s.server(":muster!m@bot.example PRIVMSG ana :three")
            .is_empty()
    );
}

#[test]
fn nothing_that_is_sent_can_be_read_as_something_else() {
    let mut s = Script::joined(ALL);
    let ops = || Target::Channel("#ops".parse().unwrap());
    let nick = |nick: &str| Target::Nick(nick.into());
    for (target, text) in [
        (ops(), "a\r\nQUIT"),
        (ops(), "a\nQUIT"),
        (ops(), "a\rQUIT"),
        (ops(), "a\0b"),
        (ops(), ""),
        (nick("ana bob"), "x"),
        (nick("ana,bob"), "x"),
        (nick("#ops"), "x"),
        (nick(":x"), "x"),
        (nick("$*"), "x"),
        (nick(""), "x"),
        (nick("a\r\nQUIT"), "x"),
    ] {
        let out = s.live.send(&Send::Privmsg {
            target: target.clone(),
            text: text.into(),
            token: 1,
        });
        assert!(
            matches!(&out[..], [Out::Tell(Heard::Refused { .. })]),
            "{target:?} {text:?}"
        );
    }
}

#[test]
fn what_the_server_takes_back_needs_another_connection() {
    let mut s = Script::new(ALL);
    assert!(s.server(":s CAP muster DEL :away-notify").is_empty());
    assert!(matches!(
        &s.server(":s CAP muster DEL :x account-tag")[..],
        [Out::Fail(_)]
    ));
    assert!(matches!(
        &s.server("ERROR :Closing link")[..],
        [Out::Fail(_)]
    ));
    assert!(s.server(":s CAP muster NEW :x").is_empty());
}

#[test]
fn names_are_compared_as_the_server_compares() {
    assert_eq!(Casemapping::Rfc1459.fold("Ab[]\\~"), "ab{}|^");
    assert_eq!(Casemapping::StrictRfc1459.fold("A[~"), "a{~");
    assert_eq!(Casemapping::Ascii.fold("A[~"), "a[~");
}

proptest::proptest! {
    /// Whatever a server sends, in whatever order: no panic, and nobody who
    /// was not vouched for gets an account.
    #[test]
    fn nothing_that_a_server_sends_breaks_it(
        lines in proptest::collection::vec(
            "(@(account=x|batch=r|label=m1|time=2026-01-01T12:00:00Z) )?(:(ana|bob|muster|s\\.x)(!u@h)? )?\
             (JOIN|PART|QUIT|NICK|KICK|ACCOUNT|PRIVMSG|NOTICE|BATCH|CHGHOST|MODE|CAP|PING|353|354|366|352|315|303|731|404|433|FAIL|ACK)\
             ( (#ops|ana|muster|\\*|\\+r|-r|chathistory|774|,|)){0,8}( :[a-z !#]{0,9})?",
            0..40,
        )
    ) {
        let mut s = Script::joined(NONE);
        for line in lines {
            if let Ok(message) = line.parse::<Message>() {
                for out in s.live.step(&message, s.now) {
                    if let Out::Tell(Heard::Line(line)) = out {
                        assert_eq!(line.speaker.account, None);
                    }
                }
            }
        }
    }
}
