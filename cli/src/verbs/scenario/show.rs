//! `muster scenario show`

use muster_protocol::text::printable_line;
use muster_scenarios::check::check_bundle;
use muster_scenarios::manifest::{Budget, MAIN, Manifest, RUN, Shape};
use muster_scenarios::param::Param;
use serde_json::{Map, Value, json};

use super::load::{Loaded, load};
use super::{ShowArgs, errors, rendered};
use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::{count, pad, width};

pub(super) fn run(context: &Context, args: &ShowArgs) -> Result<u8, Failure> {
    let term = &context.term;
    let loaded = load(&args.file)?;
    let manifest = match check_bundle(&loaded.file, &loaded.bundle) {
        Ok(manifest) => manifest,
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
        term.json(&as_json(&loaded, &manifest))?;
    } else {
        term.say(&text(&loaded, &manifest))?;
    }
    Ok(0)
}

/// A value as people write it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn budget(budget: &Budget) -> String {
    match &budget.by {
        None => budget.amount.to_string(),
        Some(label) => format!("{} of each {label}", budget.amount),
    }
}

/// What a parameter is when it is not given.
fn absent(param: &Param) -> String {
    match (&param.default, param.required) {
        (Some(default), _) => format!("else {}", plain(default.json())),
        (None, true) => "must be given".to_owned(),
        (None, false) => "may be left out".to_owned(),
    }
}

/// The rules that are set, each with its value.
fn rules(manifest: &Manifest) -> Vec<(&'static str, String)> {
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
    for one in &manifest.budgets {
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
    all.extend(idempotent.map(|name| ("idempotent", name.to_string())));
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

fn text(loaded: &Loaded, manifest: &Manifest) -> String {
    let clean = |text: &str| printable_line(text);
    let mut out = format!("{}  {}\n", loaded.name, clean(&manifest.about));
    let bundle = &loaded.bundle;
    let bytes = bundle.script().len() + bundle.files().values().map(Vec::len).sum::<usize>();
    let hash = bundle.hash().to_string();
    out.push_str(&format!(
        "bundle {}, {}, {}\n",
        hash.get(..12).unwrap_or(&hash),
        count(bundle.files().len() + 1, "file"),
        count(bytes, "byte"),
    ));
    let params: Vec<Vec<String>> = manifest
        .params
        .iter()
        .map(|param| {
            let mut rule = param.rule();
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
    let sets: Vec<Vec<String>> = manifest
        .sets()
        .map(|(name, predicate)| {
            let predicate = predicate.map_or("given by whoever runs it", |p| p.text());
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
        .filter(|function| manifest.tests().all(|test| test != function.name))
        .map(|function| {
            let head = format!("{}({})", function.name, function.params.join(", "));
            let entry = match (manifest.shape, function.name.as_str()) {
                (Shape::Main, MAIN) => "runs once, in the broker",
                (Shape::Run, RUN) => "runs on each node",
                _ => "",
            };
            let doc = function.doc.as_deref().unwrap_or(entry);
            vec![clean(&head), clean(doc)]
        })
        .collect();
    block(&mut out, "functions", &functions);
    let tests: Vec<Vec<String>> = manifest.tests().map(|test| vec![clean(test)]).collect();
    block(&mut out, "tests", &tests);
    out
}

fn as_json(loaded: &Loaded, manifest: &Manifest) -> Value {
    let params: Vec<Value> = manifest
        .params
        .iter()
        .map(|param| {
            json!({
                "name": param.name,
                "type": param.kind.as_str(),
                "rule": param.rule(),
                "required": param.required,
                "default": param.default.as_ref().map(|value| value.json()),
                "secret": param.secret,
                "help": param.help,
            })
        })
        .collect();
    let sets: Map<String, Value> = manifest
        .sets()
        .map(|(name, predicate)| (name.to_owned(), json!(predicate.map(|p| p.text()))))
        .collect();
    let functions: Vec<Value> = manifest
        .functions
        .iter()
        .map(|f| json!({"name": f.name, "params": f.params, "doc": f.doc}))
        .collect();
    let budgets: Vec<Value> = manifest
        .budgets
        .iter()
        .map(|b| json!({"most": b.amount.to_string(), "by": b.by}))
        .collect();
    json!({
        "name": loaded.name,
        "file": loaded.file,
        "about": manifest.about,
        "bundle": loaded.bundle.hash().to_string(),
        "files": loaded.bundle.files().keys().map(ToString::to_string).collect::<Vec<_>>(),
        "runs": match manifest.shape { Shape::Main => MAIN, Shape::Run => RUN },
        "params": params,
        "sets": sets,
        "confirm": manifest.confirm,
        "approvals": manifest.approvals,
        "batch": manifest.batch.map(|batch| batch.to_string()),
        "max_failures": budgets,
        "timeout": manifest.timeout,
        "retry": manifest.retry,
        "locks": manifest.locks,
        "windows": manifest.windows,
        "idempotent": manifest.idempotent,
        "allow_check": manifest.allow_check,
        "functions": functions,
        "tests": manifest.tests().collect::<Vec<_>>(),
    })
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

    fn loaded() -> (Loaded, Manifest) {
        let bundle = Bundle::new(SCRIPT.to_owned(), BTreeMap::new()).expect("a bundle");
        let manifest = check_bundle("web.rhai", &bundle).expect("it is sound");
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
        insta::assert_snapshot!(text(&loaded, &manifest), @r"
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
        let shown = serde_json::to_string_pretty(&as_json(&loaded, &manifest));
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
