//! Runs with a `main`: the script runs here, its steps are runs of their own.
//!
//! The task of such a run is the task of any run; where others send, it
//! conducts: it lets the script run from its top ([`turn`]), writes down what
//! the script wants, does that, writes down what came of it, and lets the
//! script run again. What it does next follows from the journal alone, so that
//! a broker that starts again goes on where the last one stopped.
//!
//! A step is a run ([`parts`]) whose id follows from the call: whoever makes
//! it a second time finds the first. A run that waits holds no thread, and
//! nothing in memory but its folded state.

mod conduct;
mod machine;
mod parts;
mod records;
mod reply;
mod serve;
mod stage;
mod turn;
mod undo;

use muster_protocol::ids::RunId;
use sha2::{Digest as _, Sha256};

pub use self::conduct::AnswerError;
pub(super) use self::conduct::Answered;
pub(super) use self::conduct::Conductor;
pub(super) use self::stage::Stages;
pub use self::stage::{Another, MachineNow, Machinery, Score, Stage, StageError, UpMachine};

/// Calls that one `main` may make.
const MOST_CALLS: u64 = 20_000;
/// How often one `main` may sleep in a dry run, where that takes no time: one
/// that waits for something to happen would never end.
const MOST_SLEEPS: u64 = 1_000;
/// Bytes of everything that one `main` was told, over all its calls.
const MOST_TOLD: u64 = 128 << 20;
/// Bytes of one reply; `main` could not hold more.
const MOST_REPLY: usize = 16 << 20;
/// Bytes of the log of one run.
const MOST_LOG: u64 = 4 << 20;
/// How deep scenarios may call each other.
const MOST_DEEP: usize = 4;
/// How long a `main` may take in all: as long as an open run is of interest.
pub(super) const LONGEST: std::time::Duration = std::time::Duration::from_secs(31 * 86_400);

/// The id of a part of a run. It follows from the call and its arguments: a
/// broker that makes the part again, even one that has forgotten that there
/// was such a call, makes the same run, and nodes that have its request
/// answer with what they have.
fn part_id(run: RunId, call: u64, part: u32, hash: &str, undo: bool) -> RunId {
    let mut digest = Sha256::new();
    digest.update(b"muster/1/part-of-run\0");
    digest.update(run.as_bytes());
    digest.update(call.to_be_bytes());
    digest.update(part.to_be_bytes());
    digest.update([u8::from(undo)]);
    digest.update(hash.as_bytes());
    let digest: [u8; 32] = digest.finalize().into();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    RunId::from_bytes(id)
}
