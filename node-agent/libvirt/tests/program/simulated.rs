//! On libvirt's test driver: no daemon, no guests.

use muster_libvirt::message::{Call, Failure, FailureKind, Reply, Said};
use muster_libvirt::xml;
use muster_protocol::names::PoolName;
use muster_protocol::vm::{GuestState, Owner, Size};

use crate::client::Program;
use crate::machines::{cluster, definition, machine};

const URI: &str = "test:///default";

fn pool() -> PoolName {
    "default-pool".parse().expect("a name")
}

/// The test driver runs domains of its own kind only.
fn define(machine: &muster_protocol::vm::Machine) -> Call {
    let xml = definition(machine, "/default-pool/x", "/nowhere/x.log");
    let xml = xml.replace("type=\"qemu\"", "type=\"test\"");
    Call::Define { xml }
}

#[test]
fn a_machine_lives() {
    let mut program = Program::start(URI);
    let mut wanted = machine("web-03", "default-pool");
    let uuid = wanted.id;
    assert_eq!(program.get(Call::Domain { uuid }), Reply::Domain(None));
    program.fails(Call::Start { uuid }, FailureKind::Missing);
    program.fails(Call::Undefine { uuid }, FailureKind::Missing);

    program.done(define(&wanted));
    program.event(uuid, "defined");
    let found = program.domain(uuid);
    assert_eq!(found.state, GuestState::Stopped);
    assert_eq!(found.owner, Owner::Muster { cluster: cluster() });
    assert_eq!(found.machine.as_deref(), Some(&wanted));
    assert_eq!((found.cpus, found.memory), (1, Size(64 << 20)));

    // Once more, and then larger: the same domain.
    program.done(define(&wanted));
    wanted.cpus = 2;
    program.done(define(&wanted));
    assert_eq!(program.domain(uuid).cpus, 2);

    program.done(Call::Kill { uuid });
    program.done(Call::Start { uuid });
    program.event(uuid, "started");
    program.done(Call::Start { uuid });
    assert_eq!(program.domain(uuid).state, GuestState::Running);
    program.done(Call::Shutdown { uuid });
    program.event(uuid, "stopped");
    program.fails(Call::Shutdown { uuid }, FailureKind::State);
    program.done(Call::Start { uuid });
    program.done(Call::Kill { uuid });
    program.done(Call::Kill { uuid });
    assert_eq!(program.domain(uuid).state, GuestState::Stopped);

    program.done(Call::Autostart { uuid, on: true });
    assert!(program.domain(uuid).autostart);
    program.done(Call::Undefine { uuid });
    assert_eq!(program.get(Call::Domain { uuid }), Reply::Domain(None));
    program.hang_up();
    assert!(program.end().success());
}

#[test]
fn snapshots() {
    let mut program = Program::start(URI);
    let wanted = machine("web-03", "default-pool");
    let uuid = wanted.id;
    let name = || "before".parse().expect("a name");
    program.fails(Call::Snapshots { uuid }, FailureKind::Missing);
    program.done(define(&wanted));
    assert_eq!(
        program.get(Call::Snapshots { uuid }),
        Reply::Snapshots(vec![])
    );
    program.fails(Call::Restore { uuid, name: name() }, FailureKind::Missing);
    program.done(Call::Snapshot { uuid, name: name() });
    program.fails(Call::Snapshot { uuid, name: name() }, FailureKind::Exists);
    let names = Reply::Snapshots(vec!["before".into()]);
    assert_eq!(program.get(Call::Snapshots { uuid }), names);

    // What was wanted since stays wanted.
    let mut larger = wanted;
    larger.cpus = 4;
    program.done(define(&larger));
    program.done(Call::Restore { uuid, name: name() });
    let found = program.domain(uuid);
    assert_eq!((found.state, found.cpus), (GuestState::Stopped, 4));
    assert_eq!(found.machine.as_deref(), Some(&larger));
    program.done(Call::Undefine { uuid });
}

#[test]
fn what_is_not_musters_is_seen_and_not_touched() {
    let mut program = Program::start(URI);
    let Reply::Domain(Some(theirs)) = program.get(Call::Named {
        name: "test".into(),
    }) else {
        panic!("the driver's own domain");
    };
    let uuid = theirs.uuid;
    assert_eq!(theirs.owner, Owner::Foreign);
    assert_eq!(program.domain(uuid), theirs);
    assert_eq!(
        program.get(Call::Domains),
        Reply::Domains(vec![theirs.clone()])
    );
    let name = || "x".parse().expect("a name");
    for call in [
        Call::Kill { uuid },
        Call::Start { uuid },
        Call::Shutdown { uuid },
        Call::Undefine { uuid },
        Call::Autostart { uuid, on: true },
        Call::Snapshot { uuid, name: name() },
        Call::Restore { uuid, name: name() },
    ] {
        let why = program.fails(call, FailureKind::Other);
        assert_eq!(why, "the domain `test` is not muster's: it is not touched");
    }
    // Neither by its UUID nor by its name.
    let mut taken = machine("test", "default-pool");
    program.fails(define(&taken), FailureKind::Exists);
    taken.id = uuid;
    program.fails(define(&taken), FailureKind::Exists);
    assert_eq!(program.domain(uuid), theirs);
    assert!(matches!(program.get(Call::Xml { uuid }), Reply::Text(text) if text.contains("test")));
}

#[test]
fn volumes() {
    let mut program = Program::start(URI);
    let name = || "a.qcow2".to_owned();
    let xml = xml::volume(&name(), Size(64 << 20), None);
    let volume = || Call::Volume {
        pool: pool(),
        name: name(),
    };
    assert_eq!(program.get(volume()), Reply::Volume(None));
    let create = Call::CreateVolume { pool: pool(), xml };
    let Reply::Volume(Some(made)) = program.get(create.clone()) else {
        panic!("no volume");
    };
    assert_eq!(
        (made.name.as_str(), made.capacity),
        ("a.qcow2", Size(64 << 20))
    );
    program.fails(create, FailureKind::Exists);
    assert_eq!(program.get(volume()), Reply::Volume(Some(made.clone())));
    let Reply::Volumes(all) = program.get(Call::Volumes { pool: pool() }) else {
        panic!("no volumes");
    };
    assert_eq!(all, [made]);

    let grow = |size| Call::GrowVolume {
        pool: pool(),
        name: name(),
        size: Size(size),
        open_in: None,
    };
    program.done(grow(64 << 20));
    let why = program.fails(grow(1 << 20), FailureKind::State);
    assert_eq!(
        why,
        "`a.qcow2` is 64MiB, and a disk only grows: it cannot be 1MiB"
    );

    let delete = || Call::DeleteVolume {
        pool: pool(),
        name: name(),
    };
    program.done(delete());
    program.done(delete());
    program.fails(grow(1 << 30), FailureKind::Missing);

    program.done(Call::Refresh { pool: pool() });
    let Reply::Pool(found) = program.get(Call::Pool { pool: pool() }) else {
        panic!("no pool");
    };
    assert_eq!(found.path.as_deref(), Some("/default-pool"));
    assert!(found.available <= found.capacity, "{found:?}");
    let other: PoolName = "no-such".parse().expect("a name");
    program.fails(Call::Pool { pool: other }, FailureKind::Missing);
}

#[test]
fn bad_input_changes_nothing() {
    let mut program = Program::start(URI);
    // Without a number there is nobody to answer.
    program.write(b"");
    program.write(b"]");
    program.write(&[0xff, 0x00]);
    program.write(&vec![b'['; 200_000]);
    let mut long = br#"{"id": 1, "call": {"call": "named", "name": ""#.to_vec();
    long.resize(3 << 20, b'x');
    long.extend_from_slice(br#""}}"#);
    program.write(&long);
    program.write(br#"{"id": 4711, "call": {"call": "burn"}}"#);
    let Failure { kind, message } = program.answer(4711).expect_err("no such call");
    assert_eq!(kind, FailureKind::Other);
    assert!(
        message.starts_with("not a call: unknown variant `burn`"),
        "{message}"
    );

    let zero = "a\0b".to_owned();
    for call in [
        Call::Named { name: zero.clone() },
        Call::Define { xml: zero.clone() },
        Call::Volume {
            pool: pool(),
            name: zero.clone(),
        },
        Call::CreateVolume {
            pool: pool(),
            xml: zero.clone(),
        },
        Call::DeleteVolume {
            pool: pool(),
            name: zero,
        },
        Call::Define {
            xml: "<domain".into(),
        },
        Call::Define {
            xml: "<domain type='test'/>".into(),
        },
        Call::CreateVolume {
            pool: pool(),
            xml: "<volume/>".into(),
        },
    ] {
        program.fails(call, FailureKind::Other);
    }
    for name in ["../../etc/passwd", "", "a/b", "\u{1}", "<&\"'>"] {
        let call = Call::Volume {
            pool: pool(),
            name: name.into(),
        };
        assert_eq!(program.get(call), Reply::Volume(None));
        let call = Call::Named { name: name.into() };
        assert_eq!(program.get(call), Reply::Domain(None));
    }
    assert!(matches!(program.get(Call::Host), Reply::Host(_)));
}

#[test]
fn what_the_host_is() {
    let mut program = Program::start(URI);
    let Reply::Host(host) = program.get(Call::Host) else {
        panic!("no host");
    };
    // It runs no real guests, and so it says.
    assert_eq!(host.virtualisation, None);
    assert_eq!(host.emulator, None);
    assert_eq!(host.memory, Size(3 << 30));
    let parts: Vec<u32> = host.version.split('.').flat_map(str::parse).collect();
    assert_eq!(parts.len(), 3, "{host:?}");
}

#[test]
fn no_libvirt_is_said() {
    let mut program = Program::spawn("qemu+unix:///system?socket=/nonexistent/sock");
    let Some(Said::Lost { why }) = program.said() else {
        panic!("it is not there");
    };
    assert!(why.contains("/nonexistent/sock"), "{why}");
    assert_eq!(program.said(), None);
    assert_eq!(program.end().code(), Some(1));

    let mut program = Program::spawn("no such thing");
    assert!(matches!(program.said(), Some(Said::Lost { .. })));
    assert_eq!(program.end().code(), Some(1));
}

#[test]
fn what_was_asked_before_the_end_is_answered() {
    let mut program = Program::start(URI);
    let first = program.ask(Call::Domains);
    let second = program.ask(Call::Host);
    program.hang_up();
    assert!(program.answer(first).is_ok());
    assert!(program.answer(second).is_ok());
    assert_eq!(program.said(), None);
    assert!(program.end().success());
}

#[test]
fn it_is_started_with_an_address() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_muster-libvirt"))
        .output()
        .expect("the program");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(said.contains("--connect URI"), "{said}");
}
