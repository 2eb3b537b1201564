//! `muster scenario show`: of a file, or of a stored scenario.

use std::path::Path;

use muster_protocol::api::{BudgetView, ManifestView, ParamView, ScenarioView, version_shown};
use muster_protocol::names::ScenarioName;
use muster_protocol::text::printable_line;
use muster_scenarios::bundle::SCRIPT;
use muster_scenarios::check::check_bundle;
use muster_scenarios::manifest::{MAIN, RUN};
use serde_json::{Value, json};

use super::load::{Loaded, load};
use super::stored::stored;
use super::{ShowArgs, errors, rendered};
use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::{count, pad, width};

pub(super) async fn run(context: &Context, args: &ShowArgs) -> Result<u8, Failure> {
    match name(&args.what) {
        Some(name) if args.version.is_some() || !Path::new(&args.what).exists() => {
            of_the_library(context, &name, args).await
        }
        _ if args.version.is_some() => Err(Failure::usage(format!(
            "`{}` is a file, and files have no versions",
            printable_line(&args.what)
        ))),
        _ => of_a_file(context, args),
    }
}

fn name(text: &str) -> Option<ScenarioName> {
    text.parse().ok()
}

async fn of_the_library(
    context: &Context,
    name: &ScenarioName,
    args: &ShowArgs,
) -> Result<u8, Failure> {
    let term = &context.term;
    let client = context.client()?;
    if args.files {
        let bundle = super::stored::fetch(&client, name, args.version).await?;
        term.say(&texts(&bundle))?;
        return Ok(0);
    }
    let view = client.scenario(name, args.version).await?;
    if args.json {
        term.json(&view)?;
    } else {
        let about = About::stored(&view);
        term.say(&text(&about, &view.manifest))?;
    }
    Ok(0)
}

fn of_a_file(context: &Context, args: &ShowArgs) -> Result<u8, Failure> {
    let term = &context.term;
    let loaded = load(Path::new(&args.what))?;
    if args.files {
        term.say(&texts(&loaded.bundle))?;
        return Ok(0);
    }
    let manifest = match check_bundle(&loaded.file, &loaded.bundle) {
        Ok(manifest) => manifest.view(),
        Err(faults) if args.json => {
            term.json(&json!({"name": loaded.name, "file": loaded.file, "errors": faults}))?;
            return Ok(NOT_ALL);
        }
        Err(faults) => {
            term.say(&rendered(&faults, term.out))?;
            term.line(&errors(faults.len()))?;
            return Ok(NOT_ALL);
        }
    };
    if args.json {
        term.json(&as_json(&loaded, &manifest)?)?;
    } else {
        term.say(&text(&About::file(&loaded), &manifest))?;
    }
    Ok(0)
}

/// What is known beside what the scenario says of itself.
struct About {
    name: String,
    /// Who stored it, and when.
    stored: Option<String>,
    bundle: String,
    files: usize,
    bytes: u64,
}

impl About {
    fn file(loaded: &Loaded) -> Self {
        let bundle = &loaded.bundle;
        let bytes = bundle.script().len() + bundle.files().values().map(Vec::len).sum::<usize>();
        Self {
            name: loaded.name.clone(),
            stored: None,
            bundle: bundle.hash().to_string(),
            files: bundle.files().len() + 1,
            bytes: bytes as u64,
        }
    }

    fn stored(view: &ScenarioView) -> Self {
        let version = &view.version;
        let mut said = stored(version, crate::verbs::now());
        if version.version != view.newest && !version.is_stock() {
            said.push_str(&format!("; the newest is v{}", view.newest));
        }
        Self {
            name: format!("{} {}", version.name, version_shown(version.version)),
            stored: Some(said),
            bundle: version
                .bundle
                .map(|hash| hash.to_string())
                .unwrap_or_default(),
            files: view.files.len(),
            bytes: view.files.iter().map(|file| file.bytes).sum(),
        }
    }
}

/// All texts of a bundle, each under its path.
fn texts(bundle: &muster_scenarios::bundle::Bundle) -> String {
    let script = (SCRIPT, bundle.script().as_bytes());
    let files = bundle.files().iter();
    let files = files.map(|(path, data)| (path.as_str(), data.as_slice()));
    let mut out = String::new();
    for (path, data) in std::iter::once(script).chain(files) {
        if !bundle.files().is_empty() {
            out.push_str(&format!("==> {path} <==\n"));
        }
        match std::str::from_utf8(data) {
            Ok(text) => text.lines().for_each(|line| {
                out.push_str(&printable_line(line));
                out.push('\n');
            }),
            Err(_) => out.push_str(&format!("{} that are no text\n", count(data.len(), "byte"))),
        }
    }
    out
}

/// A value as people write it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn budget(budget: &BudgetView) -> String {
    match &budget.by {
        None => budget.most.to_string(),
        Some(label) => format!("{} of each {label}", budget.most),
    }
}

/// What a parameter is when it is not given.
fn absent(param: &ParamView) -> String {
    match (&param.default, param.required) {
        (Some(default), _) => format!("else {}", plain(default)),
        (None, true) => "must be given".to_owned(),
        (None, false) => "may be left out".to_owned(),
    }
}

/// The rules that are set, each with its value.
fn rules(manifest: &ManifestView) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if manifest.confirm {
        all.push(("confirm", "a person sees the plan first".to_owned()));
    }
    if manifest.approvals > 0 {
        let others = count(manifest.approvals as usize, "other");
        all.push(("approvals", format!("{others} must agree")));
    }
    if let Some(batch) = manifest.batch {
        all.push(("batch", batch.to_string()));
    }
    for one in &manifest.max_failures {
        all.push(("max_failures", budget(one)));
    }
    if let Some(timeout) = manifest.timeout {
        all.push(("timeout", timeout.to_string()));
    }
    if manifest.retry > 0 {
        all.push(("retry", manifest.retry.to_string()));
    }
    all.extend(manifest.locks.iter().map(|lock| ("lock", lock.clone())));
    let windows = manifest.windows.iter();
    all.extend(windows.map(|window| ("window", format!("{window} (UTC)"))));
    let idempotent = manifest.idempotent.iter();
    all.extend(idempotent.map(|name| ("idempotent", name.clone())));
    if manifest.allow_check {
        all.push(("allow_check", "a dry run is meaningful".to_owned()));
    }
    all
}

/// Rows with their columns below each other, under a heading.
fn block(out: &mut String, heading: &str, rows: &[Vec<String>]) {
    if rows.is_empty() {
        return;
    }
    out.push_str(heading);
    out.push('\n');
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|i| {
            let cells = rows.iter().filter_map(|row| row.get(i));
            cells.map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, columns)| pad(cell, *columns));
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(&format!("  {}\n", line.trim_end()));
    }
}

fn text(about: &About, manifest: &ManifestView) -> String {
    let clean = |text: &str| printable_line(text);
    let mut out = format!("{}  {}\n", clean(&about.name), clean(&manifest.about));
    if let Some(stored) = &about.stored {
        out.push_str(&format!("{}\n", clean(stored)));
    }
    let hash = clean(&about.bundle);
    out.push_str(&format!(
        "bundle {}, {}, {}\n",
        hash.get(..12).unwrap_or(&hash),
        count(about.files, "file"),
        count(usize::try_from(about.bytes).unwrap_or(usize::MAX), "byte"),
    ));
    let params: Vec<Vec<String>> = manifest
        .params
        .iter()
        .map(|param| {
            let mut rule = param.rule.clone();
            if param.secret {
                rule.push_str(", secret");
            }
            let help = param.help.as_deref().unwrap_or_default();
            [&param.name, &rule, &absent(param), help]
                .map(clean)
                .to_vec()
        })
        .collect();
    block(&mut out, "parameters", &params);
    // The target first, as everywhere.
    let mut sets: Vec<(&String, &Option<String>)> = manifest.sets.iter().collect();
    sets.sort_by_key(|(name, _)| name.as_str() != "targets");
    let sets: Vec<Vec<String>> = sets
        .into_iter()
        .map(|(name, predicate)| {
            let predicate = predicate.as_deref().unwrap_or("given by whoever runs it");
            vec![clean(name), clean(predicate)]
        })
        .collect();
    block(&mut out, "nodes", &sets);
    let rules: Vec<Vec<String>> = rules(manifest)
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), clean(&value)])
        .collect();
    block(&mut out, "rules", &rules);
    let functions: Vec<Vec<String>> = manifest
        .functions
        .iter()
        .filter(|function| !manifest.tests.contains(&function.name))
        .map(|function| {
            let head = format!("{}({})", function.name, function.params.join(", "));
            let entry = match (manifest.runs.as_str(), function.name.as_str()) {
                (MAIN, MAIN) => "runs once, in the broker",
                (RUN, RUN) => "runs on each node",
                _ => "",
            };
            let doc = function.doc.as_deref().unwrap_or(entry);
            vec![clean(&head), clean(doc)]
        })
        .collect();
    block(&mut out, "functions", &functions);
    let tests: Vec<Vec<String>> = manifest
        .tests
        .iter()
        .map(|test| vec![clean(test)])
        .collect();
    block(&mut out, "tests", &tests);
    out
}

fn as_json(loaded: &Loaded, manifest: &ManifestView) -> Result<Value, Failure> {
    let mut all = serde_json::to_value(manifest)
        .map_err(|e| Failure::new(NOT_ALL, format!("this has no JSON form: {e}")))?;
    let files: Vec<String> = loaded
        .bundle
        .files()
        .keys()
        .map(ToString::to_string)
        .collect();
    let more = [
        ("name", json!(loaded.name)),
        ("file", json!(loaded.file)),
        ("bundle", json!(loaded.bundle.hash().to_string())),
        ("files", json!(files)),
    ];
    if let Value::Object(all) = &mut all {
        all.extend(more.map(|(name, value)| (name.to_owned(), value)));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_scenarios::bundle::Bundle;
    use std::collections::BTreeMap;

    const SCRIPT: &str = r#"
scenario("Upgrade the web front end");
param("version", #{ matches: "^[0-9.]+$", help: "package version" });
param("batch", #{ type: "percent", default: "25%" });
param("token", #{ secret: true, required: false });
target("role=web");
also("balancers", "role=lb");
confirm();
approvals(1);
max_failures("10%");
max_failures(1, #{ by: "rack" });
window("* 22-23 * * *");
lock("web");

/// Installs it.
fn upgrade(p) { package("webapp").version(p.version); }
fn main(p) { on(targets(), "upgrade", p); }
fn test_it() { assert(true); }
"#;

    fn loaded() -> (Loaded, ManifestView) {
        let bundle = Bundle::new(SCRIPT.to_owned(), BTreeMap::new()).expect("a bundle");
        let manifest = check_bundle("web.rhai", &bundle)
            .expect("it is sound")
            .view();
        let loaded = Loaded {
            name: "web".to_owned(),
            file: "web.rhai".to_owned(),
            bundle,
        };
        (loaded, manifest)
    }

    #[test]
    fn everything_that_is_declared_is_shown() {
        let (loaded, manifest) = loaded();
        insta::assert_snapshot!(text(&About::file(&loaded), &manifest), @r"
        web  Upgrade the web front end
        bundle c0db40cbf910, 1 file, 533 bytes
        parameters
          version  string, matches ^[0-9.]+$  must be given    package version
          batch    percent                    else 25%
          token    string, secret             may be left out
        nodes
          targets    role=web
          balancers  role=lb
        rules
          confirm       a person sees the plan first
          approvals     1 other must agree
          max_failures  10%
          max_failures  1 of each rack
          lock          web
          window        * 22-23 * * * (UTC)
        functions
          main(p)     runs once, in the broker
          upgrade(p)  Installs it.
        tests
          test_it
        ");
    }

    #[test]
    fn the_same_as_json() {
        let (loaded, manifest) = loaded();
        let mut shown = as_json(&loaded, &manifest).expect("it has a form");
        shown.sort_all_objects();
        let shown = serde_json::to_string_pretty(&shown);
        insta::assert_snapshot!(shown.expect("it has a form"), @r#"
        {
          "about": "Upgrade the web front end",
          "allow_check": false,
          "approvals": 1,
          "batch": null,
          "bundle": "c0db40cbf91083036b10a36805bf879cb9098f1ecfb71f57d9df35547eaa45da",
          "confirm": true,
          "file": "web.rhai",
          "files": [],
          "functions": [
            {
              "doc": null,
              "name": "main",
              "params": [
                "p"
              ]
            },
            {
              "doc": null,
              "name": "test_it",
              "params": []
            },
            {
              "doc": "Installs it.",
              "name": "upgrade",
              "params": [
                "p"
              ]
            }
          ],
          "idempotent": [],
          "locks": [
            "web"
          ],
          "max_failures": [
            {
              "by": null,
              "most": "10%"
            },
            {
              "by": "rack",
              "most": "1"
            }
          ],
          "name": "web",
          "params": [
            {
              "default": null,
              "help": "package version",
              "name": "version",
              "required": true,
              "rule": "string, matches ^[0-9.]+$",
              "secret": false,
              "type": "string"
            },
            {
              "default": "25%",
              "help": null,
              "name": "batch",
              "required": false,
              "rule": "percent",
              "secret": false,
              "type": "percent"
            },
            {
              "default": null,
              "help": null,
              "name": "token",
              "required": false,
              "rule": "string",
              "secret": true,
              "type": "string"
            }
          ],
          "retry": 0,
          "runs": "main",
          "sets": {
            "balancers": "role=lb",
            "targets": "role=web"
          },
          "tests": [
            "test_it"
          ],
          "timeout": null,
          "windows": [
            "* 22-23 * * *"
          ]
        }
        "#);
    }
}
