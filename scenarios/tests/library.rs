//! The stock library: every scenario of it is sound, and its tests hold.

use std::collections::BTreeMap;
use std::path::Path;

use muster_scenarios::bundle::Bundle;
use muster_scenarios::check::check_bundle;
use muster_scenarios::param::Kind;
use muster_scenarios::trial::Trial;

/// Name and text of each.
fn library() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("library");
    let mut all: Vec<(String, String)> = std::fs::read_dir(root)
        .expect("the library")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy();
            let text = std::fs::read_to_string(&path).expect("a text");
            (name.into_owned(), text)
        })
        .collect();
    all.sort();
    assert!(all.len() >= 12);
    all
}

#[test]
fn every_scenario_is_sound_and_its_tests_hold() {
    let mut said = String::new();
    for (name, text) in library() {
        let file = format!("{name}.rhai");
        let bundle = Bundle::new(text, BTreeMap::new()).expect("a bundle");
        let manifest = match check_bundle(&file, &bundle) {
            Ok(manifest) => manifest,
            Err(faults) => {
                said.extend(faults.iter().map(|fault| format!("{fault}\n")));
                continue;
            }
        };
        let trial = Trial::new(&file, &bundle, manifest).expect("it can be read");
        if trial.tests().is_empty() {
            said.push_str(&format!("{file} has no test\n"));
        }
        for test in trial.tests() {
            if let Err(fault) = trial.run(test) {
                said.push_str(&format!("{test}: {fault}\n"));
            }
        }
        said.extend(trial.unneeded().iter().map(|fault| format!("{fault}\n")));
    }
    assert!(said.is_empty(), "{said}");
}

#[test]
fn the_documentation_lists_all_of_them() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scenarios.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let listed: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != "## The stock library")
        .filter(|line| line.starts_with("| ["))
        .collect();
    let wanted: Vec<String> = library()
        .into_iter()
        .map(|(name, text)| {
            let bundle = Bundle::new(text, BTreeMap::new()).expect("a bundle");
            let manifest = check_bundle(&name, &bundle).expect("it is sound");
            let params = manifest.params.iter();
            let params: Vec<String> = params.map(|p| format!("`{}`", p.name)).collect();
            format!(
                "| [{name}](../scenarios/library/{name}.rhai) | {} | {} |",
                manifest.about,
                params.join(", ")
            )
        })
        .collect();
    assert_eq!(listed, wanted, "{}", wanted.join("\n"));
}

/// What the page of the library says of one scenario.
fn described(name: &str, text: String) -> String {
    let bundle = Bundle::new(text, BTreeMap::new()).expect("a bundle");
    let manifest = check_bundle(name, &bundle).expect("it is sound");
    let mut out = format!("## {name}\n\n{}.\n\n", manifest.about);
    let mut call = format!("muster scenario run {name}");
    for param in manifest.params.iter().filter(|p| p.required) {
        let value = match (param.secret, param.kind) {
            (true, _) => "@FILE",
            (false, Kind::List) => "'[\"…\"]'",
            (false, _) => "…",
        };
        call.push_str(&format!(" -p {}={value}", param.name));
    }
    if manifest.target.is_none() {
        call.push_str(" --on PREDICATE");
    }
    out.push_str(&format!("`{call}`\n\n"));
    if !manifest.params.is_empty() {
        out.push_str("| parameter | is | else | what |\n|---|---|---|---|\n");
    }
    for param in &manifest.params {
        let otherwise = match &param.default {
            Some(value) => format!("`{value}`"),
            None if param.required => "required".to_owned(),
            None => String::new(),
        };
        let secret = if param.secret { ", secret" } else { "" };
        // A bar would end the cell.
        let rule = param.rule().replace('|', "\\|");
        let help = param.help.clone().unwrap_or_default().replace('|', "\\|");
        out.push_str(&format!(
            "| `{}` | `{rule}`{secret} | {otherwise} | {help} |\n",
            param.name
        ));
    }
    let sets: Vec<String> = manifest
        .sets()
        .map(|(set, predicate)| match predicate {
            Some(predicate) => format!("{set} `{predicate}`"),
            None => format!("{set} as `--on` says"),
        })
        .collect();
    let mut rules = vec![format!("Nodes: {}.", sets.join(", "))];
    if let Some(batch) = manifest.batch {
        rules.push(format!("{batch} at a time."));
    }
    for budget in &manifest.budgets {
        let by = budget.by.as_ref().map(|label| format!(" of each {label}"));
        let by = by.unwrap_or_default();
        rules.push(match budget.amount.to_string().as_str() {
            "0" => format!("None{by} may fail."),
            amount => format!("At most {amount}{by} may fail."),
        });
    }
    if let Some(timeout) = manifest.timeout {
        rules.push(format!("{timeout} for each step."));
    }
    if manifest.confirm {
        rules.push("Asks before it begins.".to_owned());
    }
    for lock in &manifest.locks {
        rules.push(format!("Holds the lock `{lock}`."));
    }
    if manifest.allow_check {
        rules.push("Can be tried with `--dry-run`.".to_owned());
    }
    let space = if manifest.params.is_empty() { "" } else { "\n" };
    out.push_str(&format!("{space}{}\n\n", rules.join(" ")));
    let own = manifest.functions.iter();
    for function in own.filter(|f| !f.name.starts_with("test_")) {
        if let Some(doc) = &function.doc {
            let doc = doc.split_whitespace().collect::<Vec<_>>().join(" ");
            out.push_str(&format!("* `{}`: {doc}\n", function.name));
        }
    }
    format!("{}\n\n", out.trim_end())
}

/// Each has its part of a page, from its own text.
#[test]
fn the_page_of_the_library_is_that_of_the_scenarios() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/library.md");
    let mut wanted = "# The stock library\n\nScenarios that every cluster has. `muster scenario show NAME --files` prints one; \
         `muster scenario put` stores another one under its name. How to read and write them: [scenarios](scenarios.md).\n\n\
         <!-- This page is written from the scenarios; a test compares it. -->\n\n"
        .to_owned();
    for (name, text) in library() {
        wanted.push_str(&described(&name, text));
    }
    let wanted = format!("{}\n", wanted.trim_end());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, wanted).expect("it can be written");
        return;
    }
    let page = std::fs::read_to_string(path).expect("the page");
    assert_eq!(
        page, wanted,
        "UPDATE_DOCS=1 cargo test -p muster-scenarios --test library writes it"
    );
}
