//! XML for libvirt. Everything goes through the writer: nothing that a person
//! chose can end an element or an attribute.

use std::io;

use muster_protocol::ids::ClusterId;
use muster_protocol::names::SnapshotName;
use muster_protocol::vm::{ImageFormat, Machine, Nic, Size, Virtualisation};
use quick_xml::Writer;
use quick_xml::events::BytesText;

use super::NAMESPACE;

/// What a domain needs of its host, beside its [`Machine`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Paths {
    /// The volume of its disk, qcow2.
    pub disk: String,
    /// Its seed, the bytes of a disk as they are; none without one.
    pub seed: Option<String>,
    /// What its first serial line says is appended to this file.
    pub console_log: String,
    /// The program that runs it; libvirt's own choice when there is none.
    pub emulator: Option<String>,
}

type Out = Writer<Vec<u8>>;

/// The XML of a machine's domain, with the machine itself in the metadata:
/// whoever finds the domain knows whose it is, and what it was to be.
///
/// A [`Virtualisation::Memory`] has no domains; it is written as `qemu`.
#[must_use]
pub fn domain(
    machine: &Machine,
    paths: &Paths,
    cluster: ClusterId,
    virtualisation: Virtualisation,
) -> String {
    let kvm = virtualisation == Virtualisation::Kvm;
    let kind = if kvm { "kvm" } else { "qemu" };
    document(|out| {
        nest(out, "domain", &[("type", kind)], |out| {
            text(out, "name", &[], machine.name.as_str())?;
            text(out, "uuid", &[], &machine.id.to_string())?;
            metadata(out, machine, cluster)?;
            let memory = machine.memory.bytes().to_string();
            text(out, "memory", &[("unit", "bytes")], &memory)?;
            text(out, "vcpu", &[], &machine.cpus.to_string())?;
            nest(out, "os", &[], |out| {
                text(out, "type", &[("machine", "q35")], "hvm")?;
                empty(out, "boot", &[("dev", "hd")])
            })?;
            nest(out, "features", &[], |out| {
                empty(out, "acpi", &[])?;
                empty(out, "apic", &[])
            })?;
            // In software the default has none of what newer systems are
            // built for.
            let mode = if kvm { "host-passthrough" } else { "maximum" };
            empty(out, "cpu", &[("mode", mode)])?;
            empty(out, "clock", &[("offset", "utc")])?;
            text(out, "on_poweroff", &[], "destroy")?;
            text(out, "on_reboot", &[], "restart")?;
            text(out, "on_crash", &[], "destroy")?;
            nest(out, "devices", &[], |out| devices(out, machine, paths))
        })
    })
}

fn metadata(out: &mut Out, machine: &Machine, cluster: ClusterId) -> io::Result<()> {
    let json = serde_json::to_string(machine)?;
    let cluster = cluster.to_string();
    nest(out, "metadata", &[], |out| {
        let attributes = [("xmlns:muster", NAMESPACE), ("cluster", cluster.as_str())];
        text(out, "muster:machine", &attributes, &json)
    })
}

fn devices(out: &mut Out, machine: &Machine, paths: &Paths) -> io::Result<()> {
    if let Some(emulator) = &paths.emulator {
        text(out, "emulator", &[], emulator)?;
    }
    nest(
        out,
        "disk",
        &[("type", "file"), ("device", "disk")],
        |out| {
            let driver = [("name", "qemu"), ("type", "qcow2"), ("discard", "unmap")];
            empty(out, "driver", &driver)?;
            empty(out, "source", &[("file", paths.disk.as_str())])?;
            empty(out, "target", &[("dev", "vda"), ("bus", "virtio")])
        },
    )?;
    if let Some(seed) = &paths.seed {
        nest(
            out,
            "disk",
            &[("type", "file"), ("device", "disk")],
            |out| {
                empty(out, "driver", &[("name", "qemu"), ("type", "raw")])?;
                empty(out, "source", &[("file", seed.as_str())])?;
                empty(out, "target", &[("dev", "vdb"), ("bus", "virtio")])?;
                empty(out, "readonly", &[])
            },
        )?;
    }
    for nic in &machine.nics {
        interface(out, nic)?;
    }
    nest(out, "serial", &[("type", "pty")], |out| {
        let log = [("file", paths.console_log.as_str()), ("append", "on")];
        empty(out, "log", &log)?;
        empty(out, "target", &[("port", "0")])
    })?;
    nest(out, "console", &[("type", "pty")], |out| {
        empty(out, "target", &[("type", "serial"), ("port", "0")])
    })?;
    nest(out, "channel", &[("type", "unix")], |out| {
        let target = [("type", "virtio"), ("name", "org.qemu.guest_agent.0")];
        empty(out, "target", &target)
    })?;
    nest(out, "rng", &[("model", "virtio")], |out| {
        text(out, "backend", &[("model", "random")], "/dev/urandom")
    })?;
    empty(out, "memballoon", &[("model", "virtio")])
}

fn interface(out: &mut Out, nic: &Nic) -> io::Result<()> {
    nest(out, "interface", &[("type", "bridge")], |out| {
        empty(out, "mac", &[("address", nic.mac.to_string().as_str())])?;
        empty(out, "source", &[("bridge", nic.bridge.as_str())])?;
        empty(out, "target", &[("dev", nic.tap.as_str())])?;
        empty(out, "model", &[("type", "virtio")])
    })
}

/// The XML of a qcow2 volume, and of what it is an overlay of.
#[must_use]
pub fn volume(name: &str, capacity: Size, backing: Option<(&str, ImageFormat)>) -> String {
    document(|out| {
        nest(out, "volume", &[], |out| {
            text(out, "name", &[], name)?;
            let capacity = capacity.bytes().to_string();
            text(out, "capacity", &[("unit", "bytes")], &capacity)?;
            text(out, "allocation", &[("unit", "bytes")], "0")?;
            nest(out, "target", &[], |out| {
                empty(out, "format", &[("type", "qcow2")])?;
                // Before 1.1 a disk with snapshots cannot grow.
                text(out, "compat", &[], "1.1")
            })?;
            let Some((path, format)) = backing else {
                return Ok(());
            };
            nest(out, "backingStore", &[], |out| {
                text(out, "path", &[], path)?;
                let format = match format {
                    ImageFormat::Qcow2 => "qcow2",
                    ImageFormat::Raw => "raw",
                };
                empty(out, "format", &[("type", format)])
            })
        })
    })
}

/// The XML of a snapshot, inside the disk.
#[must_use]
pub fn snapshot(name: &SnapshotName) -> String {
    document(|out| {
        nest(out, "domainsnapshot", &[], |out| {
            text(out, "name", &[], name.as_str())
        })
    })
}

fn document(write: impl FnOnce(&mut Out) -> io::Result<()>) -> String {
    let mut out = Writer::new_with_indent(Vec::new(), b' ', 2);
    // Writing to memory does not fail, and text in is text out.
    write(&mut out)
        .ok()
        .and_then(|()| String::from_utf8(out.into_inner()).ok())
        .unwrap_or_default()
}

fn nest(
    out: &mut Out,
    name: &str,
    attributes: &[(&str, &str)],
    inner: impl FnOnce(&mut Out) -> io::Result<()>,
) -> io::Result<()> {
    out.create_element(name)
        .with_attributes(attributes.iter().copied())
        .write_inner_content(inner)?;
    Ok(())
}

fn text(out: &mut Out, name: &str, attributes: &[(&str, &str)], text: &str) -> io::Result<()> {
    out.create_element(name)
        .with_attributes(attributes.iter().copied())
        .write_text_content(BytesText::new(text))?;
    Ok(())
}

fn empty(out: &mut Out, name: &str, attributes: &[(&str, &str)]) -> io::Result<()> {
    out.create_element(name)
        .with_attributes(attributes.iter().copied())
        .write_empty()?;
    Ok(())
}
