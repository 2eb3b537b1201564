//! The desk of the control tower: a line that was heard in a chat becomes an
//! answer, and what it asks for is judged and done as through any other door.

mod again;
mod change;
mod changes;
mod machines;
mod pending;
mod read;
mod run;
mod say;
mod who;

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{ChatAnswer, ChatLine, ChatPerson, ChatPlace, Say};
use muster_protocol::chat::alias::Aliases;
use muster_protocol::chat::command::{self, Command, CommandError, Said};
use muster_protocol::ids::RunId;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::{Timestamp, elapsed};
use sha2::{Digest as _, Sha256};

use self::pending::Pending;
use super::links::Links;
use super::totp::Totps;
use crate::audit::as_request;
use crate::authz::{Action, Caller};
use crate::http::{ApiError, AppState};

/// A line that is older counts no more: it was written for another moment.
const FRESH: Duration = Duration::from_secs(60);
/// How far the clock of a witness may be ahead.
const AHEAD: Duration = Duration::from_secs(30);
/// Longest id of a line, in bytes.
const MAX_ID: usize = 200;
/// Longest nick, mask or sight, in bytes.
const MAX_NAME: usize = 300;

/// What the desk remembers between lines. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Desk {
    /// Plans that wait for a yes, and who has it.
    pending: Pending,
    /// One-time links.
    pub links: Links,
    /// Devices for one-time codes.
    pub totps: Totps,
    /// The last lines that did something, so that none does it twice.
    heard: Arc<again::Heard>,
}

impl Desk {
    /// A desk with these devices.
    #[must_use]
    pub fn new(totps: Totps) -> Self {
        Self {
            pending: Pending::default(),
            links: Links::default(),
            totps,
            heard: Arc::default(),
        }
    }
}

/// One line on the desk: who says it, where, and what there is to do it with.
struct Line<'a> {
    state: &'a AppState,
    /// Who asks, as it is judged.
    caller: Caller,
    /// What they are called where they said it.
    place: ChatPlace,
    /// The id of a run that this line asks for: the same line asks for the
    /// same run.
    run: RunId,
    aliases: Aliases,
    /// Gives the place among the requests back that are worked on.
    wait: &'a (dyn Fn() + Send + Sync),
}

/// What a line comes to, or why to nothing.
type Answer = Result<Vec<Say>, ApiError>;

/// Takes a line that a witness heard.
///
/// # Errors
/// What is wrong with the witness or its report: nothing was done. What is
/// wrong with the line is in the answer.
pub async fn hear(
    state: &AppState,
    witness: &Caller,
    line: ChatLine,
    wait: &(dyn Fn() + Send + Sync),
) -> Result<ChatAnswer, ApiError> {
    reported(witness, &line)?;
    if let Some(late) = late(&line, Timestamp::now()) {
        return Ok(answer(vec![say::bad(late)]));
    }
    // Linking is how somebody becomes somebody, so it comes first.
    if let Some(code) = link_code(&line) {
        return Ok(answer(vec![link(state, &line, code)]));
    }
    let asked = who::asker(state, witness, &line);
    let aliases = state.hooks.aliases();
    let names = scenario_names(state);
    let said = command::read(&line.line, &aliases, names.iter().map(String::as_str));
    let said = match said {
        Ok(said) => said,
        Err(error) => return Ok(answer(vec![say::bad(mistake(&error))])),
    };
    let caller = match &said.code {
        None => asked,
        Some(code) => match who::with_code(state, asked, code).await {
            Ok(surer) => surer,
            Err(error) => return Ok(answer(vec![say::bad(error.to_string())])),
        },
    };
    let run = run_id(&line);
    let desk = Line {
        state,
        caller,
        place: place(&line),
        run,
        aliases,
        wait,
    };
    let key = (line.network.clone(), line.id.clone());
    let text = format!("{}: {}", said.command.verb(), line.line);
    // Boxed: what it can come to is many things.
    let work = Box::pin(as_request("IRC", &text, desk.answer(&said)));
    let says = state
        .desk
        .heard
        .once(key, Timestamp::now(), || work)
        .await
        .unwrap_or_else(|error| vec![say::problem(&error.0)]);
    Ok(answer(says))
}

fn answer(says: Vec<Say>) -> ChatAnswer {
    ChatAnswer { says }
}

/// Holds what a witness reports against what it may report.
fn reported(witness: &Caller, line: &ChatLine) -> Result<(), ApiError> {
    let wrong = |title: &str| ApiError::new(Kind::InvalidRequest, title);
    // It speaks of its own network alone.
    if witness.principal.as_str() != format!("irc:{}", line.network) {
        return Err(ApiError::new(
            Kind::Denied,
            format!(
                "{} may tell nothing of the network {}",
                witness.principal, line.network
            ),
        )
        .hint(format!(
            "its token has to be for `irc:{}`: muster token create --for irc:{} --role witness",
            line.network, line.network
        )));
    }
    let printable = |text: &str| text.chars().all(|c| !c.is_control());
    if line.id.is_empty() || line.id.len() > MAX_ID || !printable(&line.id) {
        return Err(wrong(
            "the id of a line has 1 to 200 bytes, none of them a control character",
        ));
    }
    let speaker = &line.speaker;
    let names = [
        Some(&speaker.nick),
        Some(&speaker.mask),
        speaker.sight.as_ref(),
    ];
    let account = speaker.account.as_ref().map(|account| &account.name);
    for name in names.into_iter().flatten().chain(account) {
        if name.is_empty() || name.len() > MAX_NAME || !printable(name) {
            return Err(wrong(
                "a name of the speaker is empty, too long, or holds a control character",
            ));
        }
    }
    Ok(())
}

/// Why a line counts no more.
fn late(line: &ChatLine, now: Timestamp) -> Option<String> {
    let times = [Some(line.heard), line.server_time];
    for at in times.into_iter().flatten() {
        if elapsed(at, now) > FRESH {
            let age = elapsed(at, now).as_secs();
            return Some(format!(
                "that was written {age} s ago: nothing was done, say it again"
            ));
        }
        if elapsed(now, at) > AHEAD {
            return Some("that was written in the future: the clocks of bot, network and broker differ; nothing was done".to_owned());
        }
    }
    None
}

fn mistake(error: &CommandError) -> String {
    muster_protocol::text::printable(&error.to_string(), 400)
}

/// The id of the run that a line asks for.
fn run_id(line: &ChatLine) -> RunId {
    let mut hash = Sha256::new();
    hash.update(b"muster chat line 1\0");
    hash.update(line.network.as_str());
    hash.update(b"\0");
    hash.update(&line.id);
    let digest: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    RunId::from_bytes(bytes)
}

fn place(line: &ChatLine) -> ChatPlace {
    let speaker = &line.speaker;
    ChatPlace {
        network: line.network.clone(),
        channel: line.channel.clone(),
        person: Some(ChatPerson {
            nick: speaker.nick.clone(),
            account: speaker.account.as_ref().map(|account| account.name.clone()),
            sight: speaker.sight.clone(),
        }),
    }
}

fn scenario_names(state: &AppState) -> Vec<String> {
    let all = state.library.list();
    all.iter()
        .map(|version| version.view().name.to_string())
        .collect()
}

/// The code of `link CODE`, written to the bot alone.
fn link_code(line: &ChatLine) -> Option<&str> {
    let (verb, code) = line.line.trim().split_once(' ')?;
    (verb.eq_ignore_ascii_case("link") && line.channel.is_none()).then(|| code.trim())
}

fn link(state: &AppState, line: &ChatLine, code: &str) -> Say {
    let now = Timestamp::now();
    let sight = line.speaker.sight.as_deref();
    match state.desk.links.link(&line.network, sight, code, now) {
        Ok(linked) => {
            tracing::info!(
                network = %line.network, mask = line.speaker.mask, principal = %linked.principal,
                "somebody was linked by a code"
            );
            say::good(format!(
                "you are {} here until you leave, change your nick, or for 12 hours; what changes anything needs --code as well",
                linked.principal
            ))
        }
        Err(error) => say::bad(error.to_string()),
    }
}

impl Line<'_> {
    async fn answer(&self, said: &Said) -> Answer {
        match &said.command {
            Command::Run(run) => self.run(run).await,
            Command::OnNodes(on) => self.on_nodes(on).await,
            Command::Yes(which) => self.yes(which.as_deref()).await,
            Command::No(which) => self.no(which.as_deref()),
            Command::Diff(which) => self.diff(which.as_deref()).await,
            Command::Retry { run, which } => self.retry(run, *which).await,
            Command::Ping(on) => self.ping(on.as_deref()).await,
            Command::Nodes(on) => self.nodes(on.as_deref()).await,
            Command::Match(on) => self.matching(on).await,
            Command::Runs(count) => self.runs(*count).await,
            Command::Last => self.last().await,
            Command::Show(run) => self.show(run.as_deref()).await,
            Command::Who => self.who().await,
            Command::Help(about) => self.help(about.as_deref()).await,
            Command::Approve(run) => self.approve(run).await,
            Command::Answer { run, answer } => self.answered(run, answer).await,
            Command::Cancel(run) => self.cancel(run).await,
            Command::Freeze(why) => self.freeze(why).await,
            Command::Thaw => self.thaw().await,
            Command::Alarms => self.alarms().await,
            Command::Ack(alarm) => self.ack(alarm).await,
            Command::Silence { alarm, time } => self.silence(alarm, *time).await,
            Command::Machines(machines) => self.machines(machines).await,
            Command::Build { name, params } => self.build(name, params).await,
            // Whoever speaks knows what it has not said yet.
            Command::More => Ok(vec![say::plain("there is no more".to_owned())]),
        }
    }

    async fn allowed(&self, action: Action) -> Result<(), ApiError> {
        self.state.authorize(&self.caller, action, ()).await?;
        Ok(())
    }
}

/// A problem of a kind, with what to do.
fn no(kind: Kind, title: impl Into<String>) -> ApiError {
    ApiError(Box::new(Problem::new(kind, title)))
}
