//! With a real libvirtd and real guests. They have no operating system: their
//! firmware runs, finds nothing, and waits.

use muster_libvirt::message::{Call, FailureKind, Reply, Said, Volume};
use muster_libvirt::xml;
use muster_protocol::names::PoolName;
use muster_protocol::vm::{GuestState, ImageFormat, Machine, Owner, Size, Virtualisation};

use crate::client::Program;
use crate::daemon::Daemon;
use crate::machines::{cluster, definition, machine, with_seed};

fn pool(name: &str) -> PoolName {
    name.parse().expect("a name")
}

/// A machine's disk and its definition, by the program.
fn made(daemon: &Daemon, program: &mut Program, machine: &Machine) -> Volume {
    let file = format!("{}.qcow2", machine.id);
    let xml = xml::volume(&file, machine.disk.size, None);
    let pool = machine.disk.pool.clone();
    let Reply::Volume(Some(volume)) = program.get(Call::CreateVolume { pool, xml }) else {
        panic!("no volume");
    };
    let xml = defined(daemon, machine, &volume);
    program.done(Call::Define { xml });
    volume
}

/// The definition of a machine with a seed.
fn defined(daemon: &Daemon, machine: &Machine, disk: &Volume) -> String {
    let seed = daemon.path("pool/seed.img");
    std::fs::write(&seed, vec![0; 1 << 20]).expect("a file");
    let log = daemon.path("log/console.log");
    let (seed, log) = (seed.to_str(), log.to_str().expect("text"));
    with_seed(machine, &disk.path, log, seed)
}

#[test]
fn a_machine_from_its_disk_to_its_end() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let mut program = Program::start(&daemon.uri());
    let Reply::Host(host) = program.get(Call::Host) else {
        panic!("no host");
    };
    assert_eq!(host.virtualisation, Some(Virtualisation::Qemu));
    assert_eq!(
        host.emulator.as_deref(),
        Some("/usr/bin/qemu-system-x86_64")
    );

    // The disk, over an image that came into the pool behind its back.
    let file = daemon.path("pool/base.img");
    std::fs::write(&file, vec![0; 1 << 20]).expect("a file");
    let path = file.to_str().expect("text");
    let base = Some((path, ImageFormat::Raw));
    let mut wanted = machine("web-03", "default");
    let uuid = wanted.id;
    let name = || format!("{uuid}.qcow2");
    let xml = xml::volume(&name(), wanted.disk.size, base);
    let create = Call::CreateVolume {
        pool: pool("default"),
        xml,
    };
    let Reply::Volume(Some(disk)) = program.get(create.clone()) else {
        panic!("no volume");
    };
    assert_eq!(disk.capacity, Size(16 << 20));
    let info = daemon.shell(&format!("qemu-img info --output=json {}", disk.path));
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["format"], "qcow2");
    assert_eq!(info["backing-filename"], path);
    assert_eq!(info["backing-filename-format"], "raw");
    assert_eq!(info["format-specific"]["data"]["compat"], "1.1");
    program.fails(create, FailureKind::Exists);

    // The domain.
    let seed = daemon.path("pool/seed.img");
    std::fs::write(&seed, vec![0; 1 << 20]).expect("a file");
    let log = daemon.path("log/web-03 <&'\">.log");
    let nic = serde_json::json!({
        "network": "test", "bridge": "br-test", "mac": uuid.mac(0), "tap": uuid.tap(0),
    });
    wanted.nics = vec![serde_json::from_value(nic).expect("an interface")];
    let paths = xml::Paths {
        disk: disk.path.clone(),
        seed: Some(seed.to_str().expect("text").into()),
        console_log: log.to_str().expect("text").into(),
        emulator: host.emulator,
    };
    let define = |machine: &Machine| Call::Define {
        xml: xml::domain(machine, &paths, cluster(), Virtualisation::Qemu),
    };
    program.done(define(&wanted));
    program.done(define(&wanted));
    let found = program.domain(uuid);
    assert_eq!(found.owner, Owner::Muster { cluster: cluster() });
    assert_eq!(found.machine.as_deref(), Some(&wanted));
    assert_eq!((found.cpus, found.memory), (1, Size(64 << 20)));
    assert_eq!((found.state, found.autostart), (GuestState::Stopped, false));
    assert_eq!(program.get(Call::Domains), Reply::Domains(vec![found]));

    program.done(Call::Start { uuid });
    program.event(uuid, "started");
    program.done(Call::Start { uuid });
    assert_eq!(program.domain(uuid).state, GuestState::Running);
    assert!(log.exists(), "the console goes to a file");
    let tap = uuid.tap(0);
    let taps = daemon.shell("ip -oneline link show master br-test");
    assert!(taps.contains(tap.as_str()), "{taps}");
    let agent = Call::GuestAgent {
        uuid,
        command: r#"{"execute": "guest-ping"}"#.into(),
        seconds: 1,
    };
    program.fails(agent, FailureKind::NoAgent);

    // More for the next start, and a larger disk now.
    wanted.memory = Size(96 << 20);
    program.done(define(&wanted));
    assert_eq!(program.domain(uuid).memory, Size(96 << 20));
    let grow = |size: u64, open_in| Call::GrowVolume {
        pool: pool("default"),
        name: name(),
        size: Size(size),
        open_in,
    };
    program.done(grow(24 << 20, Some(uuid)));
    program.done(grow(24 << 20, Some(uuid)));
    program.fails(grow(16 << 20, Some(uuid)), FailureKind::State);
    // Nobody writes to a disk that is in use.
    program.fails(grow(32 << 20, None), FailureKind::State);

    program.done(Call::Kill { uuid });
    program.event(uuid, "stopped");
    program.done(Call::Kill { uuid });
    program.done(grow(32 << 20, Some(uuid)));
    let Reply::Volume(Some(disk)) = program.get(Call::Volume {
        pool: pool("default"),
        name: name(),
    }) else {
        panic!("no volume");
    };
    assert_eq!(disk.capacity, Size(32 << 20));

    program.done(Call::Autostart { uuid, on: true });
    assert!(program.domain(uuid).autostart);
    program.done(Call::Undefine { uuid });
    program.fails(Call::Undefine { uuid }, FailureKind::Missing);
    for name in [name(), "base.img".into(), "seed.img".into(), name()] {
        let pool = pool("default");
        program.done(Call::DeleteVolume { pool, name });
    }
    // Nothing is left.
    let volumes = Call::Volumes {
        pool: pool("default"),
    };
    assert_eq!(program.get(volumes), Reply::Volumes(vec![]));
    assert_eq!(program.get(Call::Domains), Reply::Domains(vec![]));
    assert_eq!(
        daemon.shell("ls /etc/libvirt/qemu/autostart; ip link show master br-test"),
        ""
    );
    let left = std::fs::read_dir(daemon.path("pool")).expect("a directory");
    assert_eq!(left.count(), 0);
}

#[test]
fn what_happens_by_hand_is_told() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let mut program = Program::start(&daemon.uri());
    let wanted = machine("web-03", "default");
    let uuid = wanted.id;
    made(&daemon, &mut program, &wanted);
    program.event(uuid, "defined");

    daemon.virsh(&["start", "web-03"]);
    program.event(uuid, "started");
    daemon.virsh(&["suspend", "web-03"]);
    program.event(uuid, "suspended");
    assert_eq!(program.domain(uuid).state, GuestState::Paused);
    program.done(Call::Start { uuid });
    assert_eq!(program.domain(uuid).state, GuestState::Running);
    daemon.virsh(&["destroy", "web-03"]);
    program.event(uuid, "stopped");
    assert_eq!(program.domain(uuid).state, GuestState::Stopped);

    program.done(Call::Start { uuid });
    daemon.shell("kill -9 $(cat /run/libvirt/qemu/web-03.pid)");
    program.event(uuid, "crashed");
    assert_eq!(program.domain(uuid).state, GuestState::Crashed);
    program.done(Call::Start { uuid });
    assert_eq!(program.domain(uuid).state, GuestState::Running);
    program.done(Call::Kill { uuid });

    // A copy of it, and a domain of that name with nothing of muster's.
    let copy = daemon.virsh(&["dumpxml", "--inactive", "web-03"]);
    let theirs = "11111111-2222-3333-4444-555555555555";
    let copy = copy
        .replace("<name>web-03</name>", "<name>web-04</name>")
        .replace(
            &format!("<uuid>{uuid}</uuid>"),
            &format!("<uuid>{theirs}</uuid>"),
        );
    let file = daemon.path("copy.xml");
    std::fs::write(&file, copy).expect("a file");
    daemon.virsh(&["define", file.to_str().expect("text")]);
    let theirs = theirs.parse().expect("a UUID");
    program.event(theirs, "defined");
    let found = program.domain(theirs);
    assert_eq!((found.owner, found.machine), (Owner::Foreign, None));
    daemon.virsh(&["start", "web-04"]);
    program.event(theirs, "started");
    program.fails(Call::Kill { uuid: theirs }, FailureKind::Other);
    let taken = machine("web-04", "default");
    let xml = definition(&taken, "/nowhere/disk", "/nowhere/log");
    program.fails(Call::Define { xml }, FailureKind::Exists);
    assert_eq!(program.domain(theirs).state, GuestState::Running);

    // Without its disk it does not start, and says why.
    let missing = machine("web-05", "default");
    let uuid = missing.id;
    let log = daemon.path("log/x.log");
    let xml = definition(&missing, "/nowhere/disk", log.to_str().expect("text"));
    program.done(Call::Define { xml });
    let why = program.fails(Call::Start { uuid }, FailureKind::Other);
    assert!(why.contains("/nowhere/disk"), "{why}");
    assert_eq!(program.domain(uuid).state, GuestState::Stopped);
}

#[test]
fn libvirtd_dies_and_guests_do_not() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let mut program = Program::start(&daemon.uri());
    let wanted = machine("web-03", "default");
    let uuid = wanted.id;
    made(&daemon, &mut program, &wanted);
    program.done(Call::Start { uuid });

    daemon.kill_libvirtd();
    let lost = loop {
        match program.said() {
            Some(Said::Event { .. }) => {}
            other => break other,
        }
    };
    assert!(matches!(lost, Some(Said::Lost { .. })), "{lost:?}");
    assert_eq!(program.said(), None);
    assert_eq!(program.end().code(), Some(1));
    let mut nobody = Program::spawn(&daemon.uri());
    assert!(matches!(nobody.said(), Some(Said::Lost { .. })));

    daemon.start_libvirtd();
    let mut program = Program::start(&daemon.uri());
    let found = program.domain(uuid);
    assert_eq!(found.state, GuestState::Running);
    assert_eq!(found.machine.as_deref(), Some(&wanted));
    // The pool was started by the one before; it is started again.
    let pool = pool("default");
    assert!(matches!(program.get(Call::Pool { pool }), Reply::Pool(_)));
    program.done(Call::Kill { uuid });
}

#[test]
fn snapshots_of_a_disk() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let mut program = Program::start(&daemon.uri());
    let mut wanted = machine("web-03", "default");
    let uuid = wanted.id;
    let disk = made(&daemon, &mut program, &wanted);
    // What the guest would have written.
    let write = |what: &str| {
        let path = &disk.path;
        daemon.shell(&format!("qemu-io -c 'write -P {what} 0 4096' {path}"));
    };
    let holds = |what: &str| {
        let path = &disk.path;
        let said = daemon.shell(&format!("qemu-io -c 'read -P {what} 0 4096' {path}"));
        assert!(!said.contains("failed"), "{said}");
    };
    let snapshot = |name: &str| Call::Snapshot {
        uuid,
        name: name.parse().expect("a name"),
    };
    let restore = |name: &str| Call::Restore {
        uuid,
        name: name.parse().expect("a name"),
    };

    // Stopped.
    write("1");
    program.done(snapshot("stopped"));
    program.fails(snapshot("stopped"), FailureKind::Exists);
    write("2");
    holds("2");
    program.done(restore("stopped"));
    holds("1");
    assert_eq!(program.domain(uuid).state, GuestState::Stopped);

    // Running, and wanted larger since.
    write("3");
    program.done(Call::Start { uuid });
    program.done(snapshot("running"));
    program.done(Call::Kill { uuid });
    write("4");
    wanted.memory = Size(96 << 20);
    let xml = defined(&daemon, &wanted, &disk);
    program.done(Call::Define { xml });
    program.done(restore("running"));
    assert_eq!(program.domain(uuid).state, GuestState::Stopped);
    assert_eq!(program.domain(uuid).machine.as_deref(), Some(&wanted));
    assert_eq!(program.domain(uuid).memory, Size(96 << 20));
    holds("3");

    // What runs runs on.
    program.done(Call::Start { uuid });
    program.done(restore("stopped"));
    assert_eq!(program.domain(uuid).state, GuestState::Running);
    program.done(restore("running"));
    assert_eq!(program.domain(uuid).state, GuestState::Running);
    assert_eq!(program.domain(uuid).machine.as_deref(), Some(&wanted));
    program.done(Call::Kill { uuid });
    holds("3");

    program.fails(restore("never"), FailureKind::Missing);
    let names = Reply::Snapshots(vec!["running".into(), "stopped".into()]);
    assert_eq!(program.get(Call::Snapshots { uuid }), names);

    // Known again by what was known of them, when the domain was forgotten.
    let Reply::Snapshots(all) = program.get(Call::SnapshotDefinitions { uuid }) else {
        panic!("no definitions");
    };
    program.done(Call::Undefine { uuid });
    let xml = defined(&daemon, &wanted, &disk);
    program.done(Call::Define { xml });
    let none = Reply::Snapshots(Vec::new());
    assert_eq!(program.get(Call::Snapshots { uuid }), none);
    for xml in all.iter().chain(&all) {
        let xml = xml.clone();
        program.done(Call::DefineSnapshot { uuid, xml });
    }
    assert_eq!(program.get(Call::Snapshots { uuid }), names);
    program.done(restore("stopped"));
    holds("1");
    program.done(restore("running"));
    holds("3");
    assert_eq!(program.domain(uuid).machine.as_deref(), Some(&wanted));

    // Nothing is under way, whether it runs or not, and the definition is the
    // same afterwards.
    let Reply::Text(before) = program.get(Call::Definition { uuid }) else {
        panic!("no definition");
    };
    assert_eq!(program.get(Call::Busy { uuid }), Reply::Busy(false));
    program.done(Call::Start { uuid });
    assert_eq!(program.get(Call::Busy { uuid }), Reply::Busy(false));
    program.done(restore("stopped"));
    program.done(Call::Kill { uuid });
    let after = program.get(Call::Definition { uuid });
    assert_eq!(after, Reply::Text(before));

    // A disk with snapshots grows, too.
    let grow = Call::GrowVolume {
        pool: pool("default"),
        name: disk.name.clone(),
        size: Size(32 << 20),
        open_in: None,
    };
    program.done(grow);
    program.done(Call::Undefine { uuid });
    assert_eq!(program.get(Call::Domain { uuid }), Reply::Domain(None));
}

#[test]
fn a_full_pool_is_full() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let mut program = Program::start(&daemon.uri());
    let Reply::Pool(found) = program.get(Call::Pool {
        pool: pool("small"),
    }) else {
        panic!("no pool");
    };
    assert_eq!(
        (found.capacity, found.available),
        (Size(1 << 20), Size(1 << 20))
    );
    let fill = daemon.path("small/fill");
    daemon.shell(&format!("head -c 1000000 /dev/zero >{}", fill.display()));
    let Reply::Pool(found) = program.get(Call::Pool {
        pool: pool("small"),
    }) else {
        panic!("no pool");
    };
    assert!(found.available < Size(64 << 10), "{found:?}");

    let xml = xml::volume("a.qcow2", Size(16 << 20), None);
    let create = Call::CreateVolume {
        pool: pool("small"),
        xml,
    };
    program.fails(create.clone(), FailureKind::Space);
    assert_eq!(
        daemon.shell(&format!("ls {}", daemon.path("small").display())),
        "fill\n"
    );
    let delete = |name: &str| Call::DeleteVolume {
        pool: pool("small"),
        name: name.into(),
    };
    program.done(delete("fill"));
    assert!(matches!(program.get(create), Reply::Volume(Some(_))));
    // Its file goes, and nobody tells the pool.
    daemon.shell(&format!("rm {}", daemon.path("small/a.qcow2").display()));
    let volume = Call::Volume {
        pool: pool("small"),
        name: "a.qcow2".into(),
    };
    assert_eq!(program.get(volume), Reply::Volume(None));
    program.done(delete("a.qcow2"));
}
