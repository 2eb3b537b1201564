//! Virtual machines on hypervisors that are simulated: how many are made in a
//! second, and how long a list of many takes.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::BenchError;
use super::figures::{Row, Spread, Unit};
use super::http::{Api, quoted};
use super::work::settle;
use super::world::{Nodes, Programs, Started, World};

/// Hypervisors.
const HYPERVISORS: u32 = 20;
/// Machines that are asked for at once.
const AT_ONCE: usize = 200;
/// The target: so many in a second.
const RATE: f64 = 100.0;
/// Machines in the list, and the most that one request makes.
const LISTED: usize = 10_000;
const MOST: usize = 500;
/// The target for that list, in milliseconds.
const LIST: f64 = 100.0;
/// How often it is listed, after a few times that do not count.
const TIMES: u32 = 15;
const WARM: u32 = 2;
/// Longest wait for machines to be up.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_millis(50);
/// Each hypervisor asks for the seeds of its machines without a token, and may
/// do so a hundred times a second. Here all of them have one address.
const SETTINGS: &str = "open_requests_per_second = 2000\n";
/// The largest page of a list.
const PAGE: usize = 1_000;

fn wrong(why: impl Into<String>) -> BenchError {
    BenchError::Part {
        name: "machines",
        why: why.into(),
    }
}

/// What is asked for. Nothing boots in memory, so no agent is waited for.
fn ask(name: &str, count: Option<usize>) -> Value {
    json!({
        "name": name, "count": count, "image": "empty", "cpus": 1,
        "memory": 64 << 20, "disk": 1 << 20, "networks": ["lan"], "agent": false, "ready": "boot",
    })
}

/// How long it took until the requests were answered, and until all machines
/// were up, in seconds.
#[derive(Clone, Copy)]
struct Took {
    answered: f64,
    up: f64,
}

/// A muster with simulated hypervisors, each of which has the image.
struct Cloud {
    world: World,
    fleet: Nodes,
    api: Api,
    machines: usize,
}

impl Cloud {
    fn begin(programs: &Programs, below: &Path, started: &Started) -> Result<Self, BenchError> {
        let world = World::start_set(programs, below, SETTINGS, started)?;
        let fleet = world.hypervisors(HYPERVISORS)?;
        let image = world.dir().join("empty.raw");
        let made = File::create(&image).and_then(|file| file.set_len(1 << 20));
        made.map_err(BenchError::Directory)?;
        let image = image.to_string_lossy();
        world.muster(&["image", "add", "empty", &image, "--format", "raw"])?;
        let pool = ["--pool", "10.64.1.0-10.64.250.255/16"];
        world.muster(&[&["network", "add", "lan", "--bridge", "br0"][..], &pool].concat())?;
        let api = Api::connect(world.address(), world.token())?;
        let mut cloud = Self {
            world,
            fleet,
            api,
            machines: 0,
        };
        // One on each: from now on the image is already there.
        let count = HYPERVISORS as usize;
        let mut first = ask("first-{n}", Some(count));
        first["apart"] = json!("name");
        first["account"] = json!("bench");
        cloud.api.json("POST", "/v1/vms", Some(&first))?;
        cloud.all_up("first-*", count)?;
        cloud.machines += count;
        Ok(cloud)
    }

    /// Waits until so many machines of these names are up.
    fn all_up(&mut self, names: &str, count: usize) -> Result<(), BenchError> {
        let until = Instant::now() + PATIENCE;
        let matching = quoted(&format!("name={names} and status=running"));
        let path = format!("/v1/vms?match={matching}&limit={PAGE}&brief=true");
        loop {
            let (page, _) = self.api.json("GET", &path, None)?;
            let up = page["items"].as_array().map_or(0, Vec::len);
            if up >= count {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(wrong(format!("only {up} of {count} machines are up")));
            }
            thread::sleep(LOOK);
        }
    }

    /// As many requests at once as there are machines.
    fn one_each(&mut self, round: u32) -> Result<Took, BenchError> {
        let mut connections = Vec::new();
        for _ in 0..AT_ONCE {
            connections.push(Api::connect(self.world.address(), self.world.token())?);
        }
        let barrier = Barrier::new(AT_ONCE + 1);
        let begun = thread::scope(|scope| {
            let asked: Vec<_> = (0..)
                .zip(connections)
                .map(|(number, mut api)| {
                    let barrier = &barrier;
                    let body = ask(&format!("one{round}-{number:03}"), None);
                    scope.spawn(move || {
                        barrier.wait();
                        api.json("POST", "/v1/vms", Some(&body)).map(drop)
                    })
                })
                .collect();
            barrier.wait();
            let begun = Instant::now();
            for each in asked {
                each.join().map_err(|_| wrong("a request panicked"))??;
            }
            Ok::<_, BenchError>(begun)
        })?;
        let answered = begun.elapsed().as_secs_f64();
        self.all_up(&format!("one{round}-*"), AT_ONCE)?;
        self.machines += AT_ONCE;
        Ok(Took {
            answered,
            up: begun.elapsed().as_secs_f64(),
        })
    }

    /// One request for many.
    fn in_one(&mut self, name: &str, count: usize) -> Result<Took, BenchError> {
        let body = ask(&format!("{name}-{{n}}"), Some(count));
        let begun = Instant::now();
        self.api.json("POST", "/v1/vms", Some(&body))?;
        let answered = begun.elapsed().as_secs_f64();
        self.all_up(&format!("{name}-*"), count)?;
        self.machines += count;
        Ok(Took {
            answered,
            up: begun.elapsed().as_secs_f64(),
        })
    }

    /// All machines as the broker lists them; nothing of one is another's.
    fn checked(&mut self) -> Result<Vec<Value>, BenchError> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/vms?limit={PAGE}{cursor}");
            let (mut page, _) = self.api.json("GET", &path, None)?;
            if let Some(items) = page["items"].as_array_mut() {
                all.append(items);
            }
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={}", quoted(next)),
                None => break,
            }
        }
        if all.len() != self.machines {
            let (listed, made) = (all.len(), self.machines);
            return Err(wrong(format!("{listed} machines are listed, not {made}")));
        }
        let mut seen = HashSet::new();
        for vm in &all {
            for what in ["/name", "/id", "/addresses/0", "/nics/0/mac"] {
                let value = vm.pointer(what).and_then(Value::as_str);
                let value = value.ok_or_else(|| wrong(format!("a machine has no {what}")))?;
                if !seen.insert(format!("{what} {value}")) {
                    return Err(wrong(format!("two machines have {what} {value}")));
                }
            }
        }
        Ok(all)
    }

    /// Each machine is on the hypervisor that it is listed on, and on no other,
    /// and there are no others.
    fn end(mut self) -> Result<(), BenchError> {
        let listed: HashSet<(String, String)> = self
            .checked()?
            .iter()
            .map(|vm| (text(&vm["hypervisor"]), text(&vm["id"])))
            .collect();
        let stats = self.fleet.end()?;
        let mut there = HashSet::new();
        let mut domains = 0;
        for hypervisor in stats["hypervisors"].as_array().into_iter().flatten() {
            for machine in hypervisor["machines"].as_array().into_iter().flatten() {
                domains += 1;
                there.insert((text(&hypervisor["name"]), text(&machine["id"])));
            }
        }
        if domains != listed.len() || there != listed {
            let count = listed.len();
            return Err(wrong(format!(
                "{count} machines are listed, and the hypervisors have {domains}, which are not the same"
            )));
        }
        Ok(())
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn rate(took: &[Took], of: fn(&Took) -> f64) -> Result<Spread, BenchError> {
    #[allow(clippy::cast_precision_loss, reason = "some hundreds")]
    let count = AT_ONCE as f64;
    let rates: Vec<f64> = took.iter().map(|took| count / of(took)).collect();
    Spread::of(&rates).ok_or_else(|| wrong("nothing was measured"))
}

/// The rows of the table.
///
/// # Errors
/// [`BenchError`].
pub(super) fn rows(
    programs: &Programs,
    below: &Path,
    started: &Started,
    quick: bool,
    failed: &mut Vec<String>,
) -> Result<Vec<Row>, BenchError> {
    tracing::info!(
        hypervisors = HYPERVISORS,
        "machines on simulated hypervisors"
    );
    let mut cloud = Cloud::begin(programs, below, started)?;
    let (mut each, mut together) = (Vec::new(), Vec::new());
    for round in 0..if quick { 3 } else { 5 } {
        settle();
        each.push(cloud.one_each(round)?);
        settle();
        together.push(cloud.in_one(&format!("all{round}"), AT_ONCE)?);
        cloud.checked()?;
    }
    let mut rows = vec![
        Row::at_least(
            format!("{AT_ONCE} machines at once on {HYPERVISORS} hypervisors in memory: up"),
            Unit::PerSecond,
            rate(&each, |took| took.up)?,
            RATE,
        ),
        Row::told(
            "the same: placed, written down and answered",
            Unit::PerSecond,
            rate(&each, |took| took.answered)?,
        ),
        Row::told(
            format!("{AT_ONCE} machines in one request: up"),
            Unit::PerSecond,
            rate(&together, |took| took.up)?,
        ),
    ];
    match long_list(cloud) {
        Ok(more) => rows.extend(more),
        Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
        // What was measured before it stands.
        Err(why) => failed.push(why.to_string()),
    }
    Ok(rows)
}

/// So many machines that their list is long, and that list.
fn long_list(mut cloud: Cloud) -> Result<[Row; 2], BenchError> {
    tracing::info!(machines = LISTED, "machines for a long list");
    let mut more = 0;
    while cloud.machines < LISTED {
        let count = MOST.min(LISTED - cloud.machines);
        cloud.in_one(&format!("more{more}"), count)?;
        more += 1;
    }
    settle();
    let rows = listed(&cloud)?;
    cloud.end()?;
    Ok(rows)
}

/// The whole command, from its start to its end, with everything printed.
fn listed(cloud: &Cloud) -> Result<[Row; 2], BenchError> {
    let measure = |args: &[&str]| {
        let mut took = Vec::new();
        for round in 0..WARM + TIMES {
            let ms = cloud.world.muster(args)?;
            if round >= WARM {
                took.push(ms);
            }
        }
        Spread::of(&took).ok_or_else(|| wrong("nothing was measured"))
    };
    let table = measure(&["vm", "list"])?;
    let said = cloud.world.said()?;
    let last = said.lines().last().unwrap_or_default();
    if !last.ends_with(&format!(" machines: {LISTED} running")) {
        return Err(wrong(format!("`muster vm list` ends with: {last}")));
    }
    let json = measure(&["vm", "list", "--json"])?;
    Ok([
        Row::at_most(
            format!("muster vm list, {LISTED} machines"),
            Unit::Ms,
            table,
            LIST,
        ),
        Row::told(
            format!("muster vm list --json, {LISTED} machines"),
            Unit::Ms,
            json,
        ),
    ])
}
