//! The documentation holds what it says: commands parse, links lead
//! somewhere, words and numbers are those of the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use muster_broker::authz::{Action, FixedRoles};
use muster_broker::events::kinds::KINDS;
use muster_protocol::api::Role;
use muster_protocol::problem::Kind;
use muster_protocol::run::Outcome;
use muster_tests::bin;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every page: what is at the top, and below `docs`.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    for dir in [root(), root().join("docs")] {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|e| e == "md") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    assert!(paths.iter().any(|p| p.ends_with("README.md")));
    paths.into_iter().map(|p| (p.clone(), read(&p))).collect()
}

/// Splits as a shell does, as far as the documentation goes: quotes, and an
/// end at a pipe, a redirection or a comment.
fn words(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '|' | '>' | '<' | '&' | ';') => break,
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => all.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "a quote is never closed: {line}");
    all.extend(word);
    all
}

/// The commands behind a `$ `, with where they are.
fn commands() -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    for (path, text) in pages() {
        for (number, line) in text.lines().enumerate() {
            let Some(command) = line.trim_start().strip_prefix("$ ") else {
                continue;
            };
            let mut words = words(command);
            while words
                .first()
                .is_some_and(|w| w == "sudo" || (w.contains('=') && !w.starts_with('-')))
            {
                words.remove(0);
            }
            if words
                .first()
                .is_some_and(|w| w == "muster" || w == "muster-agent" || w == "muster-bot")
            {
                all.push((format!("{}:{}", path.display(), number + 1), words));
            }
        }
    }
    all
}

fn help(program: &str, verb: &[&str]) -> String {
    let output = Command::new(bin(program))
        .args(verb)
        .arg("--help")
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{program} {verb:?} --help");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .filter(|word| *word != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_in_the_documentation_parses() {
    let commands = commands();
    assert!(commands.len() > 40, "only {} found", commands.len());
    let mut wrong = Vec::new();
    for (place, words) in commands {
        // clap reads from the left: what is before `--help` must be right.
        let before = words.iter().skip(1).take_while(|w| *w != "--");
        let output = Command::new(bin(&words[0]))
            .args(before)
            .arg("--help")
            .env_remove("MUSTER_ENROLL_TOKEN")
            .output()
            .expect("the program runs");
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            wrong.push(format!("{place}: {}\n{said}", words.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_verb_is_in_the_documentation() {
    let text: String = pages().into_iter().map(|(_, text)| text).collect();
    let mut missing = Vec::new();
    for program in ["muster", "muster-agent"] {
        let verbs = subcommands(&help(program, &[]));
        assert!(verbs.len() >= 3, "{verbs:?}");
        for verb in verbs {
            let inner = subcommands(&help(program, &[&verb]));
            let all = inner
                .iter()
                .map(|inner| format!("{program} {verb} {inner}"));
            for full in all.chain(inner.is_empty().then(|| format!("{program} {verb}"))) {
                if full != "muster runs list" && !text.contains(&format!("`{full}")) {
                    missing.push(full);
                }
            }
        }
    }
    assert!(missing.is_empty(), "not in the documentation: {missing:?}");
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// Text without what is code.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    });
    let mut out = String::new();
    for line in lines {
        for (i, part) in line.split('`').enumerate() {
            out.push_str(if i % 2 == 0 { part } else { "x" });
        }
        out.push('\n');
    }
    out
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, text) in pages() {
        for link in prose(&text).split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            if target.starts_with("http") || target.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => path.parent().expect("a directory").join(file),
            };
            if !file.exists() {
                wrong.push(format!("{}: no file {target}", path.display()));
            } else if !heading.is_empty()
                && !read(&file)
                    .lines()
                    .any(|l| l.starts_with('#') && anchor(l) == heading)
            {
                wrong.push(format!("{}: no heading {target}", path.display()));
            }
        }
    }
    assert!(seen > 10, "only {seen} links found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The rows of the first table below a heading, without its head; code marks
/// are taken off.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let text = read(&root().join("docs").join(page));
    let rows: Vec<Vec<String>> = text
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().trim_matches('`').to_owned())
                .collect()
        })
        .collect();
    assert!(!rows.is_empty(), "{page} has no table below {heading}");
    rows
}

#[test]
fn outcomes_are_those_of_the_code() {
    let rows = table("cli.md", "## Outcomes");
    let words: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(words, Outcome::ALL.map(Outcome::as_str));
    // And those that count against the budget.
    let text = read(&root().join("docs/cli.md"));
    let sentence = text
        .lines()
        .find(|line| line.starts_with("`--max-failures` counts"))
        .expect("the sentence")
        .split(';')
        .next()
        .expect("its first half");
    for outcome in Outcome::ALL {
        assert_eq!(
            sentence.contains(&format!("`{outcome}`")),
            outcome.is_failure(),
            "{outcome}"
        );
    }
}

#[test]
fn problem_kinds_and_exit_codes_are_those_of_the_code() {
    let written: Vec<(String, u16, u8)> = table("cli.md", "## Problem kinds")
        .into_iter()
        .map(|row| {
            (
                row[0].clone(),
                row[1].parse().expect("a status"),
                row[2].parse().expect("a code"),
            )
        })
        .collect();
    let real = Kind::ALL.map(|k| (k.as_str().to_owned(), k.status(), k.exit_code()));
    assert_eq!(written, real);

    let codes: BTreeSet<u8> = table("cli.md", "## Exit codes")
        .into_iter()
        .map(|row| row[0].parse().expect("a code"))
        .collect();
    assert_eq!(codes, (0..=6).collect());
    assert!(Kind::ALL.iter().all(|k| codes.contains(&k.exit_code())));
    let help = help("muster", &[]);
    for code in codes {
        assert!(help.contains(&format!(" {code} ")), "--help lacks {code}");
    }
}

#[test]
fn roles_may_what_the_table_says() {
    let written: BTreeMap<String, Vec<bool>> = table("cli.md", "## Roles")
        .into_iter()
        .map(|row| {
            (
                row[0].clone(),
                row[1..].iter().map(|c| c == "yes").collect(),
            )
        })
        .collect();
    let real: BTreeMap<String, Vec<bool>> = Action::examples()
        .iter()
        .map(|action| {
            let may = Role::ALL.map(|role| FixedRoles::may(role, action));
            (action.what().to_owned(), may.to_vec())
        })
        .collect();
    assert_eq!(written, real);
}

#[test]
fn kinds_of_events_are_those_of_the_code() {
    let written: Vec<(String, String)> = table("webhooks.md", "## Kinds")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let real: Vec<(String, String)> = KINDS
        .iter()
        .map(|(kind, what)| ((*kind).to_owned(), (*what).to_owned()))
        .collect();
    assert_eq!(written, real);
    // And each that the broker says is one of them.
    let mut seen = BTreeSet::new();
    let mut folders = vec![root().join("broker/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && !name.contains("test") {
                let text = read(&path);
                // Behind `emit(`, `tell(` and `kind: ` are kinds.
                for mark in ["emit(", "tell(", "tell_life(", "kind: ", "kind = "] {
                    for part in text.split(mark).skip(1) {
                        let part = part.trim_start();
                        let Some(kind) = part.strip_prefix('"').and_then(|p| p.split('"').next())
                        else {
                            continue;
                        };
                        let plain = |c: char| c.is_ascii_lowercase() || c == '.' || c == '-';
                        if kind.contains('.') && kind.chars().all(plain) {
                            seen.insert(kind.to_owned());
                        }
                    }
                }
            }
        }
    }
    assert!(seen.len() > 20, "{seen:?}");
    let known: BTreeSet<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
    let missing: Vec<&String> = seen
        .iter()
        .filter(|k| !known.contains(k.as_str()))
        .collect();
    assert!(missing.is_empty(), "no documented kinds: {missing:?}");
}

/// The keys of TOML, dotted.
fn keys(toml: &str) -> Vec<String> {
    let mut section = String::new();
    let mut all = Vec::new();
    for line in toml.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.split_once(" = ")
            && !line.starts_with('#')
        {
            all.push(format!("{section}{key}"));
        }
    }
    all
}

#[test]
fn every_setting_is_in_operations() {
    let text = read(&root().join("docs/operations.md"));
    for file in ["muster-broker.toml", "muster-agent.toml"] {
        // That these hold every setting is tested beside the settings.
        let keys = keys(&read(&root().join("packaging").join(file)));
        assert!(keys.len() > 10, "{keys:?}");
        for key in keys {
            assert!(text.contains(&format!("| `{key}` |")), "{file}: {key}");
        }
    }
}

#[test]
fn every_command_of_the_chat_is_in_its_page() {
    let text = read(&root().join("docs/chat.md"));
    for verb in muster_protocol::chat::command::VERBS {
        let name = format!("`!{}", verb.name);
        assert!(text.contains(&name), "docs/chat.md has no {name}");
    }
    for key in keys(&read(&root().join("packaging/muster-bot.toml"))) {
        let word = key.rsplit('.').next().unwrap_or(&key);
        assert!(
            text.contains(&format!("`{word}`")) || text.contains(&format!(".{word}`")),
            "docs/chat.md has no {key}"
        );
    }
}
