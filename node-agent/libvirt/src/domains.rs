//! Domains. Each call looks first, and is well when it finds what it was to
//! bring about. What is not muster's is read, and never changed.

use muster_libvirt::message::{self, FailureKind};
use muster_libvirt::xml::{self, Definition};
use muster_protocol::names::SnapshotName;
use muster_protocol::vm::{GuestState, Owner, VmId};
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::error::{Error, ErrorNumber};

use crate::failed::Failed;
use crate::host::Host;
use crate::kernel::Kernel;
use crate::sys;

impl Host {
    pub(crate) fn domains(&self) -> Result<Vec<message::Domain>, Failed> {
        let kernel = Kernel::now();
        let mut all = Vec::new();
        for domain in self.connection.list_all_domains(0)? {
            // One may go away while it is looked at.
            let mut looked = there(look(&domain))?;
            if let Some(found) = &mut looked {
                kernel.tell(found);
            }
            all.extend(looked);
        }
        Ok(all)
    }

    pub(crate) fn domain(&self, uuid: VmId) -> Result<Option<message::Domain>, Failed> {
        there(self.find(uuid).and_then(|domain| look(&domain)))
    }

    pub(crate) fn named(&self, name: &str) -> Result<Option<message::Domain>, Failed> {
        let domain = Domain::lookup_by_name(&self.connection, name).map_err(Failed::from);
        there(domain.and_then(|domain| look(&domain)))
    }

    pub(crate) fn xml(&self, uuid: VmId) -> Result<String, Failed> {
        Ok(self.find(uuid)?.get_xml_desc(0)?)
    }

    pub(crate) fn definition(&self, uuid: VmId) -> Result<String, Failed> {
        Ok(self
            .find(uuid)?
            .get_xml_desc(virt_sys::VIR_DOMAIN_XML_INACTIVE | virt_sys::VIR_DOMAIN_XML_SECURE)?)
    }

    pub(crate) fn busy(&self, uuid: VmId) -> Result<bool, Failed> {
        let domain = self.find(uuid)?;
        // Of one that does not run nothing is said, and nothing is heard as
        // long as libvirt works on its disk.
        match sys::is_busy(&domain) {
            Err(error) if error.code() == ErrorNumber::OperationInvalid => Ok(false),
            said => Ok(said?),
        }
    }

    pub(crate) fn define(&self, xml: &str) -> Result<(), Failed> {
        let wanted = xml::read_domain(xml);
        if let Some(uuid) = wanted.uuid {
            let there = there(self.find(uuid))?;
            if let Some(domain) = there {
                ours(&domain).map_err(|Failed(mut failure)| {
                    failure.kind = FailureKind::Exists;
                    Failed(failure)
                })?;
            }
        }
        match Domain::define_xml(&self.connection, xml) {
            Ok(_) => Ok(()),
            // It has no number for this.
            Err(error) if error.code() == ErrorNumber::OperationFailed => {
                let name = wanted.name.unwrap_or_default();
                let same = Domain::lookup_by_name(&self.connection, &name)
                    .and_then(|domain| domain.get_uuid_string())
                    .ok()
                    .and_then(|text| text.parse::<VmId>().ok());
                let mut failed = Failed::from(error);
                if same.is_some() && same != wanted.uuid {
                    failed.0.kind = FailureKind::Exists;
                }
                Err(failed)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn undefine(&self, uuid: VmId) -> Result<(), Failed> {
        let (domain, _) = self.own(uuid)?;
        let flags = virt_sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | virt_sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA;
        Ok(domain.undefine_flags(flags)?)
    }

    pub(crate) fn start(&self, uuid: VmId) -> Result<(), Failed> {
        let (domain, _) = self.own(uuid)?;
        match state(&domain)? {
            GuestState::Running => Ok(()),
            GuestState::Paused => Ok(domain.resume().map(drop)?),
            GuestState::Stopped | GuestState::Crashed => {
                or_is(domain.create().map(drop), || domain.is_active())
            }
        }
    }

    pub(crate) fn shutdown(&self, uuid: VmId) -> Result<(), Failed> {
        let (domain, _) = self.own(uuid)?;
        if !domain.is_active()? {
            let message = "the domain does not run";
            return Err(Failed::new(FailureKind::State, message));
        }
        // The guest's own agent may be asked, which says what it likes.
        let asked = domain.shutdown().map(drop);
        asked.map_err(Failed::said_by_a_guest)
    }

    pub(crate) fn kill(&self, uuid: VmId) -> Result<(), Failed> {
        let (domain, _) = self.own(uuid)?;
        if !domain.is_active()? {
            return Ok(());
        }
        or_is(domain.destroy(), || Ok(!domain.is_active()?))
    }

    pub(crate) fn autostart(&self, uuid: VmId, on: bool) -> Result<(), Failed> {
        let (domain, _) = self.own(uuid)?;
        if domain.get_autostart()? != on {
            domain.set_autostart(on)?;
        }
        Ok(())
    }

    pub(crate) fn snapshots(&self, uuid: VmId) -> Result<Vec<String>, Failed> {
        let mut names = Vec::new();
        for snapshot in self.find(uuid)?.list_all_snapshots(0)? {
            names.push(snapshot.get_name()?);
        }
        names.sort();
        Ok(names)
    }

    pub(crate) fn snapshot_definitions(&self, uuid: VmId) -> Result<Vec<String>, Failed> {
        let mut all = Vec::new();
        let parents_first = virt_sys::VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL;
        for snapshot in self.find(uuid)?.list_all_snapshots(parents_first)? {
            all.push(snapshot.get_xml_desc(virt_sys::VIR_DOMAIN_SNAPSHOT_XML_SECURE)?);
        }
        Ok(all)
    }

    pub(crate) fn define_snapshot(&self, uuid: VmId, xml: &str) -> Result<(), Failed> {
        let (domain, _) = self.own(uuid)?;
        if let Some(name) = xml::read_snapshot_name(xml) {
            let found = DomainSnapshot::lookup_by_name(&domain, &name, 0);
            if there(found.map_err(Failed::from))?.is_some() {
                return Ok(());
            }
        }
        let again = virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE;
        DomainSnapshot::create_xml(&domain, xml, again)?;
        Ok(())
    }

    /// A running domain is snapshotted with its memory: QEMU has no other
    /// snapshot inside a disk that is in use.
    pub(crate) fn snapshot(&self, uuid: VmId, name: &SnapshotName) -> Result<(), Failed> {
        let (domain, _) = self.own(uuid)?;
        let found = DomainSnapshot::lookup_by_name(&domain, name.as_str(), 0);
        if there(found.map_err(Failed::from))?.is_some() {
            let message = format!("there is a snapshot `{name}` already");
            return Err(Failed::new(FailureKind::Exists, message));
        }
        DomainSnapshot::create_xml(&domain, &xml::snapshot(name), 0)?;
        Ok(())
    }

    /// Only the disk: a domain that ran runs, one that did not does not, and
    /// what muster wanted of it last is still what it is.
    pub(crate) fn restore(&self, uuid: VmId, name: &SnapshotName) -> Result<(), Failed> {
        let (domain, _) = self.own(uuid)?;
        let snapshot = DomainSnapshot::lookup_by_name(&domain, name.as_str(), 0)?;
        // libvirt sets the definition back, too.
        let definition = domain.get_xml_desc(virt_sys::VIR_DOMAIN_XML_INACTIVE)?;
        let runs = domain.is_active()?;
        let flags = if runs {
            virt_sys::VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING
        } else if xml::read_snapshot_is_of_disk(&snapshot.get_xml_desc(0)?) {
            0
        } else {
            // It comes with its memory: it must not do anything with it.
            virt_sys::VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED
        };
        snapshot.revert(flags)?;
        if !runs && domain.is_active()? {
            domain.destroy()?;
        }
        Domain::define_xml(&self.connection, &definition)?;
        Ok(())
    }

    pub(crate) fn guest_agent(
        &self,
        uuid: VmId,
        command: &str,
        seconds: u32,
    ) -> Result<String, Failed> {
        let (domain, _) = self.own(uuid)?;
        // 0 and less have meanings of their own.
        let seconds = i32::try_from(seconds).unwrap_or(i32::MAX).max(1);
        let answer = domain.qemu_agent_command(command, seconds, 0);
        answer.map_err(Failed::said_by_a_guest)
    }

    pub(crate) fn find(&self, uuid: VmId) -> Result<Domain, Failed> {
        let uuid = uuid.to_string();
        Ok(Domain::lookup_by_uuid_string(&self.connection, &uuid)?)
    }

    /// One of muster's, of whichever cluster.
    pub(crate) fn own(&self, uuid: VmId) -> Result<(Domain, Definition), Failed> {
        let domain = self.find(uuid)?;
        let definition = ours(&domain)?;
        Ok((domain, definition))
    }
}

fn ours(domain: &Domain) -> Result<Definition, Failed> {
    let definition = definition(domain)?;
    if definition.owner == Owner::Foreign {
        let name = domain.get_name()?;
        let message = format!("the domain `{name}` is not muster's: it is not touched");
        return Err(Failed::new(FailureKind::Other, message));
    }
    Ok(definition)
}

fn definition(domain: &Domain) -> Result<Definition, Failed> {
    let xml = domain.get_xml_desc(virt_sys::VIR_DOMAIN_XML_INACTIVE)?;
    Ok(xml::read_domain(&xml))
}

fn look(domain: &Domain) -> Result<message::Domain, Failed> {
    let uuid = domain.get_uuid_string()?;
    let uuid = uuid.parse().map_err(|error| {
        let message = format!("libvirt names a domain oddly: {error}");
        Failed::new(FailureKind::Other, message)
    })?;
    let definition = definition(domain)?;
    Ok(message::Domain {
        uuid,
        name: domain.get_name()?,
        state: state(domain)?,
        cpus: definition.cpus,
        memory: definition.memory,
        owner: definition.owner,
        machine: definition.machine,
        autostart: domain.get_autostart()?,
        since: None,
        traffic: None,
    })
}

fn state(domain: &Domain) -> Result<GuestState, Failed> {
    let (state, reason) = domain.get_state()?;
    let crashed = u32::try_from(reason) == Ok(virt_sys::VIR_DOMAIN_SHUTOFF_CRASHED);
    Ok(match state {
        virt_sys::VIR_DOMAIN_PAUSED | virt_sys::VIR_DOMAIN_PMSUSPENDED => GuestState::Paused,
        virt_sys::VIR_DOMAIN_CRASHED => GuestState::Crashed,
        virt_sys::VIR_DOMAIN_SHUTOFF if crashed => GuestState::Crashed,
        virt_sys::VIR_DOMAIN_SHUTOFF => GuestState::Stopped,
        // Also while it shuts down.
        _ => GuestState::Running,
    })
}

/// What is there; none when there is none.
pub(crate) fn there<T>(found: Result<T, Failed>) -> Result<Option<T>, Failed> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(failed) if failed.kind() == FailureKind::Missing => Ok(None),
        Err(failed) => Err(failed),
    }
}

/// Well, too, when somebody else was quicker.
fn or_is(done: Result<(), Error>, is: impl FnOnce() -> Result<bool, Error>) -> Result<(), Failed> {
    match done {
        Err(error) if error.code() == ErrorNumber::OperationInvalid && is()? => Ok(()),
        done => Ok(done?),
    }
}
