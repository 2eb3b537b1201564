//! Stored scenarios: list, put, history, rollback, remove.

use muster_client::{Client, ClientError};
use muster_protocol::api::{RollbackScenario, ScenarioStored, ScenarioVersion};
use muster_protocol::names::ScenarioName;
use muster_protocol::problem::Kind;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_scenarios::bundle::Bundle;
use muster_scenarios::check::check_bundle;

use super::load::{Loaded, load};
use super::{HistoryArgs, ListArgs, PutArgs, RemoveArgs, RollbackArgs, errors, rendered};
use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::table::Table;
use crate::ui::time::ago;
use crate::verbs::now;

pub(super) async fn list(context: &Context, args: &ListArgs) -> Result<u8, Failure> {
    let all = context.client()?.scenarios().await?;
    let term = &context.term;
    if args.json {
        term.json(&all)?;
        return Ok(0);
    }
    let now = now();
    let mut table = Table::new(&["NAME", "VERSION", "STORED", "BY", "ABOUT"]);
    for one in &all {
        table.row([
            one.name.to_string().into(),
            number(one).into(),
            one.at.map_or_else(String::new, |at| ago(at, now)).into(),
            one.by.to_string().into(),
            printable(one.about.as_deref().unwrap_or_default(), 200).into(),
        ]);
    }
    term.say(&table.render(term.out, term.width))?;
    Ok(0)
}

fn number(version: &ScenarioVersion) -> String {
    if version.is_stock() {
        "stock".to_owned()
    } else {
        format!("v{}", version.version)
    }
}

/// Who stored a version when, and why.
pub(super) fn stored(version: &ScenarioVersion, now: Timestamp) -> String {
    let Some(at) = version.at else {
        return "came with muster".to_owned();
    };
    let what = if version.is_removal() {
        "removed"
    } else {
        "stored"
    };
    let mut said = format!("{what} by {} {}", version.by, ago(at, now));
    if let Some(note) = &version.note {
        said.push_str(&format!(": {}", printable(note, 200)));
    }
    said
}

pub(super) async fn history(context: &Context, args: &HistoryArgs) -> Result<u8, Failure> {
    let all = context.client()?.scenario_history(&args.name).await?;
    let term = &context.term;
    if args.json {
        term.json(&all)?;
        return Ok(0);
    }
    let now = now();
    let mut table = Table::new(&["VERSION", "WHEN", "BY", "BUNDLE", "NOTE"]);
    for one in &all {
        let bundle = match &one.bundle {
            None => "removed".to_owned(),
            Some(hash) => {
                let hash = hash.to_string();
                let short = hash.get(..12).unwrap_or(&hash).to_owned();
                if one.kept {
                    short
                } else {
                    format!("{short} (not kept)")
                }
            }
        };
        table.row([
            number(one).into(),
            one.at.map_or_else(String::new, |at| ago(at, now)).into(),
            one.by.to_string().into(),
            bundle.into(),
            printable(one.note.as_deref().unwrap_or_default(), 200).into(),
        ]);
    }
    term.say(&table.render(term.out, term.width))?;
    Ok(0)
}

/// The name under which a scenario on disk is stored.
pub(super) fn name_of(loaded: &Loaded) -> Result<ScenarioName, Failure> {
    loaded.name.parse().map_err(|e| {
        Failure::usage(format!("{}: {e}", loaded.file)).hint("give it one with --name")
    })
}

pub(super) async fn put(context: &Context, args: &PutArgs) -> Result<u8, Failure> {
    let term = &context.term;
    let loaded = load(&args.file)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(&loaded)?,
    };
    if let Err(faults) = check_bundle(&loaded.file, &loaded.bundle) {
        if args.json {
            term.json(&serde_json::json!({"name": name, "file": loaded.file, "errors": faults}))?;
        } else {
            term.say(&rendered(&faults, term.out))?;
            term.line(&format!("{}; nothing was stored", errors(faults.len())))?;
        }
        return Ok(NOT_ALL);
    }
    let client = context.client()?;
    let before = newest(&client, &name).await?;
    let expect = args
        .expect
        .or(Some(before.as_ref().map_or(0, |version| version.version)));
    let packed = loaded.bundle.pack();
    let done = client
        .put_scenario(&name, packed, expect, args.note.as_deref())
        .await?;
    if args.json {
        term.json(&done)?;
        return Ok(0);
    }
    term.line(&said(&done, before.as_ref()))?;
    Ok(0)
}

/// What came of a change, in a line.
fn said(done: &ScenarioStored, before: Option<&ScenarioVersion>) -> String {
    let (name, version) = (&done.version.name, done.version.version);
    if !done.new {
        return format!("{name} v{version} is this already; nothing was stored");
    }
    match before {
        Some(before) if !before.is_stock() => {
            let before_it = stored(before, now());
            format!(
                "{name} v{version} is stored; v{} was {before_it}",
                before.version
            )
        }
        Some(_) => {
            format!("{name} v{version} is stored, in place of the one that came with muster")
        }
        None => format!("{name} v{version} is stored"),
    }
}

/// The newest version of that name, a removal too.
pub(super) async fn newest(
    client: &Client,
    name: &ScenarioName,
) -> Result<Option<ScenarioVersion>, Failure> {
    match client.scenario_history(name).await {
        Ok(all) => Ok(all.into_iter().next()),
        Err(ClientError::Problem(problem)) if problem.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A stored bundle, held against its hash.
pub(super) async fn fetch(
    client: &Client,
    name: &ScenarioName,
    version: Option<u32>,
) -> Result<Bundle, Failure> {
    let bytes = client.scenario_bundle(name, version).await?;
    Bundle::unpack(&bytes).map_err(|e| {
        Failure::new(
            NOT_ALL,
            format!("{name}: what the broker gave cannot be read: {e}"),
        )
    })
}

pub(super) async fn rollback(context: &Context, args: &RollbackArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let before = newest(&client, &args.name).await?;
    let request = RollbackScenario {
        version: args.version,
        note: args.note.clone(),
        expect: Some(before.as_ref().map_or(0, |version| version.version)),
    };
    let done = client.rollback_scenario(&args.name, &request).await?;
    let term = &context.term;
    if args.json {
        term.json(&done)?;
        return Ok(0);
    }
    let name = &args.name;
    term.line(&if done.new {
        format!(
            "{name} v{} is stored, with the content of v{}",
            done.version.version, args.version
        )
    } else {
        format!(
            "{name} v{} has the content of v{} already",
            done.version.version, args.version
        )
    })?;
    Ok(0)
}

pub(super) async fn remove(context: &Context, args: &RemoveArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let done = client
        .remove_scenario(&args.name, None, args.note.as_deref())
        .await?;
    let term = &context.term;
    if args.json {
        term.json(&done)?;
        return Ok(0);
    }
    term.line(&format!(
        "{} is removed (v{})",
        args.name, done.version.version
    ))?;
    if let Some(last) = done.version.version.checked_sub(1).filter(|last| *last > 0) {
        term.note(&format!(
            "`muster scenario rollback {} {last}` brings it back",
            args.name
        ));
    }
    Ok(0)
}
