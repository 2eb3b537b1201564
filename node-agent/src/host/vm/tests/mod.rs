//! Machines on a libvirt in memory: what each call comes to, what is refused,
//! and what is left when something goes wrong.

mod collect;
mod faults;
mod images;
mod meaning;
mod program;
mod snapshots;
mod watcher;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use muster_libvirt::message::{Call, Domain, Reply};
use muster_protocol::api::Secret;
use muster_protocol::envelope::Mode;
use muster_protocol::ids::ClusterId;
use muster_protocol::vm::{
    Disk, Enrol, GuestState, ImageFormat, ImageRef, Machine, Owner, Readiness, SeedText, Sha256,
    Size, VmCall, VmId,
};
use muster_scenarios::node::{Change, Performed};
use tokio::sync::watch;

use super::*;

pub(super) fn cluster() -> ClusterId {
    ClusterId::from_bytes([7; 16])
}
pub(super) const GIB: u64 = 1 << 30;
/// How long it is looked for what became of a call.
const PATIENCE: Duration = Duration::from_millis(150);

/// A source that has one image, in pieces.
pub(super) struct Shop {
    pub(super) bytes: Mutex<Vec<u8>>,
    /// Bytes after which the next transfers break off.
    pub(super) breaks: Mutex<Vec<usize>>,
    /// Whether it can go on in the middle.
    pub(super) ranges: bool,
    pub(super) seeds: AtomicUsize,
    pub(super) asked_from: Mutex<Vec<u64>>,
    pub(super) no_seed: Mutex<bool>,
}

impl Source for Shop {
    fn image<'a>(
        &'a self,
        _: &'a ImageRef,
        from: u64,
    ) -> BoxFuture<'a, Result<Coming, SourceError>> {
        self.asked_from.lock().expect("a lock").push(from);
        let from = if self.ranges { from } else { 0 };
        let bytes = self.bytes.lock().expect("a lock").clone();
        let rest = bytes
            .get(usize::try_from(from).expect("small")..)
            .unwrap_or_default();
        let end = self
            .breaks
            .lock()
            .expect("a lock")
            .pop()
            .unwrap_or(rest.len());
        let end = end.min(rest.len());
        let pieces: Vec<_> = rest[..end]
            .chunks(4096)
            .map(|p| Ok(Bytes::copy_from_slice(p)))
            .collect();
        Box::pin(async move {
            Ok(Coming {
                from,
                pieces: stream::iter(pieces).boxed(),
            })
        })
    }

    fn seed(&self, _: VmId) -> BoxFuture<'_, Result<SeedText, SourceError>> {
        let number = self.seeds.fetch_add(1, Ordering::Relaxed);
        let refused = *self.no_seed.lock().expect("a lock");
        Box::pin(async move {
            if refused {
                return Err(SourceError::Nobody("the broker is away".to_owned()));
            }
            Ok(SeedText {
                vendor_data: "#cloud-config\n{}\n".into(),
                user_data: Secret::new(""),
                meta_data: "{}\n".into(),
                network_config: "{\"version\":2}\n".into(),
                enrol: Some(Enrol {
                    brokers: vec!["https://broker.example:7878".into()],
                    token: Secret::new(format!("invite-{number}")),
                }),
            })
        })
    }
}

/// Nobody listens.
pub(super) struct Silence;

impl Progress for Silence {
    fn say(&self, _: String) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A libvirt that stops in the middle of a call, for ever: who waits for it is
/// killed.
pub(super) struct Stuck {
    pub(super) memory: Memory,
    pub(super) left: Mutex<usize>,
    /// Whether the call is done all the same.
    pub(super) after: bool,
}

impl Virt for Stuck {
    fn call(&self, call: Call) -> BoxFuture<'_, Answered<Reply>> {
        let mut left = self.left.lock().expect("a lock");
        if *left == 0 {
            if self.after {
                drop(self.memory.call(call));
            }
            return Box::pin(std::future::pending());
        }
        *left -= 1;
        self.memory.call(call)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.memory.changes()
    }
}

/// A hypervisor.
pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
    pub(super) memory: Memory,
    pub(super) shop: Arc<Shop>,
    pub(super) machines: Machines,
}

pub(super) fn id(name: &str) -> VmId {
    VmId::derive(&cluster(), &name.parse().expect("a name"), 1)
}

pub(super) fn machine(name: &str) -> Machine {
    Machine {
        id: id(name),
        name: name.parse().expect("a name"),
        cpus: 2,
        memory: Size(2 * GIB),
        image: raw_image(),
        disk: Disk {
            size: Size(10 * GIB),
            pool: "default".parse().expect("a name"),
        },
        nics: Vec::new(),
        autostart: true,
        ready: Readiness::Boot,
        account: None,
    }
}

/// The bytes that the shop has.
pub(super) fn content() -> Vec<u8> {
    (0..100 * 512_u32)
        .map(|n| u8::try_from(n % 251).expect("small"))
        .collect()
}

pub(super) fn raw_image() -> ImageRef {
    image_of(&content(), ImageFormat::Raw, content().len() as u64)
}

pub(super) fn image_of(bytes: &[u8], format: ImageFormat, virtual_size: u64) -> ImageRef {
    ImageRef {
        name: "debian-12".parse().expect("a name"),
        sha256: Sha256::of(bytes),
        size: Size(bytes.len() as u64),
        format,
        virtual_size: Size(virtual_size),
    }
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let memory = Memory::new(Having {
            cpus: 8,
            memory: Size(64 * GIB),
            disk: Size(100 * GIB),
            directory: dir.path().join("pool"),
        });
        std::fs::create_dir(dir.path().join("pool")).expect("a directory");
        let shop = Arc::new(Shop {
            bytes: Mutex::new(content()),
            breaks: Mutex::default(),
            ranges: true,
            seeds: AtomicUsize::new(0),
            asked_from: Mutex::default(),
            no_seed: Mutex::default(),
        });
        let machines = Self::machines(Arc::new(memory.clone()), &shop, &dir);
        Self {
            dir,
            memory,
            shop,
            machines,
        }
    }

    fn machines(virt: Arc<dyn Virt>, shop: &Arc<Shop>, dir: &tempfile::TempDir) -> Machines {
        let setting = Setting {
            cluster: cluster(),
            pool: "default".parse().expect("a name"),
            kind: None,
            console: dir.path().join("console"),
        };
        Machines::new(virt.clone(), virt, shop.clone(), setting).patient(PATIENCE)
    }

    /// The same hypervisor by a libvirt that gets stuck.
    pub(super) fn stuck(&self, calls: usize, after: bool) -> Machines {
        let stuck = Stuck {
            memory: self.memory.clone(),
            left: Mutex::new(calls),
            after,
        };
        Self::machines(Arc::new(stuck), &self.shop, &self.dir)
    }

    /// With the image there.
    pub(super) async fn with_image() -> Self {
        let bench = Self::new();
        bench.does(VmCall::Image { image: raw_image() }).await;
        bench.memory.take_calls();
        bench
    }

    pub(super) async fn perform(&self, call: VmCall, mode: Mode) -> Result<Performed, VmError> {
        self.machines.perform(&call, mode, &Silence).await
    }

    /// As one text: what changed.
    pub(super) async fn does(&self, call: VmCall) -> String {
        let what = call.name();
        match self.perform(call, Mode::Apply).await {
            Ok(performed) => shown(&performed),
            Err(e) => panic!("{what}: {e}"),
        }
    }

    pub(super) async fn would(&self, call: VmCall) -> String {
        shown(&self.perform(call, Mode::Check).await.expect("it says so"))
    }

    /// As one text: why not.
    pub(super) async fn refuses(&self, call: VmCall) -> String {
        let what = call.name();
        match self.perform(call, Mode::Apply).await {
            Ok(performed) => panic!("{what}: {}", shown(&performed)),
            Err(e) => e.to_string(),
        }
    }

    pub(super) async fn value(&self, call: VmCall) -> serde_json::Value {
        self.perform(call, Mode::Apply)
            .await
            .expect("it is known")
            .value
    }

    /// What is in the pool's directory and the console's, but for images.
    pub(super) fn files(&self) -> Vec<String> {
        let list = |dir: &str| {
            std::fs::read_dir(self.dir.path().join(dir))
                .into_iter()
                .flatten()
                .map(|entry| {
                    entry
                        .expect("an entry")
                        .file_name()
                        .to_string_lossy()
                        .into_owned()
                })
        };
        let mut all: Vec<String> = list("pool").chain(list("console")).collect();
        all.retain(|name| !name.starts_with("muster-image-"));
        all.sort();
        all
    }

    pub(super) fn pool(&self, name: &str) -> PathBuf {
        self.dir.path().join("pool").join(name)
    }

    pub(super) fn state(&self, id: VmId) -> Option<GuestState> {
        let all = self.memory.domains();
        all.iter()
            .find(|domain| domain.uuid == id)
            .map(|domain| domain.state)
    }
}

pub(super) fn create(name: &str) -> VmCall {
    VmCall::Create {
        machine: Box::new(machine(name)),
    }
}

pub(super) fn destroy(name: &str, purge: bool) -> VmCall {
    VmCall::Destroy {
        id: id(name),
        purge,
    }
}

/// A domain that somebody else made.
pub(super) fn foreign(name: &str, uuid: VmId) -> Domain {
    Domain {
        uuid,
        name: name.to_owned(),
        state: GuestState::Running,
        cpus: 1,
        memory: Size(GIB),
        owner: Owner::Foreign,
        machine: None,
        autostart: false,
        since: None,
        traffic: None,
    }
}

pub(super) fn shown(performed: &Performed) -> String {
    match &performed.change {
        None => "nothing to change".to_owned(),
        Some(Change::Unchanged) => "unchanged".to_owned(),
        Some(Change::Changed { summary, .. }) => format!("changed: {summary}"),
        Some(Change::WouldChange { summary, .. }) => format!("would: {summary}"),
    }
}

/// Nothing of a machine is left.
pub(super) fn assert_gone(bench: &Bench, when: &str) {
    assert_eq!(bench.memory.domains(), [], "{when}");
    assert_eq!(bench.memory.volumes(), Vec::<String>::new(), "{when}");
    assert_eq!(bench.files(), Vec::<String>::new(), "{when}");
}

/// Exactly that machine is there, and runs.
pub(super) fn assert_up(bench: &Bench, name: &str, when: &str) {
    let all = bench.memory.domains();
    assert_eq!(all.len(), 1, "{when}: {all:?}");
    assert_eq!(all[0].machine.as_deref(), Some(&machine(name)), "{when}");
    assert_eq!(all[0].state, GuestState::Running, "{when}");
    assert!(all[0].autostart, "{when}");
    let volume = format!("muster-{}.qcow2", id(name));
    assert_eq!(bench.memory.volumes(), [volume], "{when}");
    let seed = format!("muster-{}-seed.img", id(name));
    assert_eq!(bench.files(), [seed], "{when}");
}

pub(super) fn no_answers() -> BTreeMap<String, String> {
    BTreeMap::new()
}
