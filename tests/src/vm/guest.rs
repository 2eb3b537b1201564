//! A guest that the harness itself defines, as muster defines its machines, to
//! test image and hypervisor without the rest of muster.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use muster_libvirt::xml;
use muster_protocol::ids::ClusterId;
use muster_protocol::vm::{Machine, Sha256, Virtualisation, VmId};
use serde_json::json;

use super::hypervisor::Hypervisor;
use super::image::Image;
use crate::wait_within;

/// Longest time for what a guest does: it runs in software, on a machine that
/// may have other things to do.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(180);

/// Asks until the answer is `Some`, for something that a guest does.
///
/// # Errors
/// When the bound is reached, naming what was waited for.
pub fn wait_for_guest<T>(what: &str, ask: impl FnMut() -> Option<T>) -> Result<T> {
    wait_within(GUEST_PATIENCE, what, ask)
}

/// What a guest is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its host name, and its domain's.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
    /// Its addresses, with their prefix.
    pub addresses: Vec<String>,
    /// Other files of its seed.
    pub files: Vec<(String, String)>,
}

/// A guest that was started.
#[derive(Debug)]
pub struct Guest<'a> {
    hypervisor: &'a Hypervisor,
    plan: Plan,
}

impl<'a> Guest<'a> {
    /// Makes its disk and its seed in the hypervisor's pool, and starts it.
    ///
    /// # Errors
    /// When one of these fails.
    pub fn start(hypervisor: &'a Hypervisor, image: &Image, plan: Plan) -> Result<Self> {
        let pool = hypervisor.pool();
        image.overlay(&pool.join(format!("{}.qcow2", plan.name)))?;
        let guest = Self { hypervisor, plan };
        guest.write_seed()?;
        let xml = hypervisor.dir().join(format!("{}.xml", guest.plan.name));
        fs::write(&xml, guest.xml()?)?;
        hypervisor.virsh_done(&["define", &xml.to_string_lossy()])?;
        fs::remove_file(xml)?;
        hypervisor.virsh_done(&["start", &guest.plan.name])?;
        Ok(guest)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// What it wrote to its console until now.
    #[must_use]
    pub fn console(&self) -> String {
        let file = self.hypervisor.dir().join("log").join(self.log_name());
        String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
    }

    /// Waits until its console shows this.
    ///
    /// # Errors
    /// When it does not in time; the console is in the error.
    pub fn says(&self, text: &str) -> Result<()> {
        wait_for_guest(text, || self.console().contains(text).then_some(()))
            .with_context(|| self.console())
    }

    /// Its state, in the words of `virsh domstate`.
    ///
    /// # Errors
    /// When libvirt does not know it.
    pub fn state(&self) -> Result<String> {
        let said = self.hypervisor.virsh_done(&["domstate", self.name()])?;
        Ok(said.trim().to_owned())
    }

    /// Waits for a state.
    ///
    /// # Errors
    /// When it does not come in time; the console is in the error.
    pub fn becomes(&self, state: &str) -> Result<()> {
        wait_for_guest(&format!("{} to be {state}", self.name()), || {
            self.state().is_ok_and(|is| is == state).then_some(())
        })
        .with_context(|| self.console())
    }

    /// Takes it away with its disk and its seed.
    ///
    /// # Errors
    /// When something of it stays.
    pub fn remove(self) -> Result<()> {
        let name = self.name();
        if self.state()? != "shut off" {
            self.hypervisor.virsh_done(&["destroy", name])?;
        }
        self.hypervisor.virsh_done(&["undefine", name])?;
        let pool = self.hypervisor.pool();
        fs::remove_file(pool.join(format!("{name}.qcow2")))?;
        fs::remove_file(self.seed())?;
        Ok(())
    }

    fn log_name(&self) -> String {
        format!("{}.console", self.plan.name)
    }

    fn seed(&self) -> PathBuf {
        let pool = self.hypervisor.pool();
        pool.join(format!("{}-seed.img", self.plan.name))
    }

    /// A FAT file system that says who the guest is.
    fn write_seed(&self) -> Result<()> {
        let plan = &self.plan;
        let dir = tempfile::tempdir()?;
        let meta = json!({
            "instance-id": plan.name,
            "local-hostname": plan.name,
        });
        let network = json!({
            "version": 2,
            "ethernets": {"nic0": {
                "match": {"macaddress": plan.mac},
                "addresses": plan.addresses,
                "routes": [{"to": "default", "via": "10.77.0.1"}],
                "nameservers": {"addresses": ["10.77.0.1"]},
            }},
        });
        let mut files = plan.files.clone();
        files.push(("meta-data".into(), meta.to_string()));
        files.push(("network-config".into(), network.to_string()));
        let seed = self.seed();
        let made = fs::File::create(&seed)?;
        made.set_len(1 << 20)?;
        let mtools = |program: &str, args: &[&str]| -> Result<()> {
            let mut command = Command::new(program);
            command.arg("-i").arg(&seed).args(args);
            let said = crate::finish(command);
            ensure!(said.code == 0, "{program}: {}", said.err);
            Ok(())
        };
        mtools(
            "mformat",
            &["-v", "CIDATA", "-T", "2048", "-h", "4", "-s", "16", "::"],
        )?;
        for (name, text) in files {
            let file = dir.path().join(&name);
            fs::write(&file, text)?;
            mtools("mcopy", &[&file.to_string_lossy(), "::/"])?;
        }
        Ok(())
    }

    /// As muster's own machines are.
    fn xml(&self) -> Result<String> {
        let plan = &self.plan;
        let name = plan
            .name
            .parse()
            .map_err(|e| anyhow!("{}: {e}", plan.name))?;
        let cluster = ClusterId::from_bytes([0x77; 16]);
        let digits: String = plan.mac.split(':').skip(3).collect();
        let addresses = plan
            .addresses
            .iter()
            .map(|address| address.split('/').next());
        let machine: Machine = serde_json::from_value(json!({
            "id": VmId::derive(&cluster, &name, 1),
            "name": name,
            "cpus": 1,
            "memory": 256 << 20,
            "image": {
                "name": "guest", "sha256": Sha256::of(b"guest"), "size": 512, "format": "qcow2",
                "virtual_size": 512,
            },
            "disk": { "size": 1 << 30, "pool": "default" },
            "nics": [{
                "network": "lan", "bridge": "br0", "mac": plan.mac, "tap": format!("mt{digits}"),
                "addresses": addresses.collect::<Option<Vec<_>>>(),
            }],
            "autostart": false,
            "ready": "boot",
        }))?;
        let paths = xml::Paths {
            disk: format!("/var/lib/libvirt/images/{name}.qcow2"),
            seed: Some(format!("/var/lib/libvirt/images/{name}-seed.img")),
            console_log: format!("/var/log/libvirt/{}", self.log_name()),
            emulator: None,
        };
        Ok(xml::domain(&machine, &paths, cluster, Virtualisation::Qemu))
    }
}

/// Asks a guest of the image, over TCP, who it is: its host name, and the id
/// of its present start.
///
/// # Errors
/// When it does not answer.
pub fn who_is(address: IpAddr) -> Result<(String, String)> {
    let wait = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, 80), wait)?;
    stream.set_read_timeout(Some(wait))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text.lines().last().context("an empty answer")?;
    let (name, boot) = body.split_once(' ').context("not what the guest says")?;
    Ok((name.to_owned(), boot.to_owned()))
}
