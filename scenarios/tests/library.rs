//! The stock library: every scenario of it is sound, and its tests hold.

use std::collections::BTreeMap;
use std::path::Path;

use muster_scenarios::bundle::Bundle;
use muster_scenarios::check::check_bundle;
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
