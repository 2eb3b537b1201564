//! From a new connection to one that is registered and logged in: pure, one
//! message in, lines out.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use irc::proto::{CapSubCommand, Command, Message};
use muster_protocol::api::Secret;
use muster_protocol::text::printable;

use super::features::{Features, Offers};
use super::message::{line, numeric};
use super::sasl;
use super::{Caps, NetworkSettings, Sasl};

/// How many names are tried.
const MAX_NICKS: usize = 16;

/// Why there is no registered connection.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum RegisterError {
    /// It cannot do what is configured.
    #[error(
        "the server offers no SASL, and the bot is to log in by it before it joins: ask the \
         network's operators whether its services are up, or take `sasl` out of the settings"
    )]
    NoSasl,
    /// It cannot do it that way.
    #[error("the server offers no SASL {wanted}, only {offered}: set `mechanism` to one of them")]
    NoMechanism {
        wanted: &'static str,
        offered: String,
    },
    /// Services do not believe it.
    #[error("SASL {mechanism} failed ({code}): {why}: {hint}")]
    Sasl {
        mechanism: &'static str,
        code: u16,
        why: String,
        hint: &'static str,
    },
    /// Services speak something else.
    #[error("services asked for something that SASL {mechanism} does not have")]
    OddSasl { mechanism: &'static str },
    /// It let the bot in without that it logged in.
    #[error("the server ended registration before the bot was logged in")]
    NotLoggedIn,
    /// It never stops offering.
    #[error("the server sends capabilities without end")]
    EndlessOffers,
    /// Every name is taken or wrong.
    #[error("no name is free ({code} for `{nick}`: {why}): give others in `alt_nicks`")]
    NoNick {
        code: u16,
        nick: String,
        why: String,
    },
    /// It does not want the bot.
    #[error("the server refuses the bot ({code}): {why}")]
    Refused { code: u16, why: String },
    /// It said farewell.
    #[error("the server closed the connection: {0}")]
    Closed(String),
}

/// What comes of a message.
#[derive(Debug)]
pub(super) enum Step {
    /// To be sent. A line can hold a password.
    Send(Secret),
    /// Registered.
    Done(Box<Registered>),
    /// It does not go on.
    Fail(RegisterError),
}

/// A connection that is registered, and logged in where that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Registered {
    /// The name that the server took.
    pub(super) nick: String,
    /// `user@host`, as far as the server said.
    pub(super) from: Option<String>,
    /// What was agreed on.
    pub(super) caps: Caps,
    /// The names of it.
    pub(super) agreed: Vec<String>,
    /// What the server says of itself.
    pub(super) features: Features,
}

/// Where registration is. Each stage owns what exists only in it.
#[derive(Debug)]
enum Stage {
    /// The server tells what it offers.
    Listing(Offers),
    /// It was asked for what is wanted of that.
    Asking(Asking),
    /// Services are told who the bot is.
    LoggingIn(LoggingIn),
    /// The bot has said all; the server greets.
    Awaiting(Agreed),
    /// It has greeted, and says what it is.
    Welcomed(Agreed, Box<Welcome>),
    /// Ended.
    Over,
}

#[derive(Debug)]
struct Asking {
    offers: Offers,
    /// Asked for, not answered.
    open: BTreeSet<String>,
    /// To be asked for one by one, as together they were refused.
    rest: VecDeque<String>,
    agreed: Vec<String>,
}

#[derive(Debug)]
struct LoggingIn {
    agreed: Agreed,
    /// What to say when the server asks.
    answer: VecDeque<Secret>,
    asked: bool,
    /// The server said who the bot is.
    told: bool,
}

#[derive(Debug, Default)]
struct Agreed {
    caps: Caps,
    names: Vec<String>,
}

#[derive(Debug)]
struct Welcome {
    from: Option<String>,
    features: Features,
}

/// A connection that registers.
#[derive(Debug)]
pub(super) struct Register {
    settings: Arc<NetworkSettings>,
    stage: Stage,
    nick: String,
    tried: usize,
}

impl Register {
    /// Begins: what is to be sent first.
    pub(super) fn begin(settings: Arc<NetworkSettings>) -> (Self, Vec<Step>) {
        let nick = settings.nick.clone();
        let mut out = vec![send("CAP", &["LS", "302"])];
        if let Some(password) = &settings.server_password {
            out.push(send("PASS", &[password.expose()]));
        }
        out.push(send("NICK", &[&nick]));
        // Always with a colon: servers that count on it exist.
        out.push(Step::Send(Secret::new(format!(
            "USER {} 0 * :{}",
            settings.username, settings.realname
        ))));
        let stage = Stage::Listing(Offers::default());
        let register = Self {
            settings,
            stage,
            nick,
            tried: 1,
        };
        (register, out)
    }

    /// Takes a message.
    pub(super) fn step(&mut self, message: &Message) -> Vec<Step> {
        let mut out = Vec::new();
        let taken = match &message.command {
            Command::PING(text, second) => {
                let text = second.as_ref().unwrap_or(text);
                out.push(send("PONG", &[text]));
                Ok(())
            }
            Command::ERROR(why) => Err(RegisterError::Closed(printable(why, 200))),
            Command::CAP(_, sub, first, second) => {
                self.cap(*sub, first.as_deref(), second.as_deref(), &mut out)
            }
            Command::AUTHENTICATE(text) => self.authenticate(text, &mut out),
            command => match numeric(command) {
                Some((code, args)) => self.numeric(code, args, &mut out),
                None => Ok(()),
            },
        };
        if let Err(error) = taken {
            self.stage = Stage::Over;
            out.push(Step::Fail(error));
        }
        out
    }

    /// What to say when it takes too long.
    pub(super) fn too_slow(&self) -> &'static str {
        match self.stage {
            Stage::Listing(_) | Stage::Asking(_) => {
                "the server does not answer: is this an IRC server?"
            }
            Stage::LoggingIn(_) => {
                "services do not answer the login: ask the network's operators whether they are up"
            }
            Stage::Awaiting(_) | Stage::Welcomed(..) | Stage::Over => {
                "the server does not finish registration"
            }
        }
    }

    fn cap(
        &mut self,
        sub: CapSubCommand,
        first: Option<&str>,
        second: Option<&str>,
        out: &mut Vec<Step>,
    ) -> Result<(), RegisterError> {
        match (&mut self.stage, sub) {
            (Stage::Listing(offers), CapSubCommand::LS) => {
                let (more, list) = match (first, second) {
                    (Some("*"), Some(list)) => (true, list),
                    (list, _) => (false, list.unwrap_or("")),
                };
                if !offers.add(list) {
                    return Err(RegisterError::EndlessOffers);
                }
                if !more {
                    let offers = std::mem::take(offers);
                    self.ask(offers, out)?;
                }
                Ok(())
            }
            (Stage::Asking(asking), CapSubCommand::ACK | CapSubCommand::NAK) => {
                let agreed = sub == CapSubCommand::ACK;
                let list = match (first, second) {
                    (Some("*"), Some(list)) => list,
                    (list, _) => list.unwrap_or(""),
                };
                let answered: Vec<String> = list
                    .split_ascii_whitespace()
                    .map(|name| name.trim_start_matches(['~', '=']).to_owned())
                    .filter(|name| asking.open.remove(name))
                    .collect();
                if agreed {
                    asking.agreed.extend(answered);
                } else {
                    // A server that knows one of them not refuses all, whether
                    // it names all, that one or none.
                    let open = std::mem::take(&mut asking.open);
                    if answered.len() + open.len() > 1 {
                        asking.rest.extend(answered.into_iter().chain(open));
                    }
                }
                self.ask_on(out)
            }
            _ => Ok(()),
        }
    }

    /// The list is complete: asks for what is wanted.
    fn ask(&mut self, offers: Offers, out: &mut Vec<Step>) -> Result<(), RegisterError> {
        if let Some(sasl) = &self.settings.sasl {
            let offered = offers.sasl().ok_or(RegisterError::NoSasl)?;
            let wanted = sasl.mechanism();
            let known =
                offered.is_empty() || offered.split(',').any(|m| m.eq_ignore_ascii_case(wanted));
            if !known {
                let offered = printable(offered, 100);
                return Err(RegisterError::NoMechanism { wanted, offered });
            }
        }
        let wanted = offers.wanted(self.settings.sasl.is_some());
        if !wanted.is_empty() {
            out.push(Step::Send(Secret::new(format!(
                "CAP REQ :{}",
                wanted.join(" ")
            ))));
        }
        self.stage = Stage::Asking(Asking {
            offers,
            open: wanted.into_iter().collect(),
            rest: VecDeque::new(),
            agreed: Vec::new(),
        });
        self.ask_on(out)
    }

    /// Goes on when everything that was asked for is answered.
    fn ask_on(&mut self, out: &mut Vec<Step>) -> Result<(), RegisterError> {
        let Stage::Asking(asking) = &mut self.stage else {
            return Ok(());
        };
        if !asking.open.is_empty() {
            return Ok(());
        }
        if let Some(next) = asking.rest.pop_front() {
            out.push(Step::Send(Secret::new(format!("CAP REQ :{next}"))));
            asking.open.insert(next);
            return Ok(());
        }
        let names = std::mem::take(&mut asking.agreed);
        let caps = asking.offers.caps(&names);
        let agreed = Agreed { caps, names };
        match &self.settings.sasl {
            Some(_) if !agreed.names.iter().any(|name| name == "sasl") => {
                Err(RegisterError::NoSasl)
            }
            Some(sasl) => {
                out.push(send("AUTHENTICATE", &[sasl.mechanism()]));
                self.stage = Stage::LoggingIn(LoggingIn {
                    agreed,
                    answer: sasl::answer(sasl).into(),
                    asked: false,
                    told: false,
                });
                Ok(())
            }
            None => {
                out.push(send("CAP", &["END"]));
                self.stage = Stage::Awaiting(agreed);
                Ok(())
            }
        }
    }

    fn authenticate(&mut self, text: &str, out: &mut Vec<Step>) -> Result<(), RegisterError> {
        let Stage::LoggingIn(login) = &mut self.stage else {
            return Ok(());
        };
        // Neither mechanism is asked anything but to begin.
        if login.asked || text.trim_start_matches(':') != "+" {
            out.push(send("AUTHENTICATE", &["*"]));
            let mechanism = self.mechanism();
            return Err(RegisterError::OddSasl { mechanism });
        }
        login.asked = true;
        out.extend(login.answer.drain(..).map(Step::Send));
        Ok(())
    }

    fn mechanism(&self) -> &'static str {
        self.settings.sasl.as_ref().map_or("", Sasl::mechanism)
    }

    fn sasl_error(&self, code: u16, why: String) -> RegisterError {
        let hint = match &self.settings.sasl {
            Some(Sasl::External { .. }) => {
                "tell services the fingerprint of the certificate in `client_cert_file`"
            }
            _ => "look at `account` and at the password in `password_file`",
        };
        RegisterError::Sasl {
            mechanism: self.mechanism(),
            code,
            why,
            hint,
        }
    }

    fn numeric(
        &mut self,
        code: u16,
        args: &[String],
        out: &mut Vec<Step>,
    ) -> Result<(), RegisterError> {
        let why = || printable(args.last().map_or("", String::as_str), 200);
        match code {
            1 => self.welcome(args),
            5 => {
                if let (Stage::Welcomed(_, welcome), [_, tokens @ .., _]) = (&mut self.stage, args)
                {
                    welcome.features.take(tokens);
                }
                Ok(())
            }
            // The end of the message of the day, or that there is none.
            376 | 422 => {
                match std::mem::replace(&mut self.stage, Stage::Over) {
                    Stage::Welcomed(agreed, welcome) => {
                        out.push(Step::Done(Box::new(Registered {
                            nick: self.nick.clone(),
                            from: welcome.from,
                            caps: agreed.caps,
                            agreed: agreed.names,
                            features: welcome.features,
                        })));
                    }
                    other => self.stage = other,
                }
                Ok(())
            }
            // Taken, wrong, or not for us now.
            432 | 433 | 436 | 437 => self.other_nick(code, why(), out),
            464..=466 => Err(RegisterError::Refused { code, why: why() }),
            900 => {
                if let Stage::LoggingIn(login) = &mut self.stage {
                    login.told = true;
                }
                Ok(())
            }
            903 => {
                self.logged_in(out);
                Ok(())
            }
            902 | 904 | 905 | 906 | 908 if self.is_logging_in() => Err(match (code, args) {
                (908, [_, mechanisms, ..]) => RegisterError::NoMechanism {
                    wanted: self.mechanism(),
                    offered: printable(mechanisms, 100),
                },
                _ => self.sasl_error(code, why()),
            }),
            // Already logged in: only if the server said as whom.
            907 => match &self.stage {
                Stage::LoggingIn(login) if login.told => {
                    self.logged_in(out);
                    Ok(())
                }
                Stage::LoggingIn(_) => Err(self.sasl_error(code, why())),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn is_logging_in(&self) -> bool {
        matches!(self.stage, Stage::LoggingIn(_))
    }

    fn logged_in(&mut self, out: &mut Vec<Step>) {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            // Not before anything was said: nobody could have believed it.
            Stage::LoggingIn(login) if login.asked => {
                out.push(send("CAP", &["END"]));
                self.stage = Stage::Awaiting(login.agreed);
            }
            other => self.stage = other,
        }
    }

    fn welcome(&mut self, args: &[String]) -> Result<(), RegisterError> {
        let agreed = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Awaiting(agreed) => agreed,
            stage @ Stage::Welcomed(..) => {
                self.stage = stage;
                return Ok(());
            }
            // A server that knows no capabilities just goes on.
            _ if self.settings.sasl.is_none() => Agreed::default(),
            Stage::Listing(_) => return Err(RegisterError::NoSasl),
            _ => return Err(RegisterError::NotLoggedIn),
        };
        if let Some(nick) = args.first().filter(|nick| nick.as_str() != "*") {
            self.nick.clone_from(nick);
        }
        let greeting = args.last().map_or("", String::as_str);
        let from = greeting.split(' ').next_back().and_then(|mask| {
            let (nick, from) = mask.split_once('!')?;
            (nick == self.nick && from.contains('@')).then(|| from.to_owned())
        });
        let features = Features::default();
        self.stage = Stage::Welcomed(agreed, Box::new(Welcome { from, features }));
        Ok(())
    }

    fn other_nick(
        &mut self,
        code: u16,
        why: String,
        out: &mut Vec<Step>,
    ) -> Result<(), RegisterError> {
        if matches!(self.stage, Stage::Welcomed(..) | Stage::Over) {
            return Ok(());
        }
        if self.tried >= MAX_NICKS {
            return Err(RegisterError::NoNick {
                code,
                nick: self.nick.clone(),
                why,
            });
        }
        self.nick = candidate(&self.settings, self.tried);
        self.tried += 1;
        out.push(send("NICK", &[&self.nick]));
        Ok(())
    }
}

/// The name that is tried as the `n`th, from 1 on: first the alternatives,
/// then the wanted one with something behind it. Nine characters are what the
/// oldest servers take.
fn candidate(settings: &NetworkSettings, n: usize) -> String {
    if let Some(nick) = settings.alt_nicks.get(n - 1) {
        return nick.clone();
    }
    let suffix = match n - settings.alt_nicks.len().min(n - 1) {
        n @ 1..=3 => "_".repeat(n),
        n => format!(
            "{:02}",
            n * 7 + usize::from(muster_protocol::ids::random_bytes::<1>()[0]) % 7
        ),
    };
    let room = settings.nick.len().min(9usize.saturating_sub(suffix.len()));
    // A name is ASCII.
    format!("{}{suffix}", settings.nick.get(..room).unwrap_or("m"))
}

fn send(verb: &str, args: &[&str]) -> Step {
    Step::Send(Secret::new(line(verb, args)))
}

#[cfg(test)]
mod tests;
