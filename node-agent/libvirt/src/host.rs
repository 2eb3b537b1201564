//! The calls: which, and what comes of it.

use std::cell::RefCell;

use muster_libvirt::message::{self, Call, Failure, FailureKind, Reply};
use muster_libvirt::xml;
use muster_protocol::vm::Size;
use virt::connect::Connect;

use crate::failed::Failed;

/// A connection to libvirt.
pub(crate) struct Host {
    pub(crate) connection: Connect,
    /// What it can: libvirt takes long to say so, and it does not change
    /// while a connection lasts.
    capabilities: RefCell<Option<xml::Capabilities>>,
}

impl Host {
    pub(crate) fn new(connection: Connect) -> Self {
        let capabilities = RefCell::new(None);
        Self {
            connection,
            capabilities,
        }
    }

    /// Does what is asked.
    pub(crate) fn call(&self, call: Call) -> Result<Reply, Failure> {
        let result = no_zero(&call).and_then(|()| self.dispatch(call));
        result.map_err(|Failed(failure)| match self.connection.is_alive() {
            Ok(true) => failure,
            // Whatever else it looks like.
            Ok(false) | Err(_) => Failure {
                kind: FailureKind::Lost,
                ..failure
            },
        })
    }

    fn dispatch(&self, call: Call) -> Result<Reply, Failed> {
        let done = |()| Reply::Done;
        match call {
            Call::Host => self.host().map(Reply::Host),
            Call::Domains => self.domains().map(Reply::Domains),
            Call::Domain { uuid } => self.domain(uuid).map(Reply::Domain),
            Call::Named { name } => self.named(&name).map(Reply::Domain),
            Call::Xml { uuid } => self.xml(uuid).map(Reply::Text),
            Call::Definition { uuid } => self.definition(uuid).map(Reply::Text),
            Call::Busy { uuid } => self.busy(uuid).map(Reply::Busy),
            Call::Define { xml } => self.define(&xml).map(done),
            Call::Undefine { uuid } => self.undefine(uuid).map(done),
            Call::Start { uuid } => self.start(uuid).map(done),
            Call::Shutdown { uuid } => self.shutdown(uuid).map(done),
            Call::Kill { uuid } => self.kill(uuid).map(done),
            Call::Autostart { uuid, on } => self.autostart(uuid, on).map(done),
            Call::Pool { pool } => self.pool(&pool).map(Reply::Pool),
            Call::Refresh { pool } => self.refresh(&pool).map(done),
            Call::Volume { pool, name } => self.volume(&pool, &name).map(Reply::Volume),
            Call::Volumes { pool } => self.volumes(&pool).map(Reply::Volumes),
            Call::CreateVolume { pool, xml } => {
                let volume = self.create_volume(&pool, &xml)?;
                Ok(Reply::Volume(Some(volume)))
            }
            Call::GrowVolume {
                pool,
                name,
                size,
                open_in,
            } => self.grow_volume(&pool, &name, size, open_in).map(done),
            Call::DeleteVolume { pool, name } => self.delete_volume(&pool, &name).map(done),
            Call::Snapshots { uuid } => self.snapshots(uuid).map(Reply::Snapshots),
            Call::SnapshotDefinitions { uuid } => {
                self.snapshot_definitions(uuid).map(Reply::Snapshots)
            }
            Call::DefineSnapshot { uuid, xml } => self.define_snapshot(uuid, &xml).map(done),
            Call::Snapshot { uuid, name } => self.snapshot(uuid, &name).map(done),
            Call::Restore { uuid, name } => self.restore(uuid, &name).map(done),
            Call::GuestAgent {
                uuid,
                command,
                seconds,
            } => self.guest_agent(uuid, &command, seconds).map(Reply::Text),
        }
    }

    fn host(&self) -> Result<message::Host, Failed> {
        let node = self.connection.get_node_info()?;
        let version = self.connection.get_lib_version()?;
        let capabilities = self.capabilities()?;
        Ok(message::Host {
            virtualisation: capabilities.virtualisation,
            cpus: node.cpus,
            memory: Size(node.memory.saturating_mul(1 << 10)),
            emulator: capabilities.emulator,
            version: format!(
                "{}.{}.{}",
                version / 1_000_000,
                version / 1_000 % 1_000,
                version % 1_000
            ),
        })
    }

    fn capabilities(&self) -> Result<xml::Capabilities, Failed> {
        if let Some(known) = &*self.capabilities.borrow() {
            return Ok(known.clone());
        }
        let read = xml::read_capabilities(&self.connection.get_capabilities()?);
        *self.capabilities.borrow_mut() = Some(read.clone());
        Ok(read)
    }
}

/// C ends a text at its first zero byte: nothing that has one gets there.
fn no_zero(call: &Call) -> Result<(), Failed> {
    let texts: &[&String] = match call {
        Call::Named { name } => &[name],
        Call::Define { xml }
        | Call::DefineSnapshot { xml, .. }
        | Call::CreateVolume { xml, .. } => &[xml],
        Call::Volume { name, .. }
        | Call::GrowVolume { name, .. }
        | Call::DeleteVolume { name, .. } => &[name],
        Call::GuestAgent { command, .. } => &[command],
        Call::Host
        | Call::Domains
        | Call::Domain { .. }
        | Call::Xml { .. }
        | Call::Definition { .. }
        | Call::Busy { .. }
        | Call::SnapshotDefinitions { .. }
        | Call::Undefine { .. }
        | Call::Start { .. }
        | Call::Shutdown { .. }
        | Call::Kill { .. }
        | Call::Autostart { .. }
        | Call::Pool { .. }
        | Call::Refresh { .. }
        | Call::Volumes { .. }
        | Call::Snapshots { .. }
        | Call::Snapshot { .. }
        | Call::Restore { .. } => &[],
    };
    if texts.iter().any(|text| text.contains('\0')) {
        let message = "a text with a zero byte in it";
        return Err(Failed::new(FailureKind::Other, message));
    }
    Ok(())
}
