use muster_scenarios::node::Performed;

use super::*;
use crate::host::testing::{Bench, Heard, is_root, shown};

fn shell(line: &str) -> Run {
    Run {
        what: RunWhat::Shell(line.to_owned()),
        ok: vec![0],
        cwd: None,
        env: [].into(),
        timeout: None,
        user: None,
        stdin: None,
        creates: None,
        only_if: None,
        changes: true,
    }
}

async fn perform_it(bench: &Bench, run: &Run, mode: Mode) -> (Result<Performed, String>, Heard) {
    let run = run.clone();
    let (done, heard) = bench
        .with(move |tools| perform(tools, &run, mode).map_err(HostError::from))
        .await;
    let done = done.map_err(|e| match e {
        HostError::Stopped => "stopped".to_owned(),
        HostError::Failed(text) => text,
    });
    (done, heard)
}

#[tokio::test]
async fn what_it_says_is_the_scripts_and_the_runs() {
    let bench = Bench::new();
    let (done, heard) = perform_it(&bench, &shell("echo out; echo err >&2"), Mode::Apply).await;
    let done = done.expect("it is well");
    assert_eq!(shown(&done), "changed: ran, exit code 0 []");
    assert_eq!(
        (&done.value["stdout"], &done.value["stderr"]),
        (&json!("out\n"), &json!("err\n"))
    );
    assert_eq!(
        (heard.out.as_str(), heard.err.as_str(), heard.started),
        ("out\n", "err\n", 1)
    );
}

#[tokio::test]
async fn an_exit_code_is_well_when_it_is_said_to_be() {
    let bench = Bench::new();
    let mut run = shell("echo first >&2; echo no such unit >&2; exit 2");
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert_eq!(done, Err("exit code 2: first; no such unit".to_owned()));
    run.ok = vec![0, 2];
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert_eq!(done.expect("it is well").value["exit"], 2);
    let (done, _) = perform_it(&bench, &shell("kill -9 $$"), Mode::Apply).await;
    assert_eq!(done, Err("ended by signal 9 (SIGKILL)".to_owned()));
    let mut run = shell("");
    run.what = RunWhat::Argv(vec!["no-such-program".into()]);
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    let error = done.expect_err("it is not there");
    assert!(
        error.starts_with("this node has no program `no-such-program` (looked in "),
        "{error}"
    );
}

#[tokio::test]
async fn where_with_what_and_reading_what() {
    let bench = Bench::new();
    let mut run = shell("pwd; echo $GREETING $MUSTER_REQUEST; cat");
    run.cwd = Some("/usr".into());
    run.env = [
        ("GREETING".to_owned(), "a b".to_owned()),
        // A mark by which its processes are found; it stays what it is.
        ("MUSTER_REQUEST".to_owned(), "hidden".to_owned()),
    ]
    .into();
    run.stdin = Some("typed".into());
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    let value = done.expect("it is well").value;
    let text = value["stdout"].as_str().expect("a text").to_owned();
    assert!(text.starts_with("/usr\na b bench-"), "{text}");
    assert!(text.ends_with("\ntyped"), "{text}");
    run.cwd = Some("/no/such/place".into());
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert_eq!(
        done,
        Err("the directory `/no/such/place` does not exist".to_owned())
    );
    // An argument is one argument, whatever is in it.
    let mut run = shell("");
    run.what = RunWhat::Argv(vec!["echo".into(), "a; rm -rf / $(id)".into()]);
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert_eq!(
        done.expect("it is well").value["stdout"],
        "a; rm -rf / $(id)\n"
    );
}

#[tokio::test]
async fn it_is_run_only_when_there_is_need() {
    let bench = Bench::new();
    let flag = bench.path("flag");
    let mut run = shell("touch $BENCH/flag; echo ran >> $BENCH/log");
    run.creates = Some(flag.display().to_string());
    let (done, _) = perform_it(&bench, &run, Mode::Check).await;
    assert_eq!(shown(&done.expect("a dry run")), "would: would run []");
    assert!(!flag.exists());
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert!(done.is_ok() && flag.exists());
    for mode in [Mode::Check, Mode::Apply] {
        let (done, _) = perform_it(&bench, &run, mode).await;
        let done = done.expect("nothing to do");
        assert_eq!(shown(&done), "unchanged");
        assert_eq!(done.value["skipped"], true);
    }
    assert_eq!(bench.log(), ["ran"]);
    let mut run = shell("echo ran >> $BENCH/log");
    for (test, ran) in [("/no/such/file", false), ("/etc/passwd", true)] {
        run.only_if = Some(["test", "-e", test].map(str::to_owned).to_vec());
        let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
        assert_eq!(done.expect("it is well").value["skipped"], !ran);
        assert_eq!(bench.log().len(), usize::from(ran));
        let (done, _) = perform_it(&bench, &run, Mode::Check).await;
        assert_eq!(
            shown(&done.expect("a dry run")).starts_with("would"),
            ran,
            "{test}"
        );
        assert!(bench.log().is_empty());
    }
}

#[tokio::test]
async fn its_own_time_can_be_caught_and_the_steps_ends_it() {
    let mut bench = Bench::new();
    let mut run = shell("sleep 300 & sleep 300");
    run.timeout = Some(muster_protocol::units::Span::from_millis(300));
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert_eq!(
        done,
        Err("`/bin/sh` still ran after 300ms and was ended".to_owned())
    );
    run.timeout = None;
    bench.timeout = std::time::Duration::from_millis(300);
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert_eq!(done, Err("stopped".to_owned()));
    bench.timeout = std::time::Duration::from_secs(300);
    let cancel = bench.cancel.clone();
    let (done, ()) = tokio::join!(perform_it(&bench, &run, Mode::Apply), async {
        tokio::task::yield_now().await;
        cancel.cancel();
    });
    assert_eq!(done.0, Err("stopped".to_owned()));
}

#[tokio::test]
async fn the_end_of_one_program_leaves_the_daemon_of_another() {
    let bench = Bench::new();
    let (pids, _) = bench
        .with(|tools| {
            let mut run = shell("setsid sleep 300 >/dev/null 2>&1 & echo $!");
            let first = perform(tools, &run, Mode::Apply).expect("it is well");
            run.what = RunWhat::Shell("sleep 300".into());
            run.timeout = Some(muster_protocol::units::Span::from_millis(200));
            perform(tools, &run, Mode::Apply).expect_err("out of time");
            first.value["stdout"].as_str().map(|t| t.trim().to_owned())
        })
        .await;
    let pid: u32 = pids.expect("a text").parse().expect("a number");
    let daemon = crate::host::proc::Process::read(pid).expect("it lives");
    assert!(daemon.is_alive(), "it was ended with the other program");
    assert!(daemon.signal(rustix::process::Signal::KILL));
}

#[tokio::test]
async fn another_user_has_nothing_left_of_root() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let mut run = shell(
        "id -un; id -gn; id -Gn; echo $HOME $USER; grep -E 'Cap(Prm|Eff|Inh)' /proc/self/status",
    );
    run.user = Some("daemon".into());
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    let value = done.expect("it is well").value;
    let text = value["stdout"].as_str().expect("a text");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["daemon", "daemon", "daemon"], "{text}");
    assert_eq!(lines[3], "/usr/sbin daemon");
    for line in &lines[4..7] {
        assert!(line.ends_with("\t0000000000000000"), "{text}");
    }
    // It is its own from the start: root's files are closed to it.
    let secret = bench.write("secret", "x");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("a mode");
    run.what = RunWhat::Argv(vec!["cat".into(), secret.display().to_string()]);
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert!(done.expect_err("closed").contains("Permission denied"));
    // What cannot be run at all is said, too.
    run.what = RunWhat::Argv(vec!["no-such-program".into()]);
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert!(
        done.expect_err("it is not there")
            .contains("no-such-program")
    );
    run.user = Some("nobody-knows".into());
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert_eq!(done, Err("this node has no user `nobody-knows`".to_owned()));
    let (done, _) = perform_it(&bench, &run, Mode::Check).await;
    assert_eq!(shown(&done.expect("a dry run")), "would: would run []");
    // What becomes that user is the system's, and has none of its libraries.
    bench.fake("setpriv", "echo trap; id -un");
    let mut run = shell("echo $LD_LIBRARY_PATH; id -un");
    run.user = Some("daemon".into());
    run.env = [
        ("LD_LIBRARY_PATH".to_owned(), "/no/where".to_owned()),
        (
            "PATH".to_owned(),
            format!("{}:/usr/bin:/bin", bench.path("bin").display()),
        ),
    ]
    .into();
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert_eq!(
        done.expect("it is well").value["stdout"],
        "/no/where\ndaemon\n"
    );
    // Its deadline reaches it there.
    let mut run = shell("sleep 300 & sleep 300");
    run.user = Some("daemon".into());
    run.timeout = Some(muster_protocol::units::Span::from_millis(300));
    let (done, _) = perform_it(&bench, &run, Mode::Apply).await;
    assert!(done.expect_err("out of time").contains("was ended"));
}

#[tokio::test]
async fn what_only_looks_is_run_in_a_dry_run_too() {
    let bench = Bench::new();
    let mut run = shell("echo seen");
    run.changes = false;
    for mode in [Mode::Check, Mode::Apply] {
        let (done, _) = perform_it(&bench, &run, mode).await;
        let done = done.expect("it is well");
        assert_eq!(shown(&done), "nothing to change");
        assert_eq!(done.value["stdout"], "seen\n");
    }
}
