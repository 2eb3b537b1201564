//! `muster firewall test`

use std::path::PathBuf;

use clap::Args;
use muster_firewall::groups::judge::Verdict;
use muster_firewall::groups::table::Table;
use muster_protocol::text::printable_line;
use serde_json::json;

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::count;

/// Largest file, in bytes.
const MAX_FILE: usize = 16 << 20;

/// Arguments of `muster firewall test`.
#[derive(Args, Debug)]
#[command(after_help = "\
The file is TOML: [holding] says which interfaces, groups and members there are, and each [[packet]]
which packet it is and what is to become of it. Nothing is sent, and no broker is asked. The exit
code is 0 when all is as expected, and 1 when something is not.")]
pub struct TestArgs {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Say also what is as expected
    #[arg(long)]
    pub all: bool,
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub(super) fn run(context: &Context, args: &TestArgs) -> Result<u8, Failure> {
    let shown = printable_line(&args.file.display().to_string());
    let wrong = |why: String| Failure::usage(format!("{shown}: {why}"));
    let text = crate::input::text(&args.file, MAX_FILE).map_err(Failure::usage)?;
    let table = Table::parse(&text, None).map_err(|e| wrong(printable_text(&e.to_string())))?;
    let outcomes = table.run();
    let failed = outcomes.iter().filter(|one| !one.as_expected).count();
    if args.json {
        let all: Vec<_> = outcomes
            .iter()
            .map(|one| {
                json!({
                    "packet": one.row.number, "name": one.row.name,
                    "passes": one.judged.verdict == Verdict::Pass,
                    "as_expected": one.as_expected, "why": one.judged.why().to_string(),
                })
            })
            .collect();
        context.term.json(&all)?;
    } else {
        for one in outcomes.iter().filter(|one| args.all || !one.as_expected) {
            context.term.line(&printable_line(&one.to_string()))?;
        }
        let all = count(outcomes.len(), "packet");
        let line = match failed {
            0 => format!("{all}, all as expected"),
            failed => format!("{all}, {failed} not as expected"),
        };
        context.term.line(&line)?;
    }
    Ok(if failed == 0 { 0 } else { NOT_ALL })
}

/// Several lines stay several.
fn printable_text(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(printable_line).collect();
    lines.join("\n")
}
