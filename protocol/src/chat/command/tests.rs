//! Lines, and what they say.

use proptest::prelude::*;

use super::*;

fn aliases() -> Aliases {
    let named = [
        ("deploy", "run deploy version=$1"),
        ("uptime", "cmd $1 -- uptime"),
    ];
    let named = named.map(|(name, text)| (name.to_owned(), text.to_owned()));
    Aliases::new(&named.into(), |word| find(word).is_some()).unwrap()
}

fn said(line: &str) -> Result<Said, CommandError> {
    read(line, &aliases(), ["deploy", "web-upgrade"].into_iter())
}

fn command(line: &str) -> Command {
    said(line).unwrap().command
}

fn wrong(line: &str) -> String {
    said(line).unwrap_err().to_string()
}

#[test]
fn a_scenario_with_its_parameters() {
    let Command::Run(run) = command(
        "run web-upgrade version=1.4.2 url=https://x/?a=b --on 'role=web and zone=gva2' --batch=25% --dry-run",
    ) else {
        panic!("a run")
    };
    assert_eq!(run.name, "web-upgrade");
    assert_eq!(run.params["version"], "1.4.2");
    assert_eq!(run.params["url"], "https://x/?a=b");
    assert_eq!(run.on.as_deref(), Some("role=web and zone=gva2"));
    assert_eq!(run.batch.as_deref(), Some("25%"));
    assert!(run.dry_run && !run.yes);
    // Its own name will do, and so will an alias.
    assert_eq!(
        command("web-upgrade version=1"),
        command("run web-upgrade version=1")
    );
    assert_eq!(command("Deploy 1.4.2"), command("run deploy version=1.4.2"));
    assert_eq!(
        said("deploy 1.4.2").unwrap().alias.as_deref(),
        Some("deploy")
    );
    let Command::Run(run) = command("deploy '1 --on role=db k=v'") else {
        panic!("a run")
    };
    assert_eq!(run.params["version"], "1 --on role=db k=v");
    assert_eq!(run.on, None);
    assert_eq!(run.params.len(), 1);
}

#[test]
fn a_command_on_nodes_is_taken_as_it_is() {
    let on = |line: &str| match command(line) {
        Command::OnNodes(on) => on,
        other => panic!("{other:?}"),
    };
    let plain = on("cmd role=web and zone=gva2 -- nginx -v --yes a=b");
    assert_eq!(plain.predicate, "role=web and zone=gva2");
    assert_eq!(plain.argv, ["nginx", "-v", "--yes", "a=b"]);
    assert!(!plain.yes);
    assert_eq!(
        on("cmd 'role=web and zone=gva2' -- x").predicate,
        "role=web and zone=gva2"
    );
    assert_eq!(
        on("cmd os = 'Debian 12' or a=b -- x").predicate,
        "os = 'Debian 12' or a=b"
    );
    assert!(on("cmd * --yes -- sh -c 'a; b'").yes);
    assert_eq!(on("cmd * -- sh -c 'a; b'").argv, ["sh", "-c", "a; b"]);
    assert_eq!(
        on("uptime 'role=web -- rm -rf /'").predicate,
        "role=web -- rm -rf /"
    );
    assert_eq!(on("uptime 'role=web -- rm -rf /'").argv, ["uptime"]);
}

#[test]
fn the_small_ones() {
    assert_eq!(command("yes"), Command::Yes(None));
    assert_eq!(command("yes 8k2d"), Command::Yes(Some("8k2d".into())));
    assert_eq!(command("ping"), Command::Ping(None));
    assert_eq!(
        command("ping role=web or role=db"),
        Command::Ping(Some("role=web or role=db".into()))
    );
    assert_eq!(
        command("retry 8k2d failed"),
        Command::Retry {
            run: "8k2d".into(),
            which: Again::Failed
        }
    );
    assert_eq!(
        command("answer 8k2d go on"),
        Command::Answer {
            run: "8k2d".into(),
            answer: "go on".into()
        }
    );
    assert_eq!(
        command("silence 31 2h"),
        Command::Silence {
            alarm: "31".into(),
            time: Span::from_secs(7200)
        }
    );
    assert_eq!(
        command("freeze the database burns"),
        Command::Freeze("the database burns".into())
    );
    assert_eq!(command("help"), Command::Help(None));
    let said = said("cancel 8k2d --code 123456").unwrap();
    assert_eq!(said.code.as_deref(), Some("123456"));
    for verb in VERBS {
        assert!(find(verb.name).is_some());
    }
}

#[test]
fn mistakes_say_how_it_is_written() {
    assert_eq!(
        wrong("rnu x"),
        "there is no command `rnu`; did you mean `run`?"
    );
    assert_eq!(
        wrong("deplyo 1"),
        "there is no command `deplyo`; did you mean `deploy`?"
    );
    assert_eq!(
        wrong("xyzzy"),
        "there is no command `xyzzy`; `help` says what there is"
    );
    assert_eq!(
        wrong("run x --onn y"),
        "run has no `--onn`; did you mean `--on`?"
    );
    assert_eq!(
        wrong("run x --on"),
        "`--on` needs a value: run NAME [k=v ...] [--on PREDICATE] [--batch N] [--dry-run]"
    );
    assert!(wrong("run x 1.4.2").starts_with("`1.4.2` has no name, as in version=1.4.2"));
    assert!(wrong("run x a=1 a=2").starts_with("`a` is given twice"));
    assert!(wrong("cmd role=web uptime").starts_with("a ` -- ` belongs between"));
    assert!(wrong("cmd -- uptime").starts_with("it says no nodes"));
    assert!(wrong("cmd * --").starts_with("the command is missing"));
    assert!(wrong("yes 8k2d now").starts_with("`now` is too much"));
    assert_eq!(wrong(""), "what is it? try `help`");
    assert_eq!(wrong("deploy"), "deploy needs version: deploy VERSION");
    assert!(wrong("run “x”").contains("typographic"));
    assert_eq!(said(&"x".repeat(9_000)), Err(CommandError::Long));
}

proptest! {
    #[test]
    fn no_line_panics(line in "\\PC{0,120}") {
        let _ = said(&line);
    }

    #[test]
    fn a_value_of_an_alias_is_never_anything_else(value in "[^\\x00-\\x1f\\x7f-\\x9f]{0,40}") {
        let line = format!("deploy {}", crate::chat::quoted(&value));
        let Command::Run(run) = command(&line) else { panic!("a run") };
        prop_assert_eq!(&run.params["version"], &value);
        prop_assert_eq!(run.params.len(), 1);
        prop_assert!(run.on.is_none() && !run.yes && !run.dry_run);
    }
}
