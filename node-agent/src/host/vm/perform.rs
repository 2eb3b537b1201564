//! The way from a step of a scenario, whose thread may block, to the machines.

use futures_util::future::BoxFuture;
use muster_protocol::envelope::Mode;
use muster_protocol::note::Note;
use muster_protocol::vm::VmCall;
use muster_scenarios::node::{HostError, Performed};

use super::machines::{Machines, Progress};
use crate::host::tools::{Said, Tools};

struct Told<'a>(&'a Tools);

impl Progress for Told<'_> {
    fn say(&self, text: String) -> BoxFuture<'_, ()> {
        Box::pin(self.0.tell(Said::Note(Note::Log { text, at: None })))
    }
}

/// Does what a script wants of a machine, or says what it would do. When the
/// step ends meanwhile, what libvirt was asked last is done all the same; the
/// next one who asks for that machine comes behind it.
///
/// # Errors
/// [`HostError`].
pub fn perform(
    tools: &Tools,
    machines: &Machines,
    call: &VmCall,
    mode: Mode,
) -> Result<Performed, HostError> {
    let told = Told(tools);
    let done = Box::pin(machines.perform(call, mode, &told));
    let done = tools.wait(done).map_err(|_| HostError::Stopped)?;
    Ok(done?)
}
