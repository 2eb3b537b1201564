//! `muster-agent local run`: break glass.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use muster_protocol::envelope::{Call, Limits, Mode};
use muster_protocol::ids::{InstanceId, LocalNonce, RunId};
use muster_protocol::note::{Expected, value_lines};
use muster_protocol::run::{LocalRun, NodeResult, Outcome};
use muster_protocol::text::printable;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::{LocalCall, MAX_LOCAL_PARAMS, MAX_WHY};
use muster_scenarios::command;
use muster_scenarios::secret::Secrets;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::agent::JOURNAL_FILE;
use crate::cli::{Failure, print};
use crate::config::{Capabilities, Config};
use crate::executor::{BUNDLES, Commands, Executor, Step};
use crate::host::cgroup::Cgroups;
use crate::identity::Enrolled;
use crate::journal::{Db, Journal, LocalNote, StartNote, local_request};
use crate::local::{Owner, Shown, Terminal, Wish};
use crate::logging::{self, LogFormat};
use crate::scenario::{BundleStore, Scenarios};
use crate::state::{StateDir, StateError};

/// What this verb itself ends with when it failed and nothing was run, as of
/// `env`, `nohup` and `timeout`: below are the command's own.
const OWN_FAILURE: u8 = 125;
/// The node's own policy says no; nothing was run.
const DECLINED: u8 = 126;
/// It ran longer than it may, as of `timeout`.
const TIMED_OUT: u8 = 124;
/// It was cancelled, as of a shell after Ctrl-C.
const CANCELLED: u8 = 130;
/// Longest execution time, unless something else is said.
const TIMEOUT: Span = Span::from_secs(300);
/// Output kept in the journal; all of it is shown.
const OUTPUT_BYTES: u64 = 1 << 20;
/// How long an outcome is tried to be written to a journal that takes none.
const WRITE_FOR: Duration = Duration::from_secs(60);

/// Arguments of `local`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Run a command on this machine without asking the broker
    Run(RunArgs),
}

/// Arguments of `local run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command, or the function `run` of a scenario, runs as a muster run would: same environment, limits
and journal, no standard input.
All output is shown as it is written; up to 1 MiB is journaled, the first 64 KiB are reported.

Exit code: the command's; 128+N when signal N ended it, 124 when its time was over, 130 when it
was cancelled, 126 when this node's policy does not grant it, 125 when nothing could be run.

  muster-agent local run --why 'broker is down' -- systemctl restart nginx
  muster-agent local run --shell -- 'ps aux | grep -c nginx'
  muster-agent local run ./motd.rhai -p owner=ana --dry-run
  muster-agent local run web-upgrade --function upgrade -p version=1.4.2")]
pub struct RunArgs {
    /// The state directory; wins over the configuration
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The configuration; without this and without --state, the system's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Longest execution time; what the scenario says, or 5m
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
    /// One JSON object a line instead of the output itself
    #[arg(long)]
    json: bool,
    /// Why, for those who read the run later
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// The one word after -- is a line for /bin/sh
    #[arg(long)]
    shell: bool,
    /// Also what this node's own policy does not grant; it is recorded
    #[arg(long)]
    force: bool,
    /// Also while the fleet is frozen
    #[arg(long)]
    despite_freeze: bool,
    /// A parameter of the scenario; of a secret one the file: -p NAME=@FILE
    #[arg(
        short,
        long = "param",
        value_name = "NAME=VALUE",
        requires = "scenario"
    )]
    params: Vec<String>,
    /// Only say what would change
    #[arg(long, requires = "scenario")]
    dry_run: bool,
    /// A function of the scenario in place of `run`
    #[arg(long, value_name = "NAME", requires = "scenario")]
    function: Option<String>,
    /// A script, a directory with one, or the name or hash of a scenario that
    /// is on this node
    #[arg(value_name = "SCENARIO", conflicts_with_all = ["command", "shell"], required_unless_present = "command")]
    scenario: Option<String>,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs it; what the process ends with.
///
/// # Errors
/// [`Failure`]; nothing was run then.
pub fn main(args: &Args) -> Result<ExitCode, Failure> {
    let Verb::Run(args) = &args.verb;
    crate::host::close_inherited();
    logging::init(LogFormat::default()).map_err(|e| Failure::new(2, &e))?;
    let order = Order::new(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(OWN_FAILURE, &e))?;
    let result = runtime.block_on(Box::pin(order.run()))?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(ExitCode::from(exit_code(&result)))
}

/// What is to run.
struct What {
    executor: Box<dyn Executor>,
    local: Option<LocalCall>,
    call: Call,
    secrets: Secrets,
}

fn limits(args: &RunArgs, config: &Config, own: Option<Span>) -> Limits {
    let timeout = args.timeout.or(own).unwrap_or(TIMEOUT);
    Limits {
        timeout: timeout.min(config.limits.timeout),
        output_bytes: OUTPUT_BYTES.min(config.limits.output_bytes),
        retry: 0,
    }
}

fn what_command(args: &RunArgs, config: &Config) -> Result<What, Failure> {
    let params = match args.command.as_slice() {
        [line] if args.shell => json!({ "shell": line }),
        _ if args.shell => {
            return Err(Failure::new(
                2,
                &"--shell takes the whole command as one word; quote it: muster-agent local run --shell -- 'ps aux | grep nginx'",
            ));
        }
        argv => json!({ "argv": argv }),
    };
    Ok(What {
        executor: Box::new(Commands::new(config)),
        local: None,
        call: Call {
            scenario: command::NAME.parse().expect("a constant name"),
            bundle: command::bundle(),
            function: command::FUNCTION.parse().expect("a constant name"),
            params,
            mode: Mode::Apply,
            limits: limits(args, config, None),
            expect: Expected::default(),
            secrets: None,
        },
        secrets: Secrets::default(),
    })
}

fn what_scenario(
    args: &RunArgs,
    which: &str,
    config: &Config,
    dir: &StateDir,
) -> Result<What, Failure> {
    let wish = Wish {
        which,
        given: &args.params,
        function: args.function.as_deref(),
        dry_run: args.dry_run,
    };
    let stored = BundleStore::new(config.state.join(BUNDLES));
    let known = |name: &str| Db::bundles_of(&dir.path(JOURNAL_FILE), name).unwrap_or_default();
    let chosen = wish
        .choose(&stored, known)
        .map_err(|e| Failure::new(2, &e))?;
    let cgroups = config.command.cgroup.then(Cgroups::detect).flatten();
    let call = Call {
        scenario: chosen.call.scenario.clone(),
        bundle: chosen.call.bundle,
        function: chosen.call.function.clone(),
        params: Value::Object(chosen.params),
        mode: chosen.call.mode,
        limits: Limits {
            retry: chosen.retry,
            ..limits(args, config, chosen.timeout)
        },
        expect: Expected::default(),
        secrets: None,
    };
    Ok(What {
        executor: Box::new(Scenarios::new(config, Arc::new(chosen.bundle), cgroups)),
        local: Some(chosen.call),
        call,
        secrets: chosen.secrets,
    })
}

fn declined(why: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        DECLINED,
        &format!("{why}; --force runs it all the same, and says so in the report"),
    )
}

/// Everything that is known before anything happens.
struct Order {
    dir: StateDir,
    enrolled: Enrolled,
    executor: Box<dyn Executor>,
    call: Call,
    secrets: Secrets,
    note: LocalNote,
    run: RunId,
    keep: u64,
    shown: Shown,
    boot_id: String,
}

impl Order {
    fn new(args: &RunArgs) -> Result<Self, Failure> {
        let usage = |text: &dyn std::fmt::Display| Failure::new(2, text);
        let mut config =
            Config::load(args.config.as_deref(), args.state.as_deref()).map_err(|e| usage(&e))?;
        let dir = StateDir::open(&config.state).map_err(state_failure)?;
        let enrolled = Enrolled::load(&dir)
            .and_then(|e| e.ok_or_else(|| StateError::Absent(dir.dir().to_owned())))
            .map_err(state_failure)?;
        if args
            .why
            .as_ref()
            .is_some_and(|w| w.chars().count() > MAX_WHY)
        {
            return Err(usage(&format!("--why takes at most {MAX_WHY} characters")));
        }
        if args.timeout.is_some_and(|timeout| timeout.get().is_zero()) {
            return Err(usage(&"a timeout of nothing lets nothing run"));
        }
        let frozen = crate::freeze::reason(&dir).filter(|_| !args.dry_run);
        if let Some(why) = frozen.as_ref().filter(|_| !args.despite_freeze) {
            let text = format!(
                "{why}; nothing was run. --despite-freeze runs it all the same, and the report says so"
            );
            return Err(Failure::new(DECLINED, &text));
        }
        if args.force {
            config.capabilities = Capabilities::default();
        }
        let What {
            executor,
            local,
            call,
            secrets,
        } = match &args.scenario {
            Some(which) => what_scenario(args, which, &config, &dir)?,
            None => what_command(args, &config)?,
        };
        if call.params.to_string().len() > MAX_LOCAL_PARAMS {
            return Err(usage(&format!(
                "what it is given is too long to be reported: at most {MAX_LOCAL_PARAMS} bytes; put it in a file"
            )));
        }
        executor.check(&call).map_err(|e| {
            use crate::executor::Refused;
            match e {
                Refused::Capability(_) => declined(&e),
                e => usage(&e),
            }
        })?;
        let nonce = LocalNonce::random();
        let run = nonce.run_id(enrolled.stored.credentials.cluster, enrolled.serial());
        let (user, login) = who();
        let note = LocalNote {
            nonce,
            local: LocalRun {
                user,
                login,
                why: args.why.clone(),
                forced: args.force || frozen.is_some(),
                began: Timestamp::now(),
            },
            call: local,
            params: call.params.clone(),
            timeout: call.limits.timeout,
        };
        Ok(Self {
            dir,
            enrolled,
            executor,
            keep: call.limits.output_bytes,
            call,
            secrets,
            note,
            run,
            boot_id: crate::host::boot_id(&config.boot_id),
            shown: if args.json { Shown::Json } else { Shown::Raw },
        })
    }

    async fn run(self) -> Result<NodeResult, Failure> {
        let own =
            |e: &dyn std::fmt::Display| Failure::new(OWN_FAILURE, &format!("{e}; nothing was run"));
        let request = local_request(self.run);
        let path = self.dir.path(JOURNAL_FILE);
        let journal = Journal::open(&path).map_err(|e| own(&e))?;
        crate::local::like_its_directory(self.dir.dir(), &path).map_err(|e| own(&e))?;
        let cancel = CancellationToken::new();
        let why = end_on_signals(cancel.clone()).map_err(|e| own(&e))?;
        if let Err(why) = self.executor.prepare(&self.call, request).await {
            return Err(declined(&why));
        }
        let _owner = Owner::claim(&self.dir, self.run).map_err(|e| own(&e))?;
        let timeout = self.note.timeout.get();
        let start = StartNote {
            instance: InstanceId::random(),
            boot_id: self.boot_id.clone(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        if let Err(e) = journal
            .begin_local(self.run, self.note.clone(), start)
            .await
        {
            Owner::forget(&self.dir, self.run);
            return Err(own(&e));
        }
        self.say(&json!({"type": "started", "run": self.run, "node": self.name()}));
        let mut terminal = Terminal::new(
            request,
            journal.clone(),
            self.keep,
            timeout,
            cancel.clone(),
            self.shown,
        );
        let facts = journal.facts().await.ok().flatten();
        let facts = facts.and_then(|json| serde_json::from_str(&json).ok());
        let facts: Value = facts.unwrap_or_default();
        let step = Step {
            request,
            serial: self.enrolled.serial(),
            name: self.enrolled.assignment().name.clone(),
            assignment: self.enrolled.assignment(),
            // Those that the agent has said last; it need not run now.
            facts: Arc::new(facts),
            timeout,
            // All of it is shown; what is kept is the terminal's business.
            output_bytes: u64::MAX,
            sink: &mut terminal,
            cancel: &cancel,
            secrets: self.secrets.clone(),
            // Nobody would go on with it after that.
            restarts: None,
            resume: None,
            begins_with: None,
        };
        let result = self.executor.call(&self.call, step).await;
        let mut result = result.unwrap_or_else(|| {
            let serial = self.enrolled.serial();
            NodeResult::new(serial, Outcome::Unknown, "it gave no outcome")
        });
        let kept = terminal.close().await;
        result.output_bytes = kept.bytes;
        result.truncated |= kept.truncated;
        if let (Outcome::Cancelled, Some(why)) = (result.outcome, why.get()) {
            let reason = result.reason.take().unwrap_or_default();
            result.reason = Some(format!("{why}: {reason}"));
        }
        let written = self
            .write_down(&journal, request, &mut result, kept.chunks)
            .await;
        self.conclude(&result, written);
        Ok(result)
    }

    /// Writes the outcome down; a full disk is waited out for a while. Else
    /// the agent finds a run without an end, and says that.
    async fn write_down(
        &self,
        journal: &Journal,
        request: muster_protocol::ids::RequestId,
        result: &mut NodeResult,
        mut chunks: u32,
    ) -> bool {
        let until = tokio::time::Instant::now() + WRITE_FOR;
        loop {
            match journal.finish(request, result.clone(), chunks, false).await {
                Ok(_) => {
                    Owner::forget(&self.dir, self.run);
                    return true;
                }
                Err(e) if tokio::time::Instant::now() >= until => {
                    let _ = writeln!(
                        std::io::stderr(),
                        "error: the outcome could not be journaled, it will be reported as unknown: {e}"
                    );
                    return false;
                }
                // Room for the outcome is worth more than output.
                Err(_) if chunks > 0 && journal.drop_output(request).await.is_ok() => {
                    chunks = 0;
                    result.output_bytes = 0;
                    result.truncated = true;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    fn name(&self) -> &str {
        self.enrolled.assignment().name.as_str()
    }

    fn say(&self, line: &Value) {
        if self.shown == Shown::Json {
            print(&format!("{line}\n"));
        }
    }

    fn conclude(&self, result: &NodeResult, written: bool) {
        self.say(&json!({
            "type": "finished",
            "run": self.run,
            "node": self.name(),
            "result": result,
            "journaled": written,
        }));
        if self.shown == Shown::Raw {
            let value = result.value.as_ref().map(value_lines).unwrap_or_default();
            for line in value {
                print(&format!("{line}\n"));
            }
            let tally = result.tally.filter(|tally| !tally.is_empty());
            let tally = tally.map(|tally| format!(" ({tally})")).unwrap_or_default();
            let reason = result
                .reason
                .as_ref()
                .map_or_else(String::new, |r| format!(": {}", printable(r, 500)));
            let _ = writeln!(
                std::io::stderr(),
                "muster: {}{tally}{reason}; local run {}, the agent reports it",
                result.outcome,
                self.run
            );
        }
    }
}

fn state_failure(error: StateError) -> Failure {
    match &error {
        StateError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Failure::new(
                OWN_FAILURE,
                &format!("{error}; only root and the owner of the agent's state may run locally"),
            )
        }
        _ => Failure::new(OWN_FAILURE, &error),
    }
}

/// The process's exit code for how the command ended.
fn exit_code(result: &NodeResult) -> u8 {
    let byte = |n: i32| u8::try_from(n & 0xff).unwrap_or(1);
    match (result.outcome, result.exit, result.signal) {
        (Outcome::Succeeded, ..) => 0,
        (Outcome::TimedOut, ..) => TIMED_OUT,
        (Outcome::Cancelled, ..) => CANCELLED,
        (Outcome::Declined, ..) => DECLINED,
        (_, Some(code), _) => byte(code),
        (_, None, Some(signal)) => byte(128 + signal),
        (_, None, None) => 1,
    }
}

/// Who runs this: the Unix user, and who had logged in, where that is another.
fn who() -> (String, Option<String>) {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name_of = |uid: &str| {
        passwd
            .lines()
            .find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                (fields.nth(1)? == uid).then(|| name.to_owned())
            })
            .unwrap_or_else(|| uid.to_owned())
    };
    let user = name_of(&rustix::process::geteuid().as_raw().to_string());
    // The kernel's word first; the unset value is the largest number.
    let login = std::fs::read_to_string("/proc/self/loginuid")
        .ok()
        .map(|text| text.trim().to_owned())
        .filter(|uid| !uid.is_empty() && *uid != u32::MAX.to_string())
        .map(|uid| name_of(&uid))
        .or_else(|| std::env::var("SUDO_USER").ok())
        .map(|name| printable(&name, 64))
        .filter(|name| *name != user);
    (user, login)
}

/// Ctrl-C and its like end the command and all that it has started; which one
/// it was.
fn end_on_signals(cancel: CancellationToken) -> std::io::Result<Arc<OnceLock<&'static str>>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let why = Arc::new(OnceLock::new());
    let told = why.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = interrupt.recv() => "interrupted",
                _ = terminate.recv() => "told to end",
                _ = quit.recv() => "told to quit",
                _ = hangup.recv() => "the terminal was closed",
            };
            let _ = told.set(name);
            cancel.cancel();
        }
    });
    Ok(why)
}

#[cfg(test)]
mod tests {
    use muster_protocol::ids::Serial;

    use super::*;

    #[test]
    fn the_exit_code_is_the_commands() {
        let mut result = NodeResult::new(Serial(1), Outcome::Failed, "x");
        result.exit = Some(3);
        assert_eq!(exit_code(&result), 3);
        result.exit = None;
        result.signal = Some(9);
        assert_eq!(exit_code(&result), 137);
        result.outcome = Outcome::TimedOut;
        assert_eq!(exit_code(&result), 124);
        result.outcome = Outcome::Cancelled;
        assert_eq!(exit_code(&result), 130);
        let unseen = NodeResult::new(Serial(1), Outcome::Unknown, "x");
        assert_eq!(exit_code(&unseen), 1, "never a success");
    }
}
