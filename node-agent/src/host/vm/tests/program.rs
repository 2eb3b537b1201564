//! The program that asks libvirt, pretended by a few lines of shell: it
//! answers, tells, hangs, ends and raves as it is told.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt as _;
use muster_libvirt::message::FailureKind;
use muster_protocol::vm::VmId;

use super::id;
use crate::host::vm::{Asking, How, Program, Virt, VirtError};

/// What it does for each call; `$id` is the call's number.
const ANSWERS: &str = r#"
dir=$(dirname "$0")
echo "start $$ $2" >> "$dir/log"
echo '{"said":"ready"}'
while read -r line; do
    id=${line#*'"id":'}
    id=${id%%,*}
    name=${line##*'"call":{"call":"'}
    name=${name%%'"'*}
    echo "$name" >> "$dir/log"
    case "$name" in
        start) exec sleep 1000 ;;
        kill) exit 3 ;;
        shutdown) echo '{"said":"lost","why":"libvirtd went away"}'; exit 0 ;;
        undefine) echo 'what?' ;;
        domains) while [ ! -e "$dir/go" ]; do sleep 0.01; done
                 echo '{"said":"answer","id":'$id',"result":{"Ok":{"reply":"domains","value":[]}}}' ;;
        snapshots) echo '{"said":"answer","id":'$id',"result":{"Err":{"kind":"missing","message":"no domain"}}}' ;;
        refresh) echo '{"said":"event","uuid":"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102","what":"crashed"}'
                 echo '{"said":"answer","id":999,"result":{"Ok":{"reply":"done"}}}'
                 echo '{"said":"answer","id":'$id',"result":{"Ok":{"reply":"done"}}}' ;;
        *) echo '{"said":"answer","id":'$id',"result":{"Ok":{"reply":"domain","value":null}}}' ;;
    esac
done
echo end >> "$dir/log"
"#;

struct Pretended {
    dir: tempfile::TempDir,
    program: Program,
}

impl Pretended {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("muster-libvirt");
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        let program = program(&path);
        Self { dir, program }
    }

    fn ask(&self) -> Asking<'_, Program> {
        Asking(&self.program)
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// How often it was started.
    fn starts(&self) -> usize {
        self.log()
            .iter()
            .filter(|line| line.starts_with("start "))
            .count()
    }
}

fn program(path: &Path) -> Program {
    Program::new(How {
        program: Some(path.to_owned()),
        uri: "qemu:///system".to_owned(),
        timeout: Duration::from_millis(1_500),
        idle: false,
    })
}

fn uuid() -> VmId {
    id("web-01")
}

#[tokio::test]
async fn what_is_asked_is_answered_in_order_by_one_program() {
    let it = Pretended::new(ANSWERS);
    assert_eq!(it.ask().domain(uuid()).await, Ok(None));
    assert_eq!(it.ask().named("web-01").await, Ok(None));
    let failed = it.ask().snapshots(uuid()).await.expect_err("it says no");
    assert!(
        failed.is(FailureKind::Missing) && !failed.is_uncertain(),
        "{failed}"
    );
    // An answer of another kind is none.
    assert_eq!(it.ask().host().await, Err(VirtError::Strange("host")));
    let pool = "default".parse().expect("a name");
    let mut changes = it.program.changes();
    changes.borrow_and_update();
    assert_eq!(it.ask().refresh(&pool).await, Ok(()));
    assert!(
        changes.has_changed().expect("it lives"),
        "an event was said"
    );
    assert_eq!(it.starts(), 1);
    assert!(it.log()[0].starts_with("start ") && it.log()[0].ends_with(" qemu:///system"));
}

#[tokio::test]
async fn one_that_hangs_is_ended_and_another_one_is_asked() {
    let it = Pretended::new(ANSWERS);
    let late = it.ask().start(uuid()).await.expect_err("it hangs");
    assert!(late.is_uncertain(), "{late}");
    assert_eq!(
        late.to_string(),
        "libvirt did not answer `start` within 1s500ms; see whether libvirtd hangs"
    );
    assert_eq!(it.ask().domain(uuid()).await, Ok(None));
    assert_eq!(it.starts(), 2);
    // It is gone, and not only forgotten.
    let first = it.log()[0].split(' ').nth(1).expect("its id").to_owned();
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{first}/stat")).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with(['S', 'R', 'D']))
    };
    let gone = async {
        while alive() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .expect("it ends");
}

#[tokio::test]
async fn one_that_ends_or_raves_is_lost_and_another_one_is_asked() {
    let it = Pretended::new(ANSWERS);
    let mut changes = it.program.changes();
    changes.borrow_and_update();
    for (lost, why) in [
        (it.ask().kill(uuid()).await, "the program ended"),
        (it.ask().shutdown(uuid()).await, "libvirtd went away"),
        (it.ask().undefine(uuid()).await, "the program ended"),
    ] {
        let lost = lost.expect_err("it ends");
        assert!(
            lost.is_uncertain() && lost.to_string().contains(why),
            "{lost}"
        );
        assert_eq!(it.ask().domain(uuid()).await, Ok(None));
    }
    // Whoever listens has to look.
    assert!(changes.has_changed().expect("it lives"));
}

#[tokio::test]
async fn one_that_cannot_be_had_is_an_error_and_nothing_was_done() {
    let away = |error: VirtError| {
        assert!(!error.is_uncertain(), "{error}");
        error.to_string()
    };
    let gone = program(Path::new("/nowhere/muster-libvirt"));
    let error = away(Asking(&gone).host().await.expect_err("it is not there"));
    assert!(
        error.contains("/nowhere/muster-libvirt: No such file"),
        "{error}"
    );
    let it = Pretended::new(r#"printf '%s\n' '{"said":"lost","why":"no libvirtd: \u0007"}'"#);
    let error = away(it.ask().host().await.expect_err("it is lost"));
    assert_eq!(
        error,
        "there is no connection to libvirt: no libvirtd: \\x07"
    );
    let it = Pretended::new("exec sleep 1000");
    let error = away(it.ask().host().await.expect_err("it does not begin"));
    assert!(
        error.contains("libvirt at qemu:///system does not answer"),
        "{error}"
    );
    let it = Pretended::new("exit 0");
    let error = away(it.ask().host().await.expect_err("it ends"));
    assert!(error.contains("ended at once"), "{error}");
}

#[tokio::test]
async fn what_was_asked_is_done_when_nobody_waits_and_before_what_comes_behind() {
    let it = Pretended::new(ANSWERS);
    assert_eq!(it.ask().domain(uuid()).await, Ok(None));
    // Asked, and given up.
    assert!(it.ask().domains().now_or_never().is_none());
    std::fs::write(it.dir.path().join("go"), "").expect("written");
    assert_eq!(it.ask().named("web-01").await, Ok(None));
    let log = it.log();
    assert_eq!(log[1..], ["domain", "domains", "named"]);
    assert_eq!(it.starts(), 1);
    // It ends with whoever looks after it.
    let Pretended { dir, program } = it;
    drop(program);
    let ended = async {
        loop {
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            let pid = log.split(' ').nth(1).unwrap_or_default().to_owned();
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if !stat
                .rsplit(") ")
                .next()
                .is_some_and(|s| s.starts_with(['S', 'R', 'D']))
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended)
        .await
        .expect("it ends");
}
