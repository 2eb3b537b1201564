//! From nothing to requests that a new web node answers: a real haproxy, a
//! real guest; and machines that scenarios make, whoever is killed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_tests::vm::capability;
use muster_tests::{Said, free_port, signal, wait_for};
use rustix::process::Signal;

use crate::cloud::Cloud;
use crate::killed::{cleared, meanwhile, settled};

const HERE: [u8; 4] = [10, 77, 0, 1];
/// What the server says that was there before.
const OLD: &str = "the old one";

/// A haproxy with one server behind it, which the test itself is.
struct Balancer {
    master: Child,
    file: PathBuf,
    before: String,
    at: SocketAddr,
}

impl Balancer {
    fn start(dir: &Path) -> Result<Self> {
        let old = serve_old()?;
        let at = SocketAddr::from((HERE, free_port()?));
        let file = dir.join("haproxy.cfg");
        let before = format!(
            "defaults\n    mode http\n    timeout connect 2s\n    timeout client 10s\n    timeout server 10s\n\n\
             frontend front\n    bind {at}\n    default_backend web\n\n\
             backend web\n    balance roundrobin\n    server old {old}\n"
        );
        fs::write(&file, &before)?;
        let log = fs::File::create(dir.join("haproxy.log"))?;
        let master = Command::new("haproxy")
            .args(["-W", "-f"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("haproxy is not installed (scripts/setup.sh test)")?;
        let balancer = Self {
            master,
            file,
            before,
            at,
        };
        wait_for("haproxy", || balancer.get("/").ok())?;
        Ok(balancer)
    }

    /// What is behind a path, with the status.
    fn get(&self, path: &str) -> Result<String> {
        let wait = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&self.at, wait)?;
        stream.set_read_timeout(Some(wait))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(!text.is_empty(), "no answer");
        Ok(text)
    }

    fn file(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.file)?)
    }

    fn has_no_rest(&self) -> bool {
        !self.file.with_extension("cfg.next").exists()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = signal(self.master.id(), Signal::TERM);
        let _ = self.master.wait();
    }
}

/// Answers everything, as long as the test runs.
fn serve_old() -> Result<SocketAddr> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::from(HERE), 0))?;
    let at = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{OLD}\n");
        }
    });
    Ok(at)
}

fn add(cloud: &Cloud, balancer: &Balancer, more: &[&str]) -> Said {
    let file = format!("file={}", balancer.file.display());
    let reload = format!(r#"reload=["kill","-USR2","{}"]"#, balancer.master.id());
    let mut args = vec!["scenario", "run", "add-web-node", "--yes"];
    let all = [
        "name=web-25",
        "image=guest",
        // Its agent runs functions of a scenario, in a kernel that gives no
        // more memory at once than it has.
        "memory=256MiB",
        r#"networks=["lan"]"#,
        r#"setup={"file":"/srv/hello.html","content":"hello of web-25\n"}"#,
        "options=check inter 200ms",
        r#"links={"graphs":"https://graphs.example.org/?host={name}"}"#,
        &file,
        &reload,
    ];
    for param in all.iter().chain(more) {
        args.extend(["-p", param]);
    }
    cloud.up.muster(&args)
}

#[test]
fn from_nothing_to_a_web_node_that_answers_and_from_one_that_is_not_well_to_nothing() -> Result<()>
{
    if !capability("guest") {
        return Ok(());
    }
    let (cloud, _hold) = Cloud::behind_a_balancer()?;
    cloud.furnish()?;
    let balancer = Balancer::start(cloud.up.dir.path())?;
    let (there, held) = (cloud.there()?, cloud.held()?);

    // It never gets well: all of it goes, and nobody was asked for it.
    let said = add(&cloud, &balancer, &["health=/never.html", "tries=3"]);
    assert_ne!(said.code, 0, "{said:#?}\n{}", cloud.logs());
    ensure!(said.err.contains("health"), "{said:#?}");
    assert_eq!(balancer.file()?, balancer.before);
    assert!(balancer.get("/")?.contains(OLD));
    assert_eq!(cloud.there()?, there);
    assert_eq!(cloud.held()?, held);

    let said = add(&cloud, &balancer, &["health=/hello.html"]);
    assert_eq!(said.code, 0, "{said:#?}\n{}", cloud.logs());
    let line = "    server web-25 10.77.1.10:80 check inter 200ms\n";
    assert_eq!(balancer.file()?, format!("{}{line}", balancer.before));
    assert!(balancer.has_no_rest());
    wait_for("an answer of the new one", || {
        let said = balancer.get("/hello.html").ok()?;
        said.contains("hello of web-25").then_some(())
    })?;
    // The other one goes on, too.
    wait_for("an answer of the old one", || {
        balancer
            .get("/hello.html")
            .ok()?
            .contains(OLD)
            .then_some(())
    })?;
    let nodes = cloud.well(&["nodes", "role=web", "--json"])?.list();
    assert_eq!(nodes.len(), 1, "{nodes:#?}");
    let events = cloud.well(&["events", "--limit", "200", "--json"])?;
    let links = "https://graphs.example.org/?host=web-25";
    ensure!(
        events.out.contains("scenario.web-node-added"),
        "{events:#?}"
    );
    ensure!(events.out.contains(links), "{events:#?}");

    // One of that name is there: nothing happens to it.
    let again = add(&cloud, &balancer, &["health=/hello.html"]);
    assert_ne!(again.code, 0, "{again:#?}");
    again.shows(&["web-25"]);
    cloud.becomes("web-25", "running")?;

    cloud.well(&["vm", "destroy", "web-25", "--purge", "--yes"])?;
    drop(balancer);
    cloud.end()
}

const GROW: &str = r#"
scenario("Makes a machine");
param("fails", #{ type: "bool", default: false });
target("role=lb");

fn main(p) {
    let m = machine(#{
        name: "web-03", image: "guest", cpus: 1, memory: "64MiB", disk: "16MiB",
        networks: ["lan"], agent: false, ready: "boot"
    });
    if p.fails { abort("it is not wanted any more"); }
    m.name
}
"#;

#[test]
fn a_scenario_makes_one_machine_or_takes_it_back_whenever_the_broker_is_killed() -> Result<()> {
    if !capability("libvirt") {
        return Ok(());
    }
    let (cloud, hold) = Cloud::behind_a_balancer()?;
    cloud.furnish_empty()?;
    let script = cloud.up.dir.path().join("grow.rhai");
    fs::write(&script, GROW)?;
    cloud.well(&["scenario", "put", &script.to_string_lossy()])?;
    let empty = (cloud.there()?, cloud.held()?);
    // Its newest run has ended so.
    let ended = |state: &str| {
        let runs = || {
            let said = cloud.up.muster(&["runs", "list", "--json"]);
            let all = (said.code == 0).then(|| said.list())?;
            all.into_iter().find(|run| run["scenario"] == "grow")
        };
        let so = || runs().filter(|run| run["state"] == state).map(drop);
        wait_for(&format!("the run to be {state}"), so)
            .with_context(|| format!("{:#?}\n{}", runs(), cloud.logs()))
    };
    let kill = |place: &str| -> Result<()> {
        let came = hold.came(place)?;
        signal(came.pid, Signal::KILL)?;
        hold.release(place);
        Ok(())
    };
    let run = ["scenario", "run", "grow", "--yes"];
    for place in [
        "broker.vm.reserved",
        "broker.vm.addressed",
        "broker.vm.intended",
        "broker.run.machine-up",
    ] {
        hold.hold(place);
        meanwhile(&cloud, &run, || kill(place))?;
        ended("succeeded").context(place)?;
        ensure!(settled(&cloud, &empty)?, "{place}: it is not there");
        cleared(&cloud, &empty).context(place)?;
    }
    let fails = [&run[..], &["-p", "fails=true"]].concat();
    for place in ["broker.vm.ordered", "broker.vm.cleared"] {
        hold.hold(place);
        meanwhile(&cloud, &fails, || kill(place))?;
        ended("failed").context(place)?;
        ensure!(!settled(&cloud, &empty)?, "{place}: it is there");
        cloud.heard()?;
    }
    cloud.end()
}
