use super::*;
use crate::host::testing::{Bench, shown};

/// Keeps the state of one unit in a file, and writes down what it is asked.
const SYSTEMCTL: &str = r#"
shift 2
verb=$1
[ "$verb" = show ] || echo "$@" >> $BENCH/log
set_to() { sed -i "s/^$1=.*/$1=$2/" $BENCH/unit; }
case $verb in
  show) for last in "$@"; do :; done
    if [ "$last" = web.service ]; then cat $BENCH/unit
    else echo LoadState=not-found; echo ActiveState=inactive; fi ;;
  start|restart) if [ -e $BENCH/broken ]; then set_to ActiveState failed; set_to Result exit-code
    else set_to ActiveState active; set_to Result success; fi ;;
  stop) set_to ActiveState inactive ;;
  enable) set_to UnitFileState enabled ;;
  disable) set_to UnitFileState disabled ;;
  reload) [ ! -e $BENCH/broken ] || { echo "Job for web.service failed." >&2; exit 1; } ;;
  daemon-reload) set_to NeedDaemonReload no ;;
esac
"#;

fn bench(unit: &str) -> Bench {
    let bench = Bench::new();
    bench.fake("systemctl", SYSTEMCTL);
    bench.write("unit", unit);
    bench
}

const STOPPED: &str = "LoadState=loaded\nActiveState=inactive\nSubState=dead\nUnitFileState=disabled\nCanReload=yes\nNeedDaemonReload=no\nResult=success\n";

async fn perform_it(bench: &Bench, name: &'static str, wish: ServiceWish, mode: Mode) -> String {
    let (done, _) = bench
        .with(move |tools| perform(tools, name, wish, mode))
        .await;
    match done {
        Ok(done) => shown(&done),
        Err(error) => format!("error: {error}"),
    }
}

#[tokio::test]
async fn a_service_is_made_so_once() {
    let bench = bench(STOPPED);
    let mut said = Vec::new();
    for wish in [
        ServiceWish::Stopped,
        ServiceWish::Running,
        ServiceWish::Reloaded,
        ServiceWish::Restarted,
        ServiceWish::Enabled,
        ServiceWish::Disabled,
        ServiceWish::Stopped,
        ServiceWish::Reloaded,
    ] {
        let would = perform_it(&bench, "web.service", wish, Mode::Check).await;
        assert!(bench.log().is_empty(), "a dry run did something");
        let did = perform_it(&bench, "web.service", wish, Mode::Apply).await;
        assert_eq!(would.replace("would:", "changed:"), did, "{wish:?}");
        said.push(format!("{wish:?}: {did} {:?}", bench.log()));
        if !matches!(wish, ServiceWish::Reloaded | ServiceWish::Restarted) {
            let again = perform_it(&bench, "web.service", wish, Mode::Apply).await;
            assert_eq!(again, "unchanged", "{wish:?}");
        }
    }
    insta::assert_snapshot!(said.join("\n"), @r#"
    Stopped: unchanged []
    Running: changed: inactive → started [] ["start -- web.service"]
    Reloaded: changed: reloaded [] ["reload -- web.service"]
    Restarted: changed: restarted [] ["restart -- web.service"]
    Enabled: changed: disabled → enabled [] ["enable -- web.service"]
    Disabled: changed: enabled → disabled [] ["disable -- web.service"]
    Stopped: changed: active → stopped [] ["stop -- web.service"]
    Reloaded: changed: inactive → started [] ["start -- web.service"]
    "#);
}

#[tokio::test]
async fn what_does_not_work_is_said() {
    let bench = bench(STOPPED);
    bench.write("broken", "");
    let mut said = Vec::new();
    for (name, wish, mode) in [
        ("web.service", ServiceWish::Running, Mode::Apply),
        ("web.service", ServiceWish::Restarted, Mode::Apply),
        ("other", ServiceWish::Running, Mode::Apply),
        ("other", ServiceWish::Running, Mode::Check),
        ("other", ServiceWish::Stopped, Mode::Apply),
        ("--now", ServiceWish::Running, Mode::Apply),
        ("a b", ServiceWish::Running, Mode::Check),
    ] {
        said.push(perform_it(&bench, name, wish, mode).await);
    }
    bench.write("unit", &STOPPED.replace("inactive", "active"));
    said.push(perform_it(&bench, "web.service", ServiceWish::Reloaded, Mode::Apply).await);
    bench.write(
        "unit",
        &STOPPED
            .replace("inactive", "active")
            .replace("CanReload=yes", "CanReload=no"),
    );
    said.push(perform_it(&bench, "web.service", ServiceWish::Reloaded, Mode::Check).await);
    bench.write("unit", &STOPPED.replace("loaded", "masked"));
    said.push(perform_it(&bench, "web.service", ServiceWish::Running, Mode::Check).await);
    bench.fake(
        "systemctl",
        "echo 'System has not been booted with systemd' >&2; exit 1",
    );
    said.push(perform_it(&bench, "web.service", ServiceWish::Running, Mode::Apply).await);
    insta::assert_snapshot!(said.join("\n"), @r"
    error: it was started but is failed (dead) now (exit-code); its log says why
    error: it was started but is failed (dead) now (exit-code); its log says why
    error: this node has no service `other`
    would: the service is not there yet []
    unchanged
    error: `--now` is not the name of a service
    error: `a b` is not the name of a service
    error: systemctl reload: exit code 1: Job for web.service failed.
    error: the service cannot reload its configuration; use `restarted()`
    error: the service is masked, so it cannot be started; `systemctl unmask web.service` allows it
    error: systemctl show: exit code 1: System has not been booted with systemd
    ");
}

#[tokio::test]
async fn a_changed_unit_is_read_again_before_it_is_started() {
    let bench = bench(&STOPPED.replace("NeedDaemonReload=no", "NeedDaemonReload=yes"));
    perform_it(&bench, "web.service", ServiceWish::Running, Mode::Apply).await;
    assert_eq!(bench.log(), ["daemon-reload", "start -- web.service"]);
}
