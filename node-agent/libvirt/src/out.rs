//! The standard output: whole lines, whichever thread says them.

use std::io::Write;
use std::process;
use std::sync::{Mutex, PoisonError};

use muster_libvirt::message::{Failure, Reply, Said};
use muster_protocol::vm::VmId;

/// What the program ends with when libvirt is not there, or no more.
const LOST: i32 = 1;

/// Whether [`Said::Ready`] was said; held while something is said.
static READY: Mutex<bool> = Mutex::new(false);

/// The connection is there.
pub(crate) fn ready() {
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    say(&Said::Ready);
    *ready = true;
}

/// The answer to a call.
pub(crate) fn answer(id: u64, result: Result<Reply, Failure>) {
    let _held = READY.lock().unwrap_or_else(PoisonError::into_inner);
    say(&Said::Answer { id, result });
}

/// Something about a domain has changed. Not said before [`ready`]: whoever
/// hears that looks at all of them anyway.
pub(crate) fn event(uuid: VmId, what: &str) {
    let ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    if *ready {
        let what = what.to_owned();
        say(&Said::Event { uuid, what });
    }
}

/// The last thing that is said.
pub(crate) fn lost(why: &str) -> ! {
    // Never given back: nothing is said after it.
    let _held = READY.lock().unwrap_or_else(PoisonError::into_inner);
    let why = why.to_owned();
    say(&Said::Lost { why });
    process::exit(LOST)
}

/// For people, where something is wrong with what the agent does.
pub(crate) fn complain(what: &str) {
    let _ = writeln!(std::io::stderr(), "muster-libvirt: {what}");
}

fn say(said: &Said) {
    let Ok(mut line) = serde_json::to_vec(said) else {
        return complain("an answer that cannot be written");
    };
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    if out.write_all(&line).and_then(|()| out.flush()).is_err() {
        // Nobody listens any more.
        process::exit(0);
    }
}
