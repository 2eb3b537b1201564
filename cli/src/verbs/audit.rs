//! `muster audit`

mod verify;

use clap::{Args, Subcommand};
use muster_client::{AuditQuery, Pieces, Reference};
use muster_protocol::audit::{Entry, Record, Verdict};
use muster_protocol::names::PrincipalName;
use muster_protocol::text::printable;
use muster_protocol::units::{Span, Timestamp};
use serde_json::Value;
use std::io::Write as _;
use std::path::PathBuf;

use crate::Context;
use crate::failure::{Failure, USAGE};
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::time::moment;
use crate::verbs::now;

/// Arguments of `muster audit`.
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: AuditVerb,
}

/// What can be done with the record.
#[derive(Debug, Subcommand)]
pub enum AuditVerb {
    /// Who asked for what, newest last
    List(ListArgs),
    /// Whether a record was changed, dropped, moved or cut off
    Verify(VerifyArgs),
    /// Everything that is kept, a JSON text a line, as it is stored
    Export(ExportArgs),
}

/// Arguments of `muster audit list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only of this principal
    #[arg(long, value_name = "P")]
    pub principal: Option<PrincipalName>,
    /// Only this action; `read` stands for all that begin so
    #[arg(long, value_name = "A")]
    pub action: Option<String>,
    /// Only what is about this run
    #[arg(long, value_name = "RUN")]
    pub run: Option<Reference>,
    /// Only what was denied
    #[arg(long)]
    pub denied: bool,
    /// Only the last so long, or since a time (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Since>,
    /// Only records with a lower number
    #[arg(long, value_name = "N")]
    pub before: Option<u64>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster audit verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Whoever has the broker's disk and its keys can compute the whole record anew. Only what
was kept elsewhere shows that: the file of a sink, or any line of one.")]
pub struct VerifyArgs {
    /// What was kept outside: lines that a sink has written; several times for several files
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Vec<PathBuf>,
    /// An export, instead of asking the broker
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The fingerprint that the cluster's root key must have, as `muster keys list` has shown it
    #[arg(long, value_name = "FINGERPRINT")]
    pub root: Option<muster_protocol::keys::Fingerprint>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster audit export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// File to write, instead of standard output; it must not exist yet
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// From when on.
#[derive(Clone, Copy, Debug)]
pub enum Since {
    /// So long ago.
    Ago(Span),
    /// At that time.
    At(Timestamp),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(span) = text.parse() {
        return Ok(Since::Ago(span));
    }
    text.parse()
        .map(Since::At)
        .map_err(|_| "write it like 2h, 7d or 2026-11-21T06:00:00Z".to_owned())
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: AuditArgs) -> Result<u8, Failure> {
    match args.verb {
        AuditVerb::List(args) => list(context, args).await,
        AuditVerb::Verify(args) => verify::run(context, &args).await,
        AuditVerb::Export(args) => export(context, &args).await,
    }
}

async fn list(context: &Context, args: ListArgs) -> Result<u8, Failure> {
    let wanted = AuditQuery {
        principal: args.principal,
        action: args.action,
        run: args.run,
        denied: args.denied,
        since: args.since.map(|since| match since {
            Since::Ago(span) => now().checked_sub(span.get()).unwrap_or(Timestamp::MIN),
            Since::At(at) => at,
        }),
        before: args.before,
    };
    let page = context.client()?.audit(&wanted, args.limit).await?;
    if args.json {
        for record in &page.items {
            context.term.json(record)?;
        }
        return Ok(0);
    }
    let mut table = Table::new(&["N", "WHEN", "WHO", "FROM", "ACTION", "ABOUT", ""]);
    for record in &page.items {
        table.row(row(record));
    }
    if page.items.is_empty() {
        context.term.note("no records");
    } else {
        context
            .term
            .say(&table.render(context.term.out, context.term.width))?;
    }
    if let Some(next) = &page.next {
        let next = printable(next, 40);
        context.term.note(&format!("older ones: --before {next}"));
    }
    Ok(0)
}

fn row(record: &Record) -> [Cell; 7] {
    let entry = &record.entry;
    let verdict = match entry.verdict {
        Verdict::Allowed => Cell::from(""),
        Verdict::Denied => Cell::toned("denied", Tone::Bad),
        Verdict::Noted if entry.action.starts_with("audit-") => Cell::toned("!", Tone::Bad),
        Verdict::Noted => Cell::from(""),
    };
    let who = entry.who.principal.as_ref();
    [
        record.n.to_string().into(),
        moment(entry.until.unwrap_or(entry.at)).into(),
        who.map_or_else(|| "nobody".to_owned(), ToString::to_string)
            .into(),
        from(entry).into(),
        entry.action.clone().into(),
        about(entry).into(),
        verdict,
    ]
}

/// `cli 192.0.2.7`
fn from(entry: &Entry) -> String {
    let door = entry.who.door.clone().unwrap_or_default();
    let detail = match &entry.who.origin {
        Some(Value::Object(origin)) => origin
            .values()
            .next()
            .map(|value| match value {
                Value::String(text) => text.clone(),
                Value::Object(fields) => fields
                    .values()
                    .filter_map(Value::as_str)
                    .take(2)
                    .collect::<Vec<_>>()
                    .join(" "),
                other => other.to_string(),
            })
            .unwrap_or_default(),
        _ => String::new(),
    };
    printable(format!("{door} {detail}").trim(), 60)
}

/// What it was about, in a line.
pub(crate) fn about(entry: &Entry) -> String {
    let about = &entry.about;
    let mut words: Vec<String> = Vec::new();
    if let Some(run) = about.run {
        words.push(run.short().to_string());
    }
    if let Some(scenario) = &about.scenario {
        words.push(match about.version {
            Some(version) => format!("{scenario} v{version}"),
            None => scenario.to_string(),
        });
    }
    for set in &about.sets {
        words.push(format!("{} {}", set.name, set.count));
    }
    if let Some(node) = &about.node {
        words.push(node.to_string());
    }
    if let Some(end) = &about.end {
        words.push(format!("{end}:"));
        let counts = about.outcomes.iter();
        let counts: Vec<_> = counts.map(|(what, n)| format!("{n} {what}")).collect();
        words.push(counts.join(", "));
    }
    if words.is_empty()
        && let Some(request) = &about.request
    {
        words.push(request.clone());
    }
    if let Some(times) = entry.times {
        words.push(format!("({times} more times)"));
    }
    if let Some(why) = &entry.why {
        words.push(format!("- {why}"));
    }
    printable(&words.join(" "), 300)
}

async fn export(context: &Context, args: &ExportArgs) -> Result<u8, Failure> {
    let mut pieces = context.client()?.audit_export().await?;
    let Some(path) = &args.file else {
        let mut out = std::io::stdout().lock();
        while let Some(piece) = pieces.next().await? {
            out.write_all(&piece)?;
        }
        return Ok(0);
    };
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path);
    let mut file = made.map_err(|e| {
        Failure::new(USAGE, format!("cannot write {}: {e}", path.display()))
            .hint("an export never takes the place of a file")
    })?;
    let written = write(&mut pieces, &mut file).await;
    if written.is_err() {
        // Half of one would look as if somebody had cut it.
        let _ = std::fs::remove_file(path);
    }
    let bytes = written?;
    let size = muster_protocol::units::Size::new(bytes).shown();
    context.term.note(&format!("{size} in {}", path.display()));
    Ok(0)
}

async fn write(pieces: &mut Pieces, file: &mut std::fs::File) -> Result<u64, Failure> {
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await? {
        file.write_all(&piece)?;
        bytes += piece.len() as u64;
    }
    file.sync_all()?;
    Ok(bytes)
}
