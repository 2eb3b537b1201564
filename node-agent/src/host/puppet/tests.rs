use super::*;
use crate::host::testing::{Bench, have, shown};

#[test]
fn its_report_is_read_and_no_text_in_it_passes_for_another() {
    let report = "--- !ruby/object:Puppet::Transaction::Report
host: web-01
logs:
- !ruby/object:Puppet::Util::Log
  level: notice
  message: |
    status: unchanged
  source: Puppet
status: failed
";
    assert_eq!(top(report, "status").as_deref(), Some("failed"));
    assert_eq!(top(report, "level"), None);
    let summary = "---
version:
  config: 1
resources:
  changed: 3
  failed: 1
  total: 9
changes:
  total: 4
";
    let all = sections(summary);
    let get = |a: &str, b: &str| all.get(&(a.to_owned(), b.to_owned())).map(String::as_str);
    assert_eq!(get("resources", "total"), Some("9"));
    assert_eq!(get("changes", "total"), Some("4"));
    assert_eq!(get("resources", "config"), None);
}

/// The real Puppet, with everything of its own below a directory.
fn puppet() -> Option<Bench> {
    if !have("puppet") {
        return None;
    }
    let bench = Bench::new();
    let here = bench.dir.path().display();
    bench.fake(
        "puppet",
        &format!(
            "verb=$1; shift\nPATH=/usr/bin:/bin\nexec puppet $verb --confdir {here}/conf --vardir {here}/var --rundir {here}/run --logdir {here}/log --reports '' \"$@\""
        ),
    );
    Some(bench)
}

async fn perform_it(bench: &Bench, run: &PuppetRun, mode: Mode) -> (String, String) {
    let run = run.clone();
    let (done, heard) = bench.with(move |tools| perform(tools, &run, mode)).await;
    let text = match done {
        Ok(done) => format!("{} {}", shown(&done), done.value),
        Err(error) => format!("error: {error}"),
    };
    (text, format!("{}{}", heard.out, heard.err))
}

#[tokio::test]
async fn a_manifest_is_tried_applied_and_then_is_so() {
    let Some(bench) = puppet() else { return };
    let file = bench.path("made by puppet");
    let manifest = format!(
        "file {{ '{}': ensure => file, content => \"one\\n\" }}\nnotice('status: failed')",
        file.display()
    );
    let run = PuppetRun::Apply { manifest };
    let (would, said) = perform_it(&bench, &run, Mode::Check).await;
    assert!(would.starts_with("would: 1 of "), "{would} {said}");
    assert!(would.contains("should be"), "{would} {said}");
    assert!(!file.exists());
    let (did, said) = perform_it(&bench, &run, Mode::Apply).await;
    assert!(did.starts_with("changed: 1 of "), "{did} {said}");
    assert!(did.contains("\"status\":\"changed\""), "{did}");
    assert!(said.contains("Notice: "), "{said}");
    assert_eq!(std::fs::read_to_string(&file).expect("made"), "one\n");
    let (again, said) = perform_it(&bench, &run, Mode::Apply).await;
    assert!(again.starts_with("unchanged"), "{again} {said}");
    std::fs::write(&file, "two\n").expect("written");
    let (would, said) = perform_it(&bench, &run, Mode::Check).await;
    assert!(
        would.contains("-two") && would.contains("+one"),
        "{would} {said}"
    );
    assert_eq!(std::fs::read_to_string(&file).expect("there"), "two\n");
}

#[tokio::test]
async fn what_fails_is_said_with_puppets_own_words() {
    let Some(bench) = puppet() else { return };
    let run = |manifest: &str| PuppetRun::Apply {
        manifest: manifest.to_owned(),
    };
    let (text, said) = perform_it(&bench, &run("exec { '/bin/false': }"), Mode::Apply).await;
    assert!(text.starts_with("error: 1 of "), "{text} {said}");
    assert!(text.contains("/bin/false"), "{text} {said}");
    let (text, said) = perform_it(&bench, &run("file { 'x"), Mode::Apply).await;
    assert!(text.starts_with("error: "), "{text} {said}");
    assert!(!text.contains("no report"), "{text} {said}");
    // The report of an earlier run is not this one's.
    let bench = Bench::new();
    bench.fake("puppet", "exit 0");
    let (text, _) = perform_it(&bench, &run(""), Mode::Apply).await;
    assert!(text.contains("left no report"), "{text}");
}

#[tokio::test]
async fn the_agent_is_judged_by_the_report_where_it_leaves_it() {
    let bench = Bench::new();
    let here = bench.dir.path().display();
    // Its server is what only pretends here.
    bench.fake(
        "puppet",
        &format!(
            r#"if [ "$1" = config ]; then
  echo "lastrunreport = {here}/report.yaml"; echo "lastrunfile = {here}/summary.yaml"; exit 0
fi
echo "$@" >> $BENCH/log
report={here}/report.yaml; summary={here}/summary.yaml
while [ $# -gt 0 ]; do
  case $1 in --lastrunreport) report=$2 ;; --lastrunfile) summary=$2 ;; esac
  shift
done
[ -e $BENCH/silent ] || {{
  printf -- '--- !ruby/object:Puppet::Transaction::Report\nstatus: changed\n' > $report
  printf -- '---\nresources:\n  changed: 2\n  out_of_sync: 2\n  failed: 0\n  total: 9\n' > $summary
}}
echo "Notice: /Stage[main]/Main/File[/x]/ensure: made"
exit 2"#
        ),
    );
    let (text, _) = perform_it(&bench, &PuppetRun::Agent, Mode::Check).await;
    assert!(text.starts_with("would: 2 of 9 resources"), "{text}");
    assert!(
        !bench.path("report.yaml").exists(),
        "a dry run left a report"
    );
    assert!(bench.log()[0].contains("--noop"));
    let (text, _) = perform_it(&bench, &PuppetRun::Agent, Mode::Apply).await;
    assert!(
        text.starts_with("changed: 2 of 9 resources [\"/Stage[main]/Main/File[/x]/ensure: made\"]"),
        "{text}"
    );
    let asked = bench.log();
    assert!(asked[0].starts_with("agent --detailed-exitcodes") && !asked[0].contains("--noop"));
    // Another run of the agent goes on: what lies there is an old report.
    let file = fs::File::options()
        .write(true)
        .open(bench.path("report.yaml"))
        .expect("open");
    let old = SystemTime::now() - std::time::Duration::from_secs(3600);
    file.set_modified(old).expect("set");
    bench.write("silent", "");
    let (text, _) = perform_it(&bench, &PuppetRun::Agent, Mode::Apply).await;
    assert!(text.contains("left no report"), "{text}");
}
