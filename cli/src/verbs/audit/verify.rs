//! `muster audit verify`: computed here, of what the broker or a file says.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use muster_client::Pieces;
use muster_protocol::audit::{Line, MAX_LINE, Outside, OutsideError, Report, TrustLine, Verifier};
use muster_protocol::keys::{Fingerprint, KeyList};
use muster_protocol::text::printable;
use serde_json::json;

use super::VerifyArgs;
use crate::Context;
use crate::failure::{Failure, NOT_ALL, USAGE};
use crate::ui::Paint;
use crate::ui::thousands;
use crate::ui::time::moment;

/// Lines, wherever they come from.
enum Source {
    Broker(Box<Pieces>, Vec<u8>),
    File(BufReader<File>),
}

impl Source {
    async fn next(&mut self) -> Result<Option<String>, Failure> {
        let mut line = match self {
            Self::File(file) => read_line(file)?,
            Self::Broker(pieces, held) => loop {
                if let Some(end) = held.iter().position(|b| *b == b'\n') {
                    break Some(held.drain(..=end).collect());
                }
                if held.len() > 2 * MAX_LINE {
                    let what = "the broker sends what is no export of a record";
                    return Err(Failure::new(NOT_ALL, what));
                }
                match pieces.next().await? {
                    Some(piece) => held.extend_from_slice(&piece),
                    None if held.is_empty() => break None,
                    None => break Some(std::mem::take(held)),
                }
            },
        };
        if let Some(line) = &mut line
            && line.last() == Some(&b'\n')
        {
            line.pop();
        }
        Ok(line.map(|line| String::from_utf8_lossy(&line).into_owned()))
    }
}

/// A line with its end; one that is far too long comes in parts, which are no
/// lines of a record.
fn read_line(file: &mut BufReader<File>) -> Result<Option<Vec<u8>>, Failure> {
    use std::io::Read as _;
    let mut line = Vec::new();
    let most = 2 * MAX_LINE as u64;
    let read = file.take(most).read_until(b'\n', &mut line)?;
    Ok((read > 0).then_some(line))
}

fn open(path: &Path) -> Result<BufReader<File>, Failure> {
    File::open(path)
        .map(BufReader::new)
        .map_err(|e| Failure::new(USAGE, format!("cannot read {}: {e}", path.display())))
}

/// Whose signatures count, as the lines themselves say, held against what is
/// known.
fn keys(trust: &TrustLine, wanted: Option<Fingerprint>) -> Result<KeyList, Failure> {
    let print = trust.root.fingerprint();
    if let Some(wanted) = wanted
        && print != wanted
    {
        let text = format!("the root key has the fingerprint {print}, not {wanted}");
        return Err(Failure::new(NOT_ALL, text)
            .detail("this is the record of another cluster, or somebody has made up its keys"));
    }
    KeyList::open(&trust.keys, &trust.root).map_err(|e| {
        Failure::new(
            NOT_ALL,
            format!("the list of broker keys is not one of this cluster: {e}"),
        )
    })
}

/// What came of reading what was kept outside.
#[derive(Default)]
struct Kept {
    outside: Outside,
    /// Lines that say nothing.
    unreadable: Vec<String>,
    /// Lines that are not to be believed.
    wrong: Vec<String>,
}

fn kept(paths: &[std::path::PathBuf], keys: Option<&KeyList>) -> Result<Kept, Failure> {
    let mut kept = Kept::default();
    for path in paths {
        let mut file = open(path)?;
        let mut number = 0;
        while let Some(line) = read_line(&mut file)? {
            number += 1;
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches('\n');
            // A syslog puts something of its own in front.
            let text = text.find("{\"audit\":").map_or(text, |at| &text[at..]);
            if text.is_empty() {
                continue;
            }
            let place = format!("{} line {number}", path.display());
            match kept.outside.take(text, keys, &place) {
                Ok(()) => {}
                Err(error @ OutsideError::Line { .. }) => kept.unreadable.push(error.to_string()),
                Err(error) => kept.wrong.push(error.to_string()),
            }
        }
        if number == 0 {
            kept.wrong.push(format!("{} is empty", path.display()));
        }
    }
    Ok(kept)
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(context: &Context, args: &VerifyArgs) -> Result<u8, Failure> {
    let mut source = match &args.file {
        Some(path) => Source::File(open(path)?),
        None => {
            let pieces = context.client()?.audit_export().await?;
            Source::Broker(Box::new(pieces), Vec::new())
        }
    };
    let first = source.next().await?;
    let trust = first
        .as_deref()
        .and_then(|line| match serde_json::from_str(line) {
            Ok(Line::Trust(trust)) => Some(trust),
            _ => None,
        });
    let keys = trust
        .as_deref()
        .map(|trust| keys(trust, args.root))
        .transpose()?;
    if keys.is_none() && args.root.is_some() {
        let text = "it does not begin with the list of broker keys, as an export does";
        return Err(
            Failure::new(USAGE, text).hint("leave --root out: no signature is checked then")
        );
    }
    let print = trust.as_ref().map(|trust| trust.root.fingerprint());
    let kept = kept(&args.checkpoint, keys.as_ref())?;
    let mut verifier = Verifier::new(keys, kept.outside.clone());
    if trust.is_none()
        && let Some(line) = &first
    {
        verifier.take(line);
    }
    while let Some(line) = source.next().await? {
        verifier.take(&line);
    }
    let report = verifier.finish();
    let good = report.is_good() && kept.wrong.is_empty();
    if args.json {
        context.term.json(&json!({
            "type": "audit_verified",
            "good": good,
            "root": print.map(|print| print.to_string()),
            "report": report,
            "outside_wrong": kept.wrong,
            "outside_unreadable": kept.unreadable,
        }))?;
    } else {
        let text = render(
            &report,
            &kept,
            print,
            !args.checkpoint.is_empty(),
            context.term.out,
        );
        context.term.say(&text)?;
    }
    Ok(if good { 0 } else { NOT_ALL })
}

fn render(
    report: &Report,
    kept: &Kept,
    root: Option<Fingerprint>,
    with_outside: bool,
    paint: Paint,
) -> String {
    let mut out = String::new();
    match (report.first, report.last, report.last_at) {
        (Some(first), Some(last), Some(at)) => {
            out += &format!(
                "{} records, {first} to {last}, the last of {}\n",
                thousands(report.records),
                moment(at)
            );
        }
        _ => out += "no records\n",
    }
    match root {
        Some(root) => {
            out += &format!(
                "{} signed checkpoints, up to record {}  (root key {root})\n",
                thousands(report.checkpoints),
                report.covered
            );
        }
        None => out += "no signature was checked: only an export says whose count\n",
    }
    if with_outside {
        out += &format!(
            "{} of {} numbers that were kept outside were compared",
            thousands(report.compared),
            thousands(kept.outside.len() as u64)
        );
        if report.too_old > 0 {
            out += &format!(
                "; {} are of records that went by age",
                thousands(report.too_old)
            );
        }
        out.push('\n');
    }
    for line in &kept.unreadable {
        out += &format!("{} {}\n", paint.odd("left out:"), printable(line, 300));
    }
    for line in &kept.wrong {
        out += &format!("{} {}\n", paint.bad("wrong:"), printable(line, 400));
    }
    for fault in &report.faults {
        out += &format!(
            "{} {}\n",
            paint.bad(&format!("{}:", fault.kind.as_str())),
            printable(&fault.text, 500)
        );
    }
    if report.more_faults > 0 {
        out += &format!("and {} more\n", thousands(report.more_faults));
    }
    if !report.is_good() || !kept.wrong.is_empty() {
        out += &format!(
            "{}\n",
            paint.bad("somebody has changed the record, or it has lost something")
        );
    } else if report.compared > 0 {
        out += &format!(
            "{}\n",
            paint.good("the record is whole, and it is the one that was kept outside")
        );
    } else if with_outside {
        out += "the record is whole; nothing that was kept outside could be compared\n";
    } else {
        out += "the record is whole in itself; whether it was computed anew, only a file of a sink shows: --checkpoint FILE\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use muster_protocol::audit::{Fault, FaultKind};

    use super::*;

    #[test]
    fn what_is_said_of_a_record() {
        let mut report = Report {
            records: 12_041,
            first: Some(1),
            last: Some(12_041),
            last_at: "2026-11-21T06:00:00Z".parse().ok(),
            checkpoints: 120,
            covered: 12_041,
            ..Report::default()
        };
        let shown = |report: &Report, with: bool| {
            render(report, &Kept::default(), None, with, Paint::plain())
        };
        insta::assert_snapshot!(shown(&report, false), @r"
        12,041 records, 1 to 12041, the last of 2026-11-21 06:00:00
        no signature was checked: only an export says whose count
        the record is whole in itself; whether it was computed anew, only a file of a sink shows: --checkpoint FILE
        ");
        report.faults.push(Fault {
            record: 5,
            line: 9,
            kind: FaultKind::Edited,
            text: "record 5 is not what record 6 was built on: one of the two was edited".into(),
        });
        assert!(shown(&report, true).contains("edited: record 5"));
        assert!(shown(&report, true).ends_with("or it has lost something\n"));
    }
}
