//! Reading what libvirt says. Anybody with rights on the host can have put
//! anything into it: what is not understood is nobody's of ours.

use std::collections::BTreeMap;

use muster_protocol::ids::ClusterId;
use muster_protocol::vm::{Machine, Owner, Size, Virtualisation, VmId};
use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::reader::NsReader;

use super::NAMESPACE;

/// The longest XML that is looked at, in bytes.
pub const MAX_XML: usize = 4 << 20;
/// How deep elements may be in each other.
const MAX_DEPTH: usize = 64;
/// Most attributes of an element.
const MAX_ATTRIBUTES: usize = 64;
/// The longest text of one element that is kept.
const MAX_TEXT: usize = 256 << 10;

/// What stands in the definition of a domain.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Its UUID; none when that cannot be read.
    pub uuid: Option<VmId>,
    /// Its name; none when that cannot be read.
    pub name: Option<String>,
    /// Whose it is.
    pub owner: Owner,
    /// What muster wanted of it; none when it is foreign.
    pub machine: Option<Box<Machine>>,
    /// Processors; 0 when that cannot be read.
    pub cpus: u16,
    /// Memory; 0 when that cannot be read.
    pub memory: Size,
    /// The files of its disks, by what the guest calls them.
    pub disks: BTreeMap<String, String>,
}

impl Definition {
    fn unread() -> Self {
        Self {
            uuid: None,
            name: None,
            owner: Owner::Foreign,
            machine: None,
            cpus: 0,
            memory: Size(0),
            disks: BTreeMap::new(),
        }
    }
}

/// Reads the XML of a domain. It is muster's only when it says so in muster's
/// metadata, once, and the machine in there has the domain's own UUID and
/// name: a copy of a machine of muster is foreign.
#[must_use]
pub fn read_domain(xml: &str) -> Definition {
    let mut found = Definition::unread();
    let mut claims: Vec<(Option<String>, String)> = Vec::new();
    let mut disk = (None, None);
    let whole = walk(xml, |node| match node.path {
        ["domain", "uuid"] => found.uuid = node.text.trim().parse().ok(),
        ["domain", "name"] => found.name = Some(node.text),
        ["domain", "vcpu"] => found.cpus = node.text.trim().parse().unwrap_or(0),
        ["domain", "memory"] => found.memory = memory(&node),
        ["domain", "metadata", "muster:machine"] => {
            claims.push((node.attribute("cluster"), node.text));
        }
        ["domain", "devices", "disk", "source"] => disk.0 = node.attribute("file"),
        ["domain", "devices", "disk", "target"] => disk.1 = node.attribute("dev"),
        ["domain", "devices", "disk"] => {
            if let (Some(file), Some(dev)) = (disk.0.take(), disk.1.take()) {
                found.disks.insert(dev, file);
            }
            disk = (None, None);
        }
        _ => {}
    });
    if whole.is_none() {
        return Definition::unread();
    }
    let [(Some(cluster), json)] = claims.as_slice() else {
        return found;
    };
    let machine = serde_json::from_str::<Machine>(json).ok();
    let (Ok(cluster), Some(machine)) = (cluster.parse::<ClusterId>(), machine) else {
        return found;
    };
    let name = found.name.as_deref();
    if Some(machine.id) == found.uuid && name == Some(machine.name.as_str()) {
        found.owner = Owner::Muster { cluster };
        found.machine = Some(Box::new(machine));
    }
    found
}

fn memory(node: &Node<'_>) -> Size {
    // The names that libvirt knows; it writes KiB itself.
    let unit: u64 = match node.attribute("unit").as_deref() {
        Some("b" | "bytes") => 1,
        Some("KB") => 1_000,
        None | Some("k" | "KiB") => 1 << 10,
        Some("MB") => 1_000_000,
        Some("M" | "MiB") => 1 << 20,
        Some("GB") => 1_000_000_000,
        Some("G" | "GiB") => 1 << 30,
        Some("TB") => 1_000_000_000_000,
        Some("T" | "TiB") => 1 << 40,
        Some(_) => 0,
    };
    let number: u64 = node.text.trim().parse().unwrap_or(0);
    Size(number.checked_mul(unit).unwrap_or(0))
}

/// What a host can do with guests, by its capabilities.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Capabilities {
    /// What works best of what libvirt lists for the host's own processor.
    pub virtualisation: Option<Virtualisation>,
    /// The program that runs such guests.
    pub emulator: Option<String>,
}

/// Reads the capabilities of a host.
#[must_use]
pub fn read_capabilities(xml: &str) -> Capabilities {
    let mut host = None;
    let mut guests: Vec<Capable> = Vec::new();
    let (mut now, mut own) = (Capable::default(), None);
    let whole = walk(xml, |node| match node.path {
        ["capabilities", "host", "cpu", "arch"] => host = Some(node.text),
        ["capabilities", "guest", "arch", "emulator"] => now.emulator = Some(node.text),
        ["capabilities", "guest", "arch", "domain", "emulator"] => own = Some(node.text),
        ["capabilities", "guest", "arch", "domain"] => {
            if let Some(kind) = node.attribute("type") {
                now.kinds.insert(kind, own.take());
            }
        }
        ["capabilities", "guest", "os_type"] => now.os = node.text,
        ["capabilities", "guest", "arch"] => now.arch = node.attribute("name"),
        ["capabilities", "guest"] => guests.push(std::mem::take(&mut now)),
        _ => {}
    });
    if whole.is_none() {
        return Capabilities::default();
    }
    let guest = guests
        .iter()
        .find(|guest| guest.os == "hvm" && guest.arch.is_some() && guest.arch == host);
    let Some(guest) = guest else {
        return Capabilities::default();
    };
    for (kind, virtualisation) in [("kvm", Virtualisation::Kvm), ("qemu", Virtualisation::Qemu)] {
        if let Some(own) = guest.kinds.get(kind) {
            return Capabilities {
                virtualisation: Some(virtualisation),
                emulator: own.clone().or_else(|| guest.emulator.clone()),
            };
        }
    }
    Capabilities::default()
}

/// Guests of one kind of processor.
#[derive(Default)]
struct Capable {
    os: String,
    arch: Option<String>,
    emulator: Option<String>,
    /// How they run, and the program of just that way.
    kinds: BTreeMap<String, Option<String>>,
}

/// Where the bytes of a disk are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DiskSource {
    /// A file or a device of the host.
    Path(String),
    /// A volume of a storage pool.
    Volume {
        /// Which pool.
        pool: String,
        /// Which volume.
        volume: String,
    },
    /// Not on the host, as far as can be seen: by which protocol or kind.
    Elsewhere(String),
}

/// A disk of a domain, or of a snapshot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiskRead {
    /// Whether it is a drive for media, which may be empty.
    pub removable: bool,
    /// Whether its bytes are the guest's own, with nothing in them that QEMU
    /// obeys.
    pub raw: bool,
    /// Where its bytes are, with what libvirt knows of the layers below it.
    pub sources: Vec<DiskSource>,
}

/// The disks of a domain or of a snapshot, with all layers that libvirt knows
/// of. None when that cannot be read.
#[must_use]
pub fn read_disks(xml: &str) -> Option<Vec<DiskRead>> {
    let empty = || DiskRead {
        removable: false,
        raw: false,
        sources: Vec::new(),
    };
    let (mut all, mut now) = (Vec::new(), empty());
    walk(xml, |node| match node.path {
        [.., "disk", "driver"] => now.raw = node.attribute("type").as_deref() == Some("raw"),
        [.., "source"] if node.path.contains(&"disk") => now.sources.extend(source(&node)),
        [.., "disk"] => {
            let kind = node.attribute("device");
            now.removable = matches!(kind.as_deref(), Some("cdrom" | "floppy"));
            all.push(std::mem::replace(&mut now, empty()));
        }
        _ => {}
    })?;
    Some(all)
}

/// What one says; none of an empty drive.
fn source(node: &Node<'_>) -> Option<DiskSource> {
    if let Some(path) = node.attribute("file").or_else(|| node.attribute("dev")) {
        return Some(DiskSource::Path(path));
    }
    if let (Some(pool), Some(volume)) = (node.attribute("pool"), node.attribute("volume")) {
        return Some(DiskSource::Volume { pool, volume });
    }
    // The socket of who reserves a device for it has a path, and no protocol.
    let other = node.attribute("protocol").or_else(|| {
        let kind = node.attribute("type")?;
        node.attribute("path").is_none().then_some(kind)
    });
    other.map(DiskSource::Elsewhere)
}

/// The directory of a storage pool.
#[must_use]
pub fn read_pool_path(xml: &str) -> Option<String> {
    let mut path = None;
    walk(xml, |node| {
        if let ["pool", "target", "path"] = node.path {
            path = path.take().or(Some(node.text));
        }
    })?;
    path
}

/// Whether a snapshot is of a machine that did not run: of its disk alone.
#[must_use]
pub fn read_snapshot_is_of_disk(xml: &str) -> bool {
    let mut state = None;
    let whole = walk(xml, |node| {
        if let ["domainsnapshot", "state"] = node.path {
            state = state.take().or(Some(node.text));
        }
    });
    whole.is_some() && matches!(state.as_deref(), Some("shutoff" | "crashed"))
}

/// The name of a snapshot.
#[must_use]
pub fn read_snapshot_name(xml: &str) -> Option<String> {
    let mut name = None;
    walk(xml, |node| {
        if let ["domainsnapshot", "name"] = node.path {
            name = name.take().or(Some(node.text));
        }
    })?;
    name
}

/// An element at its end.
struct Node<'a> {
    /// Where: `?` for what is in another namespace, `muster:` before what is
    /// in muster's, whatever prefix it has there.
    path: &'a [&'a str],
    /// Its own text, up to [`MAX_TEXT`].
    text: String,
    attributes: Vec<(String, String)>,
}

impl Node<'_> {
    fn attribute(&self, name: &str) -> Option<String> {
        let mut all = self.attributes.iter();
        all.find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    }
}

/// An element that is not at its end yet.
struct Open {
    name: String,
    text: String,
    attributes: Vec<(String, String)>,
}

/// Shows every element at its end. None as soon as it is not well-formed, too long or too deep.
fn walk(xml: &str, mut see: impl FnMut(Node<'_>)) -> Option<()> {
    if xml.len() > MAX_XML {
        return None;
    }
    let mut reader = NsReader::from_str(xml);
    reader.config_mut().expand_empty_elements = true;
    let mut open: Vec<Open> = Vec::new();
    let mut roots = 0;
    loop {
        let (namespace, event) = reader.read_resolved_event().ok()?;
        match event {
            Event::Start(start) => {
                roots += usize::from(open.is_empty());
                if open.len() >= MAX_DEPTH || roots > 1 {
                    return None;
                }
                let namespace = match namespace {
                    ResolveResult::Unbound => None,
                    ResolveResult::Bound(name) => Some(name.0.to_owned()),
                    ResolveResult::Unknown(_) => return None,
                };
                open.push(opened(&start, namespace)?);
            }
            Event::End(_) => {
                let this = open.pop()?;
                let mut path: Vec<&str> = open.iter().map(|open| open.name.as_str()).collect();
                path.push(&this.name);
                see(Node {
                    path: &path,
                    text: this.text,
                    attributes: this.attributes,
                });
            }
            Event::Text(text) => add(&mut open, &text.xml_content(XmlVersion::Implicit1_0))?,
            Event::CData(text) => add(&mut open, &text.xml_content(XmlVersion::Implicit1_0))?,
            Event::GeneralRef(name) => {
                let text = match name.resolve_char_ref().ok()? {
                    Some(letter) => letter.to_string(),
                    // No document defines entities of its own here.
                    None => quick_xml::escape::resolve_predefined_entity(
                        &name.xml_content(XmlVersion::Implicit1_0),
                    )?
                    .to_owned(),
                };
                add(&mut open, &text)?;
            }
            // libvirt writes none, and entities are made in it.
            Event::DocType(_) => return None,
            Event::Eof => return (open.is_empty() && roots == 1).then_some(()),
            _ => {}
        }
    }
}

fn opened(start: &BytesStart<'_>, namespace: Option<String>) -> Option<Open> {
    let local = start.local_name();
    let name = match namespace.as_deref() {
        None => local.as_ref().to_owned(),
        Some(NAMESPACE) => format!("muster:{}", local.as_ref()),
        Some(_) => String::from("?"),
    };
    let mut attributes = Vec::new();
    for attribute in start.attributes() {
        // Each is compared with all before it.
        if attributes.len() >= MAX_ATTRIBUTES {
            return None;
        }
        let attribute = attribute.ok()?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).ok()?;
        attributes.push((attribute.key.as_ref().to_owned(), value.into_owned()));
    }
    Some(Open {
        name,
        text: String::new(),
        attributes,
    })
}

fn add(open: &mut [Open], text: &str) -> Option<()> {
    match open.last_mut() {
        Some(open) if open.text.len() + text.len() <= MAX_TEXT => open.text.push_str(text),
        Some(_) => return None,
        None if text.trim().is_empty() => {}
        None => return None,
    }
    Some(())
}
