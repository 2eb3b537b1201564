//! What is done with machines that are there.

use clap::Args;
use muster_protocol::api::{RunView, VmAction, VmStatus, VmView};
use muster_protocol::names::{SnapshotName, VmName};
use muster_protocol::run::RunPhase;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::vm::Size;
use serde_json::{Value, json};

use super::VmVerb;
use super::wait::{Steps, as_wanted, failed, settled, wait};
use crate::Context;
use crate::failure::{Failure, NOT_ALL};

/// A machine.
#[derive(Args, Debug)]
pub struct OneArgs {
    /// Its name
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster vm stop` and `muster vm reboot`.
#[derive(Args, Debug)]
pub struct GraceArgs {
    /// Its name
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// How long it may take by itself before it is forced [default: 1m]
    #[arg(long, value_name = "TIME")]
    pub grace: Option<Span>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster vm resize`.
#[derive(Args, Debug)]
pub struct ResizeArgs {
    /// Its name
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    pub cpus: Option<u16>,
    /// Memory, like 4GiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Disk, like 20GiB; it only grows
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<Size>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster vm snapshot` and `muster vm restore`.
#[derive(Args, Debug)]
pub struct SnapshotArgs {
    /// Its name
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// The snapshot's name
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: SnapshotName,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster vm console`.
#[derive(Args, Debug)]
pub struct ConsoleArgs {
    /// Its name
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// So many lines at most [default: 200]
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub lines: Option<u32>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster vm exec`.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// Its name
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// How long it may take [default: 1m]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "ARGV")]
    pub argv: Vec<String>,
}

/// What comes of it, in a sentence.
struct Deed {
    name: VmName,
    action: VmAction,
    json: bool,
    done: String,
}

fn deed(verb: VmVerb) -> Option<Deed> {
    let plain = |args: OneArgs, action, done: &str| {
        let done = format!("{} {done}", args.name);
        Deed {
            name: args.name,
            action,
            json: args.json,
            done,
        }
    };
    Some(match verb {
        VmVerb::Start(args) => plain(args, VmAction::Start, "runs"),
        VmVerb::Protect(args) => plain(args, VmAction::Protect, "cannot be destroyed from now on"),
        VmVerb::Unprotect(args) => plain(args, VmAction::Unprotect, "can be destroyed"),
        VmVerb::Undelete(args) => plain(args, VmAction::Undelete, "is back"),
        VmVerb::Stop(GraceArgs { name, grace, json }) => Deed {
            done: format!("{name} is stopped"),
            action: VmAction::Stop { grace },
            name,
            json,
        },
        VmVerb::Reboot(GraceArgs { name, grace, json }) => Deed {
            done: format!("{name} was started anew"),
            action: VmAction::Reboot { grace },
            name,
            json,
        },
        VmVerb::Resize(ResizeArgs {
            name,
            cpus,
            memory,
            disk,
            json,
        }) => Deed {
            done: format!(
                "{name} is resized; processors and memory change when it starts anew: muster vm reboot {name}"
            ),
            action: VmAction::Resize { cpus, memory, disk },
            name,
            json,
        },
        VmVerb::Snapshot(SnapshotArgs {
            name,
            snapshot,
            json,
        }) => Deed {
            done: format!("the disk of {name} is kept as {snapshot}"),
            action: VmAction::Snapshot { snapshot },
            name,
            json,
        },
        VmVerb::Restore(SnapshotArgs {
            name,
            snapshot,
            json,
        }) => Deed {
            done: format!("the disk of {name} is as in {snapshot}"),
            action: VmAction::Restore { snapshot },
            name,
            json,
        },
        VmVerb::Console(ConsoleArgs { name, lines, json }) => Deed {
            done: String::new(),
            action: VmAction::ConsoleLog { lines },
            name,
            json,
        },
        VmVerb::Exec(ExecArgs {
            name,
            timeout,
            json,
            argv,
        }) => Deed {
            done: String::new(),
            action: VmAction::Exec { argv, timeout },
            name,
            json,
        },
        VmVerb::Create(_)
        | VmVerb::List(_)
        | VmVerb::Show(_)
        | VmVerb::Where(_)
        | VmVerb::Log(_)
        | VmVerb::Provision(_)
        | VmVerb::Group(_)
        | VmVerb::AddressPair(_)
        | VmVerb::Destroy(_)
        | VmVerb::Plan(_)
        | VmVerb::Apply(_) => return None,
    })
}

/// Does something with a machine, and waits until it is done.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(context: &Context, verb: VmVerb) -> Result<u8, Failure> {
    let Some(Deed {
        name,
        action,
        json,
        done,
    }) = deed(verb)
    else {
        return Err(Failure::usage("this is not done with one machine"));
    };
    let client = context.client()?;
    let changed = client.act_on_vm(&name, &action).await?;
    let shows = matches!(action, VmAction::ConsoleLog { .. } | VmAction::Exec { .. });
    let Some(run) = changed.run else {
        return say(context, &changed.vm, json, &done);
    };
    let view = wait(context, &client, run, Steps::Quiet, |_| None).await?;
    if view.brief.state != RunPhase::Succeeded {
        return Err(failed(&view, &format!("{name}: not done")));
    }
    if shows {
        return show(context, &view, json);
    }
    let vm = settled(&client, &name).await?;
    let (wanted, was): (&[VmStatus], _) = match action {
        VmAction::Start => (&[VmStatus::Running], "was started"),
        VmAction::Reboot { .. } => (&[VmStatus::Running], "was started anew"),
        VmAction::Undelete => (&[VmStatus::Running], "was brought back"),
        VmAction::Stop { .. } => (&[VmStatus::Stopped, VmStatus::Crashed], "was stopped"),
        _ => return say(context, &vm, json, &done),
    };
    as_wanted(&vm, wanted, was)?;
    say(context, &vm, json, &done)
}

fn say(context: &Context, vm: &VmView, json: bool, done: &str) -> Result<u8, Failure> {
    if json {
        context.term.json(vm)?;
    } else {
        context.term.line(done)?;
    }
    Ok(0)
}

/// What a machine has said: the exit code of its program is this one's.
fn show(context: &Context, view: &RunView, json: bool) -> Result<u8, Failure> {
    let value = view.results.iter().find_map(|node| node.value.as_ref());
    let Some(value) = value else {
        let hint = format!("muster runs output {} --stream note", view.brief.short);
        let large = view.results.iter().any(|node| node.value_bytes.is_some());
        let text = if large {
            "what it said is too large to be shown here"
        } else {
            "it said nothing"
        };
        return Err(Failure::new(NOT_ALL, text).hint(hint));
    };
    let exit = value.get("exit").and_then(Value::as_i64);
    let code = exit.map_or(0, |exit| u8::try_from(exit).unwrap_or(NOT_ALL));
    if json {
        context
            .term
            .json(&json!({ "run": view.brief.id, "value": value }))?;
        return Ok(code);
    }
    match value {
        Value::String(text) => context.term.say(&lines(text))?,
        value => {
            let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
            context.term.say(&lines(text("stdout")))?;
            let errors = lines(text("stderr"));
            if !errors.is_empty() {
                context.term.note(errors.trim_end());
            }
        }
    }
    Ok(code)
}

/// As it was said, line by line, with nothing that a terminal would obey.
fn lines(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        out.push_str(&printable(line, 10_000));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_moves_no_cursor() {
        assert_eq!(lines("a\u{1b}[2Jb\nc"), "a\\x1b[2Jb\nc\n");
        assert_eq!(lines(""), "");
    }
}
