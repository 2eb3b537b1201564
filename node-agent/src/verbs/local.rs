//! `muster-agent local run`: break glass.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use muster_protocol::envelope::{Call, Limits, Mode};
use muster_protocol::ids::{InstanceId, LocalNonce, RunId};
use muster_protocol::note::Expected;
use muster_protocol::run::{LocalRun, NodeResult, Outcome};
use muster_protocol::text::printable;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::{MAX_LOCAL_PARAMS, MAX_WHY};
use muster_scenarios::command;
use muster_scenarios::secret::Secrets;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::agent::JOURNAL_FILE;
use crate::cli::{Failure, print};
use crate::config::{Capabilities, Config};
use crate::executor::{Commands, Executor as _, Step};
use crate::identity::Enrolled;
use crate::journal::{Journal, LocalNote, StartNote, local_request};
use crate::local::{Owner, Shown, Terminal};
use crate::logging::{self, LogFormat};
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
The command runs as a muster run would: same environment, limits and journal, no standard input.
All output is shown as it is written; up to 1 MiB is journaled, the first 64 KiB are reported.

Exit code: the command's; 128+N when signal N ended it, 124 when its time was over, 130 when it
was cancelled, 126 when this node's policy does not grant it, 125 when nothing could be run.

  muster-agent local run --why 'broker is down' -- systemctl restart nginx
  muster-agent local run --shell -- 'ps aux | grep -c nginx'")]
pub struct RunArgs {
    /// The state directory; wins over the configuration
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The configuration; without this and without --state, the system's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Longest execution time
    #[arg(long, value_name = "TIME", default_value = "5m")]
    timeout: Span,
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
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
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

/// Everything that is known before anything happens.
struct Order {
    dir: StateDir,
    enrolled: Enrolled,
    commands: Commands,
    call: Call,
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
        let params = match args.command.as_slice() {
            [line] if args.shell => json!({ "shell": line }),
            _ if args.shell => {
                return Err(usage(
                    &"--shell takes the whole command as one word; quote it: muster-agent local run --shell -- 'ps aux | grep nginx'",
                ));
            }
            argv => json!({ "argv": argv }),
        };
        if params.to_string().len() > MAX_LOCAL_PARAMS {
            return Err(usage(&format!(
                "the command is too long to be reported: at most {MAX_LOCAL_PARAMS} bytes; put it in a file and run that"
            )));
        }
        if args
            .why
            .as_ref()
            .is_some_and(|w| w.chars().count() > MAX_WHY)
        {
            return Err(usage(&format!("--why takes at most {MAX_WHY} characters")));
        }
        if args.timeout.get().is_zero() {
            return Err(usage(&"a timeout of nothing lets nothing run"));
        }
        if args.force {
            config.capabilities = Capabilities {
                command: true,
                shell: true,
                ..config.capabilities
            };
        }
        let limits = Limits {
            timeout: args.timeout.min(config.limits.timeout),
            output_bytes: OUTPUT_BYTES.min(config.limits.output_bytes),
            retry: 0,
        };
        let commands = Commands::new(&config);
        let call = Call {
            scenario: command::NAME.parse().expect("a constant name"),
            bundle: command::bundle(),
            function: command::FUNCTION.parse().expect("a constant name"),
            params: params.clone(),
            mode: Mode::Apply,
            limits,
            expect: Expected::default(),
            secrets: None,
        };
        commands.check(&call).map_err(|e| {
            use crate::executor::Refused;
            match e {
                Refused::Capability(_) => Failure::new(
                    DECLINED,
                    &format!("{e}; --force runs it all the same, and says so in the report"),
                ),
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
                forced: args.force,
                began: Timestamp::now(),
            },
            params,
            timeout: limits.timeout,
        };
        Ok(Self {
            dir,
            enrolled,
            commands,
            call,
            note,
            run,
            keep: limits.output_bytes,
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
        let step = Step {
            request,
            serial: self.enrolled.serial(),
            name: self.enrolled.assignment().name.clone(),
            assignment: self.enrolled.assignment(),
            // Those are the agent's, which need not run.
            facts: std::sync::Arc::default(),
            timeout,
            // All of it is shown; what is kept is the terminal's business.
            output_bytes: u64::MAX,
            sink: &mut terminal,
            cancel: &cancel,
            secrets: Secrets::default(),
            // Nobody would go on with it after that.
            restarts: None,
            resume: None,
            begins_with: None,
        };
        let result = self.commands.call(&self.call, step).await;
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
            let reason = result
                .reason
                .as_ref()
                .map_or_else(String::new, |r| format!(": {}", printable(r, 500)));
            let _ = writeln!(
                std::io::stderr(),
                "muster: {}{reason}; local run {}, the agent reports it",
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
