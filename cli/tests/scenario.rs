//! `muster scenario`, as people and programs call it: what is said, and the
//! exit code. No broker is there, and none is looked for.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs it in a directory; exit code, standard output, standard error.
fn muster(place: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_muster"))
        .arg("scenario")
        .args(args)
        .current_dir(place)
        .env("HOME", place)
        .env("XDG_RUNTIME_DIR", place)
        .env_remove("MUSTER_URL")
        .output()
        .expect("the program runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code().expect("a code"),
        text(output.stdout),
        text(output.stderr),
    )
}

fn place(files: &[(&str, &str)]) -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a directory");
    for (path, text) in files {
        let path = place.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("it can be made");
        std::fs::write(path, text).expect("it can be written");
    }
    place
}

fn place_with(common: &str) -> tempfile::TempDir {
    place(&[("common.rhai", common)])
}

const GOOD: &str = r#"scenario("Say whose it is");
param("owner");
fn run(p) { file("/etc/motd").content(p.owner); }
fn test_it_is_said() { fake("web-01"); assert(play(#{ owner: "ana" }).did("web-01", "file /etc/motd *")); }
fn test_nothing_else() { fake("web-01"); assert_eq(play(#{ owner: "ana" }).did("web-01").len(), 1); }
"#;

const BAD: &str = r#"scenario("Upgrade");
also("balancers", "role=lb");
fn upgrade(p) {
    pakage("webapp").latest();
}
fn main(p) {
	on(nodes("balancers"), "upgrde");
}
"#;

#[test]
fn check_shows_every_mistake_in_its_place() {
    let place = place(&[("good.rhai", GOOD), ("bad.rhai", BAD)]);
    let (code, out, err) = muster(place.path(), &["check", "good.rhai"]);
    assert_eq!((code, err.as_str()), (0, ""));
    insta::assert_snapshot!(out, @r"
    good.rhai: no mistakes, 2 tests
    ");
    let (code, out, err) = muster(place.path(), &["check", "good.rhai", "bad.rhai"]);
    assert_eq!((code, err.as_str()), (1, ""));
    insta::assert_snapshot!(out, @r#"
    good.rhai: no mistakes, 2 tests
    error: bad.rhai:4:5: unknown function `pakage`
        4 |     pakage("webapp").latest();
          |     ^^^^^^ did you mean `package`?
    error: bad.rhai:7:25: `on` names a function `upgrde`, which this scenario does not define
        7 |  on(nodes("balancers"), "upgrde");
          |                         ^^^^^^^^ did you mean `upgrade`?
    2 errors
    "#);

    let (code, out, _) = muster(place.path(), &["check", "--json", "good.rhai", "bad.rhai"]);
    assert_eq!(code, 1);
    let all: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(all[0]["ok"], true);
    assert_eq!(all[1]["ok"], false);
    assert_eq!(all[1]["errors"][0]["at"]["line"], 4);
    assert_eq!(all[1]["errors"][0]["hint"], "did you mean `package`?");
}

#[test]
fn what_cannot_be_read_is_of_the_usage() {
    let place = place(&[("empty/readme", "x")]);
    for (file, said) in [
        ("nowhere.rhai", "nowhere.rhai: it cannot be read"),
        (
            "empty",
            "empty: there is no `scenario.rhai` in this directory",
        ),
    ] {
        for verb in ["check", "show", "test"] {
            let (code, out, err) = muster(place.path(), &[verb, file]);
            assert_eq!((code, out.as_str()), (2, ""), "{err}");
            assert!(err.contains(said), "{err}");
        }
    }
    assert_eq!(muster(place.path(), &["check"]).0, 2);
}

#[test]
fn a_hostile_file_shows_no_escape_sequence() {
    let text = "scenario(\"x\"); fn run(p) { \u{1b}]0;owned\u{7}\u{1b}[2J\u{202e} }";
    let place = place(&[("x.rhai", text), ("big.rhai", &"x".repeat(300_000))]);
    let (code, out, err) = muster(place.path(), &["check", "x.rhai"]);
    assert_eq!(code, 1, "{err}");
    assert!(
        !out.contains('\u{1b}') && !out.contains('\u{202e}'),
        "{out:?}"
    );
    let (code, _, err) = muster(place.path(), &["check", "big.rhai"]);
    assert_eq!(code, 2);
    assert!(err.contains("at most 262144 are allowed"), "{err}");
}

#[test]
fn test_runs_the_tests_of_a_scenario() {
    let wrong = GOOD.replace(".len(), 1)", ".len(), 2)");
    let files = [
        ("good/scenario.rhai", GOOD),
        ("wrong.rhai", wrong.as_str()),
        ("none.rhai", "scenario(\"x\"); fn run(p) {}"),
        ("bad.rhai", BAD),
    ];
    let place = place(&files);
    let (code, out, _) = muster(place.path(), &["test", "good"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!(out, @r"
    well    test_it_is_said
    well    test_nothing_else
    2 tests, all well
    ");
    let (code, out, _) = muster(place.path(), &["test", "wrong.rhai"]);
    assert_eq!(code, 1);
    insta::assert_snapshot!(out, @r#"
    well    test_it_is_said
    failed  test_nothing_else
    error: wrong.rhai:5:42: these differ: 1 and 2
        5 | fn test_nothing_else() { fake("web-01"); assert_eq(play(#{ owner: "ana" }).did("web-01").len(), 2); }
          |                                          ^^^^^^^^^
    2 tests, 1 failed
    "#);
    let (code, out, _) = muster(place.path(), &["test", "wrong.rhai", "--only", "is_said"]);
    assert_eq!((code, out.lines().last()), (0, Some("1 test, all well")));
    let (code, _, err) = muster(place.path(), &["test", "none.rhai"]);
    assert_eq!(code, 1);
    assert!(err.contains("there is no test"), "{err}");
    let (code, out, _) = muster(place.path(), &["test", "bad.rhai"]);
    assert_eq!((code, out.lines().last()), (1, Some("2 errors")));
    let (code, out, _) = muster(place.path(), &["test", "--json", "wrong.rhai"]);
    assert_eq!(code, 1);
    let all: Value = serde_json::from_str(&out).expect("JSON");
    let ok = all[0]["tests"].as_array().expect("a list").iter();
    let ok: Vec<&Value> = ok.map(|test| &test["ok"]).collect();
    assert_eq!(ok, [true, false]);
    // What several tests say of nodes, and none of them needs.
    let common = GOOD.replace("fake(\"web-01\");", "nodes_of_mine();")
        + "fn nodes_of_mine() { fake(\"web-01\"); reply(\"web-01\", \"fle *\", #{ fails: \"full\" }); }\n";
    let other = place_with(&common);
    let (code, out, _) = muster(other.path(), &["test", "common.rhai"]);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("reply(\"web-01\", \"fle *\") was never needed"),
        "{out}"
    );
    assert_eq!(out.lines().last(), Some("2 tests, 1 error"), "{out}");
    let (code, ..) = muster(other.path(), &["test", "common.rhai", "--only", "is_said"]);
    assert_eq!(code, 0);
    let (_, out, _) = muster(other.path(), &["test", "--json", "common.rhai"]);
    let all: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        all[0]["unneeded"].as_array().map(Vec::len),
        Some(1),
        "{all}"
    );
}

#[test]
fn show_says_what_it_is_for() {
    let place = place(&[("good/scenario.rhai", GOOD), ("bad.rhai", BAD)]);
    let (code, out, _) = muster(place.path(), &["show", "good"]);
    assert_eq!(code, 0);
    assert!(out.starts_with("good  Say whose it is\n"), "{out}");
    let (code, out, _) = muster(place.path(), &["show", "good", "--json"]);
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &shown["params"][0]["name"]), (0, &"owner".into()));
    assert_eq!(muster(place.path(), &["show", "bad.rhai"]).0, 1);
}
