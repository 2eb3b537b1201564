//! Messages taken apart, by the public table `msg-split` of the ircdocs parser
//! tests (which are in the public domain), as the library that the connection
//! reads with does it.

use irc::proto::Message;

/// A message, and what it is made of.
struct Case {
    text: &'static str,
    tags: &'static [(&'static str, &'static str)],
    source: Option<&'static str>,
    verb: &'static str,
    params: &'static [&'static str],
}

const fn case(
    text: &'static str,
    source: Option<&'static str>,
    verb: &'static str,
    params: &'static [&'static str],
) -> Case {
    Case {
        text,
        tags: &[],
        source,
        verb,
        params,
    }
}

const fn tagged(
    text: &'static str,
    tags: &'static [(&'static str, &'static str)],
    source: Option<&'static str>,
    verb: &'static str,
    params: &'static [&'static str],
) -> Case {
    Case {
        text,
        tags,
        source,
        verb,
        params,
    }
}

const COOL: Option<&str> = Some("coolguy");

/// The table, whole.
const SPLIT: &[Case] = &[
    case("foo bar baz asdf", None, "foo", &["bar", "baz", "asdf"]),
    case(
        ":coolguy foo bar baz asdf",
        COOL,
        "foo",
        &["bar", "baz", "asdf"],
    ),
    case(
        "foo bar baz :asdf quux",
        None,
        "foo",
        &["bar", "baz", "asdf quux"],
    ),
    case("foo bar baz :", None, "foo", &["bar", "baz", ""]),
    case("foo bar baz ::asdf", None, "foo", &["bar", "baz", ":asdf"]),
    case(
        ":coolguy foo bar baz :asdf quux",
        COOL,
        "foo",
        &["bar", "baz", "asdf quux"],
    ),
    case(
        ":coolguy foo bar baz :  asdf quux ",
        COOL,
        "foo",
        &["bar", "baz", "  asdf quux "],
    ),
    case(
        ":coolguy PRIVMSG bar :lol :) ",
        COOL,
        "PRIVMSG",
        &["bar", "lol :) "],
    ),
    case(":coolguy foo bar baz :", COOL, "foo", &["bar", "baz", ""]),
    case(
        ":coolguy foo bar baz :  ",
        COOL,
        "foo",
        &["bar", "baz", "  "],
    ),
    tagged(
        "@a=b;c=32;k;rt=ql7 foo",
        &[("a", "b"), ("c", "32"), ("k", ""), ("rt", "ql7")],
        None,
        "foo",
        &[],
    ),
    tagged(
        r"@a=b\\and\nk;c=72\s45;d=gh\:764 foo",
        &[("a", "b\\and\nk"), ("c", "72 45"), ("d", "gh;764")],
        None,
        "foo",
        &[],
    ),
    tagged(
        "@c;h=;a=b :quux ab cd",
        &[("c", ""), ("h", ""), ("a", "b")],
        Some("quux"),
        "ab",
        &["cd"],
    ),
    case(":src JOIN #chan", Some("src"), "JOIN", &["#chan"]),
    case(":src JOIN :#chan", Some("src"), "JOIN", &["#chan"]),
    case(":src AWAY", Some("src"), "AWAY", &[]),
    case(":src AWAY ", Some("src"), "AWAY", &[]),
    case(
        ":cool\tguy foo bar baz",
        Some("cool\tguy"),
        "foo",
        &["bar", "baz"],
    ),
    case(
        ":coolguy!ag@net\x035w\x03ork.admin PRIVMSG foo :bar baz",
        Some("coolguy!ag@net\x035w\x03ork.admin"),
        "PRIVMSG",
        &["foo", "bar baz"],
    ),
    case(
        ":coolguy!~ag@n\x02et\x0305w\x0fork.admin PRIVMSG foo :bar baz",
        Some("coolguy!~ag@n\x02et\x0305w\x0fork.admin"),
        "PRIVMSG",
        &["foo", "bar baz"],
    ),
    tagged(
        "@tag1=value1;tag2;vendor1/tag3=value2;vendor2/tag4= :irc.example.com COMMAND param1 param2 :param3 param3",
        &[
            ("tag1", "value1"),
            ("tag2", ""),
            ("vendor1/tag3", "value2"),
            ("vendor2/tag4", ""),
        ],
        Some("irc.example.com"),
        "COMMAND",
        &["param1", "param2", "param3 param3"],
    ),
    case(
        ":irc.example.com COMMAND param1 param2 :param3 param3",
        Some("irc.example.com"),
        "COMMAND",
        &["param1", "param2", "param3 param3"],
    ),
    tagged(
        "@tag1=value1;tag2;vendor1/tag3=value2;vendor2/tag4 COMMAND param1 param2 :param3 param3",
        &[
            ("tag1", "value1"),
            ("tag2", ""),
            ("vendor1/tag3", "value2"),
            ("vendor2/tag4", ""),
        ],
        None,
        "COMMAND",
        &["param1", "param2", "param3 param3"],
    ),
    case("COMMAND", None, "COMMAND", &[]),
    tagged(
        r"@foo=\\\\\:\\s\s\r\n COMMAND",
        &[("foo", "\\\\;\\s \r\n")],
        None,
        "COMMAND",
        &[],
    ),
    case(
        ":gravel.mozilla.org 432  #momo :Erroneous Nickname: Illegal characters",
        Some("gravel.mozilla.org"),
        "432",
        &["#momo", "Erroneous Nickname: Illegal characters"],
    ),
    case(
        ":gravel.mozilla.org MODE #tckk +n ",
        Some("gravel.mozilla.org"),
        "MODE",
        &["#tckk", "+n"],
    ),
    case(
        ":services.esper.net MODE #foo-bar +o foobar  ",
        Some("services.esper.net"),
        "MODE",
        &["#foo-bar", "+o", "foobar"],
    ),
    tagged(
        r"@tag1=value\\ntest COMMAND",
        &[("tag1", "value\\ntest")],
        None,
        "COMMAND",
        &[],
    ),
    tagged(
        r"@tag1=value\1 COMMAND",
        &[("tag1", "value1")],
        None,
        "COMMAND",
        &[],
    ),
    tagged(
        r"@tag1=value1\ COMMAND",
        &[("tag1", "value1")],
        None,
        "COMMAND",
        &[],
    ),
    tagged(
        "@tag1=1;tag2=3;tag3=4;tag1=5 COMMAND",
        &[("tag1", "5"), ("tag2", "3"), ("tag3", "4")],
        None,
        "COMMAND",
        &[],
    ),
    tagged(
        "@tag1=1;tag2=3;tag3=4;tag1=5;vendor/tag2=8 COMMAND",
        &[
            ("tag1", "5"),
            ("tag2", "3"),
            ("tag3", "4"),
            ("vendor/tag2", "8"),
        ],
        None,
        "COMMAND",
        &[],
    ),
    case(
        ":SomeOp MODE #channel :+i",
        Some("SomeOp"),
        "MODE",
        &["#channel", "+i"],
    ),
    case(
        ":SomeOp MODE #channel +oo SomeUser :AnotherUser",
        Some("SomeOp"),
        "MODE",
        &["#channel", "+oo", "SomeUser", "AnotherUser"],
    ),
];

/// What the library makes of a message, as a case says it.
#[derive(Debug, Eq, PartialEq)]
struct Parts {
    tags: Vec<(String, String)>,
    source: Option<String>,
    verb: String,
    params: Vec<String>,
}

impl Case {
    fn parts(&self) -> Parts {
        let mut tags: Vec<_> = self
            .tags
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        tags.sort();
        Parts {
            tags,
            source: self.source.map(str::to_owned),
            verb: self.verb.to_owned(),
            params: self.params.iter().map(|p| (*p).to_owned()).collect(),
        }
    }
}

/// What the library read. It keeps the verb and the parameters as a command of
/// its own, which is written out again here.
fn read(text: &str) -> Option<Parts> {
    let message: Message = text.parse().ok()?;
    let mut tags: Vec<(String, String)> = Vec::new();
    for tag in message.tags.iter().flatten() {
        let value = tag.1.clone().unwrap_or_default();
        tags.retain(|(name, _)| *name != tag.0);
        tags.push((tag.0.clone(), value));
    }
    tags.sort();
    let command = String::from(&message.command);
    let (head, trailing) = match command.split_once(" :") {
        Some((head, trailing)) => (head, Some(trailing)),
        None => (command.as_str(), None),
    };
    let mut words = head.split(' ').map(str::to_owned);
    Some(Parts {
        tags,
        source: message.prefix.as_ref().map(ToString::to_string),
        verb: words.next()?,
        params: words.chain(trailing.map(str::to_owned)).collect(),
    })
}

/// Modes are read into a list of their own, and written as one sign each: the
/// meaning is the same. Everything else is read as it should be.
const KNOWN: [&str; 1] = [":SomeOp MODE #channel +oo SomeUser :AnotherUser"];

#[test]
fn messages_are_taken_apart_as_the_tables_say() {
    let differs: Vec<&str> = SPLIT
        .iter()
        .filter(|case| read(case.text) != Some(case.parts()))
        .map(|case| case.text)
        .collect();
    assert_eq!(differs, KNOWN);
    let read = read(KNOWN[0]).expect("it is read");
    assert_eq!(read.params, ["#channel", "+o+o", "SomeUser", "AnotherUser"]);
}
