//! `muster scenario check`

use muster_scenarios::check::check_bundle;
use muster_scenarios::fault::Fault;
use serde::Serialize;

use super::load::load_all;
use super::{CheckArgs, errors, rendered};
use crate::Context;
use crate::failure::{Failure, NOT_ALL};

/// What was found in one scenario.
#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    /// The bundle's hash.
    bundle: String,
    ok: bool,
    errors: Vec<Fault>,
}

pub(super) fn run(context: &Context, args: &CheckArgs) -> Result<u8, Failure> {
    let term = &context.term;
    let mut found = 0;
    let mut all = Vec::new();
    for loaded in load_all(&args.files)? {
        let faults = match check_bundle(&loaded.file, &loaded.bundle) {
            Ok(manifest) => {
                if !args.json {
                    let tests = manifest.tests().count();
                    term.line(&format!(
                        "{}: {}, {}",
                        loaded.file,
                        term.out.good("no mistakes"),
                        match tests {
                            0 => "no tests".to_owned(),
                            tests => crate::ui::count(tests, "test"),
                        }
                    ))?;
                }
                Vec::new()
            }
            Err(faults) => {
                if !args.json {
                    term.say(&rendered(&faults, term.out))?;
                }
                faults
            }
        };
        found += faults.len();
        all.push(Checked {
            bundle: loaded.bundle.hash().to_string(),
            file: loaded.file,
            ok: faults.is_empty(),
            errors: faults,
        });
    }
    if args.json {
        term.json(&all)?;
    } else if found > 0 {
        term.line(&errors(found))?;
    }
    Ok(if found == 0 { 0 } else { NOT_ALL })
}
