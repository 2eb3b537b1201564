//! What changes how things go: runs that wait, the freeze, alarms, builds.

use std::collections::BTreeMap;

use muster_protocol::api::RunView;
use muster_protocol::run::{Gate, Wish};
use muster_protocol::text::printable;
use muster_protocol::units::Span;

use super::say::count;
use super::{Answer, Line, say};
use crate::authz::Action;
use crate::http::{freeze_view, wish};

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
        let view = freeze_view(state);
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
        Ok(vec![say::plain("no alarm".to_owned())])
    }

    pub(super) async fn ack(&self, _alarm: &str) -> Answer {
        Ok(Vec::new())
    }

    pub(super) async fn silence(&self, _alarm: &str, _time: Span) -> Answer {
        Ok(Vec::new())
    }

    pub(super) async fn build(&self, _name: &str, _params: &BTreeMap<String, String>) -> Answer {
        Ok(Vec::new())
    }
}

fn asked_by(view: &RunView) -> String {
    format!(
        "{} of {}",
        printable(&view.brief.title, 200),
        view.brief.principal
    )
}
