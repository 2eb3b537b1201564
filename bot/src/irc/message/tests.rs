use super::*;

#[test]
fn parts_of_messages_are_found() {
    let message: Message = "@account=ana;msgid=x;account=bob :n!u@h PRIVMSG #a :hi"
        .parse()
        .unwrap();
    assert_eq!(tag(&message, "account"), Some("bob"));
    assert_eq!(tag(&message, "time"), None);
    assert!(has_tag(&message, "msgid") && !has_tag(&message, "batch"));
    let source = Source::of(&message).unwrap();
    assert_eq!((source.nick, source.mask()), ("n", "n!u@h".to_owned()));
    let server: Message = ":irc.example 001 me :hello".parse().unwrap();
    assert_eq!(Source::of(&server), None);
    assert_eq!(
        numeric(&server.command).map(|(n, a)| (n, a.len())),
        Some((1, 2))
    );
    let whox: Message = ":s 354 me 9 #a u h n H 0".parse().unwrap();
    assert_eq!(
        numeric(&whox.command).map(|(n, a)| (n, a.len())),
        Some((354, 8))
    );
    assert_eq!(
        (account("0"), account("*"), account("ana")),
        (None, None, Some("ana"))
    );
}

#[test]
fn what_is_sent_is_one_line() {
    assert_eq!(line("PING", &["a b"]), "PING :a b");
    assert_eq!(line("JOIN", &["#a", "k\r\nQUIT"]), "JOIN #a kQUIT");
    assert_eq!(line("PASS", &[":x"]), "PASS ::x");
    assert_eq!(line("QUIT", &[]), "QUIT");
}

proptest::proptest! {
    #[test]
    fn nothing_that_is_received_panics(text in "[@:]?[ -~\u{e9}\r]{0,80}( :)?[ -~]{0,20}") {
        if let Ok(message) = text.parse::<Message>() {
            let _ = (Source::of(&message), tag(&message, "a"), numeric(&message.command));
        }
    }

    #[test]
    fn no_command_that_is_received_panics(
        verb in "MODE|BATCH|CAP|METADATA|KICK|NICKSERV|354|353|005|PRIVMSG",
        args in proptest::collection::vec("[+-]?[#a-zA-Z0-9=*]{0,6}", 0..20),
    ) {
        let _ = format!(":s {verb} {}", args.join(" ")).parse::<Message>();
    }
}

/// Tags, source, verb and parameters.
type Parts = (
    &'static [(&'static str, &'static str)],
    &'static str,
    &'static str,
    &'static [&'static str],
);

/// How lines are to be read, by the cases that the public tests of IRC parsers
/// agree on.
const LINES: &[(&str, Parts)] = &[
    (
        "foo bar baz asdf",
        (&[], "", "foo", &["bar", "baz", "asdf"]),
    ),
    (":cool foo bar baz", (&[], "cool", "foo", &["bar", "baz"])),
    (
        "foo bar :asdf quux",
        (&[], "", "foo", &["bar", "asdf quux"]),
    ),
    ("foo bar :", (&[], "", "foo", &["bar", ""])),
    ("foo bar ::asdf", (&[], "", "foo", &["bar", ":asdf"])),
    (
        ":cool foo bar :  asdf quux ",
        (&[], "cool", "foo", &["bar", "  asdf quux "]),
    ),
    (
        ":cool PRIVMSG bar :lol :) ",
        (&[], "cool", "PRIVMSG", &["bar", "lol :) "]),
    ),
    (":cool foo bar :  ", (&[], "cool", "foo", &["bar", "  "])),
    (
        "@a=b;c=32;k;rt=ql7 foo",
        (
            &[("a", "b"), ("c", "32"), ("k", ""), ("rt", "ql7")],
            "",
            "foo",
            &[],
        ),
    ),
    (
        "@a=b\\\\and\\nk;c=72\\s45;d=gh\\:764 foo",
        (
            &[("a", "b\\and\nk"), ("c", "72 45"), ("d", "gh;764")],
            "",
            "foo",
            &[],
        ),
    ),
    (
        "@c;h=;a=b :quux ab cd",
        (&[("c", ""), ("h", ""), ("a", "b")], "quux", "ab", &["cd"]),
    ),
    (":src JOIN #chan", (&[], "src", "JOIN", &["#chan"])),
    (":src JOIN :#chan", (&[], "src", "JOIN", &["#chan"])),
    (":src AWAY", (&[], "src", "AWAY", &[])),
    (":src AWAY ", (&[], "src", "AWAY", &[])),
    // A tab is no space.
    (":cool\tguy foo bar", (&[], "cool\tguy", "foo", &["bar"])),
    (
        ":cool!ag@net\u{3}5w\u{3}ork.admin PRIVMSG foo :bar baz",
        (
            &[],
            "cool!ag@net\u{3}5w\u{3}ork.admin",
            "PRIVMSG",
            &["foo", "bar baz"],
        ),
    ),
    (
        "@t1=v1;t2;x/t3=v2;y/t4= :irc.example.com COMMAND p1 :p2 p2",
        (
            &[("t1", "v1"), ("t2", ""), ("x/t3", "v2"), ("y/t4", "")],
            "irc.example.com",
            "COMMAND",
            &["p1", "p2 p2"],
        ),
    ),
    ("COMMAND", (&[], "", "COMMAND", &[])),
    // Escapes are read from the left, one at a time.
    (
        "@foo=\\\\\\\\\\:\\\\s\\s\\r\\n COMMAND",
        (&[("foo", "\\\\;\\s \r\n")], "", "COMMAND", &[]),
    ),
    (
        "@t=value\\\\ntest COMMAND",
        (&[("t", "value\\ntest")], "", "COMMAND", &[]),
    ),
    (
        "@t=value\\1 COMMAND",
        (&[("t", "value1")], "", "COMMAND", &[]),
    ),
    (
        "@t=value1\\ COMMAND",
        (&[("t", "value1")], "", "COMMAND", &[]),
    ),
    (
        "@t=1;u=3;t=5;v/u=8 COMMAND",
        (&[("t", "5"), ("u", "3"), ("v/u", "8")], "", "COMMAND", &[]),
    ),
    // More spaces than one.
    (
        ":irc.example.com 432  #momo :Erroneous Nickname: Illegal",
        (
            &[],
            "irc.example.com",
            "432",
            &["#momo", "Erroneous Nickname: Illegal"],
        ),
    ),
    (
        ":irc.example.com MODE #tckk +n ",
        (&[], "irc.example.com", "MODE", &["#tckk", "+n"]),
    ),
    (
        ":irc.example.com MODE #foo-bar +o foobar  ",
        (
            &[],
            "irc.example.com",
            "MODE",
            &["#foo-bar", "+o", "foobar"],
        ),
    ),
    (
        ":SomeOp MODE #channel :+i",
        (&[], "SomeOp", "MODE", &["#channel", "+i"]),
    ),
    (
        ":SomeOp MODE #channel +oo SomeUser :AnotherUser",
        (
            &[],
            "SomeOp",
            "MODE",
            &["#channel", "+oo", "SomeUser", "AnotherUser"],
        ),
    ),
];

#[test]
fn lines_are_split_as_everybody_splits_them() {
    for (line, (tags, source, verb, params)) in LINES {
        let message: Message = line.parse().unwrap();
        let command = Command::new(verb, params.to_vec()).unwrap();
        assert_eq!(message.command, command, "{line}");
        let shown = message
            .prefix
            .as_ref()
            .map_or(String::new(), ToString::to_string);
        assert_eq!(shown, *source, "{line}");
        for (name, value) in *tags {
            assert!(has_tag(&message, name), "{line}");
            assert_eq!(tag(&message, name).unwrap_or(""), *value, "{line}");
        }
    }
}

#[test]
fn sources_are_split_as_everybody_splits_them() {
    for (text, want) in [
        ("cool!ag@127.0.0.1", ("cool", "ag", "127.0.0.1")),
        ("cool!~ag@localhost", ("cool", "~ag", "localhost")),
        ("cool@127.0.0.1", ("cool", "", "127.0.0.1")),
        ("cool!ag", ("cool", "ag", "")),
        (
            "cool!~ag@n\u{2}et\u{3}05w\u{f}ork",
            ("cool", "~ag", "n\u{2}et\u{3}05w\u{f}ork"),
        ),
        ("cool!a!b@c@d", ("cool", "a!b", "c@d")),
    ] {
        let message: Message = format!(":{text} PRIVMSG a :b").parse().unwrap();
        let source = Source::of(&message).unwrap();
        assert_eq!((source.nick, source.user, source.host), want, "{text}");
    }
}
