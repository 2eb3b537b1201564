//! What changes how things go: runs that wait, the freeze, alarms, builds.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_protocol::api::{RunView, Say, Tone};
use muster_protocol::problem::Kind;
use muster_protocol::run::{Gate, Wish};
use muster_protocol::text::printable;
use muster_protocol::units::{Span, Timestamp, elapsed};
use tokio::time::{Instant, sleep};

use super::say::count;
use super::{Answer, Line, no, say};
use crate::authz::Action;
use crate::chat::alarms::table::{Alarm, State};
use crate::chat::alarms::{AlarmsError, By, What};
use crate::chat::builds::{BuildError, Request};
use crate::http::{ApiError, freeze_view, wish};

/// How long connected nodes are waited for when they are to go by a freeze.
const SETTLES: Duration = Duration::from_secs(3);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(50);

impl Line<'_> {
    pub(super) async fn approve(&self, run: &str) -> Answer {
        let view = wish(self.state, &self.caller, run, Wish::Approve).await?;
        let short = view.brief.short.clone();
        let line = match &view.brief.waits {
            Some(Gate::Approvals { given, needed, .. }) => {
                let left = (*needed as usize).saturating_sub(given.len());
                format!("approved; {} more to go", count(left, "approval"))
            }
            _ => format!("approved: {} goes on", asked_by(&view)),
        };
        Ok(vec![say::about(say::good(line), &short)])
    }

    pub(super) async fn answered(&self, run: &str, answer: &str) -> Answer {
        let state = self.state;
        state.admit(&self.caller, Action::AnswerRun).await?;
        let engine = &state.nodes.engine;
        let run = engine.lookup(run)?;
        let run = state
            .authorize(&self.caller, Action::AnswerRun, run)
            .await?;
        let view = engine.answer(run, answer.to_owned()).await?;
        let line = say::good("answered: it goes on".to_owned());
        Ok(vec![say::about(line, &view.brief.short)])
    }

    pub(super) async fn cancel(&self, run: &str) -> Answer {
        let state = self.state;
        state.admit(&self.caller, Action::CancelRun).await?;
        let engine = &state.nodes.engine;
        let run = engine.lookup(run)?;
        let run = state
            .authorize(&self.caller, Action::CancelRun, run)
            .await?;
        let view = engine.cancel(run).await?;
        let line = format!("{} is being cancelled", printable(&view.brief.title, 200));
        Ok(vec![say::about(say::warn(line), &view.brief.short)])
    }

    pub(super) async fn freeze(&self, why: &str) -> Answer {
        let state = self.state;
        state.active()?;
        self.allowed(Action::Freeze).await?;
        state.freezer.freeze(&self.caller.principal, why).await?;
        (self.wait)();
        let until = Instant::now() + SETTLES;
        let mut view = freeze_view(state);
        while view.missing > 0 && Instant::now() < until {
            sleep(LOOK).await;
            view = freeze_view(state);
        }
        let line = format!(
            "frozen: nothing new begins anywhere; {} there go by it{}. !thaw ends it",
            count(view.taken as usize, "node"),
            if view.missing > 0 {
                format!(", {} not yet", view.missing)
            } else {
                String::new()
            }
        );
        Ok(vec![say::warn(line)])
    }

    pub(super) async fn thaw(&self) -> Answer {
        let state = self.state;
        state.active()?;
        self.allowed(Action::Freeze).await?;
        let nick = self.place.person.as_ref();
        let nick = nick.map_or_else(String::new, |person| printable(&person.nick, 60));
        let why = format!("said by {nick} in a chat");
        state.freezer.thaw(&self.caller.principal, &why).await?;
        Ok(vec![say::good("thawed: things begin again".to_owned())])
    }

    pub(super) async fn alarms(&self) -> Answer {
        self.allowed(Action::ReadEvents).await?;
        let now = Timestamp::now();
        let mut lines = Vec::new();
        for alarm in self.state.chat.alarms().list().await {
            if alarm.state == State::Firing {
                lines.push(alarm_line(&alarm, now));
            }
        }
        for silence in self.state.chat.alarms().silences().await {
            lines.push(format!(
                "{} is silenced by {} for {}",
                printable(&silence.pattern, 100),
                silence.by,
                left(now, silence.until)
            ));
        }
        Ok(vec![if lines.is_empty() {
            say::good("no alarm".to_owned())
        } else {
            Say {
                tone: Tone::Warn,
                ..say::several(lines)
            }
        }])
    }

    /// Who does something about an alarm, and is told so here.
    fn by(&self) -> By {
        By {
            principal: self.caller.principal.clone(),
            place: Some(self.place.clone()),
        }
    }

    pub(super) async fn ack(&self, alarm: &str) -> Answer {
        self.allowed(Action::ManageAlarms).await?;
        let number = alarm.trim_start_matches('#').parse().map_err(|_| {
            let word = printable(alarm, 40);
            no(
                Kind::InvalidRequest,
                format!("`{word}` is no number of an alarm: !alarms says which there are"),
            )
        })?;
        let alarm = self.state.chat.alarms().ack(number, &self.by()).await?;
        Ok(vec![say::good(format!(
            "{} looks after alarm {number}: {}",
            self.caller.principal,
            printable(&alarm.name, 200)
        ))])
    }

    pub(super) async fn silence(&self, alarm: &str, time: Span) -> Answer {
        self.allowed(Action::ManageAlarms).await?;
        let what: What = alarm
            .parse()
            .map_err(|error| no(Kind::InvalidRequest, format!("{error}")))?;
        let until = self
            .state
            .chat
            .alarms()
            .silence(&what, time, &self.by())
            .await?;
        let what = printable(alarm, 100);
        Ok(vec![if time.get().is_zero() {
            say::plain(format!("{what} is heard again"))
        } else {
            say::plain(format!(
                "{what} is silent until {}",
                until.strftime("%H:%M UTC")
            ))
        }])
    }

    pub(super) async fn build(&self, name: &str, params: &BTreeMap<String, String>) -> Answer {
        self.allowed(Action::StartBuilds).await?;
        let wrong = |error: &dyn std::fmt::Display| no(Kind::InvalidRequest, error.to_string());
        let name = name.parse().map_err(|error| wrong(&error))?;
        let request = Request {
            name,
            params: params.clone(),
            by: self.caller.principal.clone(),
            place: self.place.clone(),
            line: self.run.to_string(),
        };
        (self.wait)();
        Ok(vec![self.state.chat.builds().start(request).await?])
    }
}

/// `31 DiskFull since 4 min, ana looks after it`.
fn alarm_line(alarm: &Alarm, now: Timestamp) -> String {
    let mut line = format!(
        "{} {} since {}",
        alarm.number,
        printable(&alarm.name, 200),
        left(alarm.since, now)
    );
    if let Some(acked) = &alarm.acked {
        line.push_str(&format!(", {} looks after it", acked.by));
    }
    if let Some(until) = alarm.silenced_until.filter(|until| *until > now) {
        line.push_str(&format!(", silent for {}", left(now, until)));
    }
    line
}

fn left(from: Timestamp, to: Timestamp) -> Span {
    let seconds = elapsed(from, to).as_secs();
    Span::from_secs(if seconds > 120 {
        seconds / 60 * 60
    } else {
        seconds
    })
}

impl From<BuildError> for ApiError {
    fn from(error: BuildError) -> Self {
        let kind = match &error {
            BuildError::Unknown { .. } => Kind::NotFound,
            BuildError::Params { .. } => Kind::InvalidRequest,
            _ => Kind::Unavailable,
        };
        no(kind, error.to_string())
    }
}

impl From<AlarmsError> for ApiError {
    fn from(error: AlarmsError) -> Self {
        let kind = match &error {
            AlarmsError::Unknown(_) | AlarmsError::NotSilenced(_) => Kind::NotFound,
            AlarmsError::Over { .. } | AlarmsError::Acked { .. } => Kind::Conflict,
            AlarmsError::TooLong | AlarmsError::TooMany => Kind::InvalidRequest,
            AlarmsError::NotActive | AlarmsError::Store(_) => Kind::Unavailable,
        };
        no(kind, error.to_string())
    }
}

fn asked_by(view: &RunView) -> String {
    format!(
        "{} of {}",
        printable(&view.brief.title, 200),
        view.brief.principal
    )
}
