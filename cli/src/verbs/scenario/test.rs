//! `muster scenario test`

use muster_scenarios::check::check_bundle;
use muster_scenarios::fault::Fault;
use muster_scenarios::trial::Trial;
use serde::Serialize;

use super::load::{Loaded, load_all};
use super::{TestArgs, errors, rendered};
use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::count;

/// The tests of one scenario.
#[derive(Debug, Serialize)]
struct File {
    file: String,
    tests: Vec<Tested>,
    /// Mistakes that keep the tests from being run at all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault>,
    /// Replies that several tests use, and none needed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unneeded: Vec<Fault>,
}

/// How one test ended.
#[derive(Debug, Serialize)]
struct Tested {
    name: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Fault>,
}

pub(super) fn run(context: &Context, args: &TestArgs) -> Result<u8, Failure> {
    let mut all = Vec::new();
    for loaded in load_all(&args.files)? {
        all.push(tried(context, args, &loaded)?);
    }
    let tests = || all.iter().flat_map(|file| &file.tests);
    let (ran, failed) = (tests().count(), tests().filter(|test| !test.ok).count());
    let mistakes: usize = all
        .iter()
        .map(|file| file.errors.len() + file.unneeded.len())
        .sum();
    let term = &context.term;
    if args.json {
        term.json(&all)?;
    } else {
        let mut said = Vec::new();
        if ran > 0 || mistakes == 0 {
            said.push(count(ran, "test"));
        }
        if failed > 0 {
            said.push(format!("{failed} failed"));
        }
        if mistakes > 0 {
            said.push(errors(mistakes));
        }
        if failed + mistakes == 0 {
            said.push("all well".to_owned());
        }
        term.line(&said.join(", "))?;
    }
    if ran == 0 && mistakes == 0 {
        let what = match &args.only {
            Some(only) => format!("no test has `{only}` in its name"),
            None => "there is no test".to_owned(),
        };
        return Err(Failure::new(NOT_ALL, what)
            .hint("a test is a function of the scenario: fn test_it_starts() { … }"));
    }
    Ok(if failed + mistakes == 0 { 0 } else { NOT_ALL })
}

fn tried(context: &Context, args: &TestArgs, loaded: &Loaded) -> Result<File, Failure> {
    let term = &context.term;
    let read = check_bundle(&loaded.file, &loaded.bundle).and_then(|manifest| {
        Trial::new(&loaded.file, &loaded.bundle, manifest).map_err(|fault| vec![*fault])
    });
    let mut file = File {
        file: loaded.file.clone(),
        tests: Vec::new(),
        errors: Vec::new(),
        unneeded: Vec::new(),
    };
    let trial = match read {
        Ok(trial) => trial,
        Err(faults) => {
            if !args.json {
                term.say(&rendered(&faults, term.out))?;
            }
            file.errors = faults;
            return Ok(file);
        }
    };
    for name in trial.tests() {
        if args.only.as_ref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let ended = trial.run(name);
        if !args.json {
            match &ended {
                Ok(()) => term.line(&format!("{}  {name}", term.out.good("well  ")))?,
                Err(fault) => {
                    term.line(&format!("{}  {name}", term.out.bad("failed")))?;
                    term.say(&rendered(std::slice::from_ref(fault.as_ref()), term.out))?;
                }
            }
        }
        file.tests.push(Tested {
            name: name.clone(),
            ok: ended.is_ok(),
            error: ended.err().map(|fault| *fault),
        });
    }
    // Of some of the tests nobody can say.
    if args.only.is_none() {
        file.unneeded = trial.unneeded();
        if !args.json {
            term.say(&rendered(&file.unneeded, term.out))?;
        }
    }
    Ok(file)
}
