//! What people want of runs that are under way.

use muster_protocol::api::{RunBrief, RunView};
use muster_protocol::ids::RunId;
use muster_protocol::run::{Wish, WishError, Wisher};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::engine::{ANSWER, Engine, lock};
use super::error::EngineError;
use super::flow::AnswerError;
use super::index::LookupError;
use super::task::ToRun;
use crate::authz::Authorized;

impl Engine {
    /// Asks for the end of a run, and returns it as it is once that is
    /// written down.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn cancel(&self, run: Authorized<RunId>) -> Result<RunView, EngineError> {
        let by = run.principal().clone();
        let run = run.into_inner();
        let shared = &self.0;
        shared.active().ok_or(EngineError::NotReady)?;
        self.is_whole(run)?;
        let open = lock(&shared.open).get(&run).cloned();
        if let Some(open) = open {
            let (tell, told) = oneshot::channel();
            let asked = async {
                open.inbox.send(ToRun::Cancel { by, tell }).await.ok()?;
                told.await.ok()
            };
            let state = timeout(ANSWER, asked).await.ok().flatten();
            return match state.ok_or(EngineError::NoAnswer(run))? {
                Ok(state) => Ok(self.view_of(&state)),
                Err(state) => Err(ended(&self.view_of(&state).brief)),
            };
        }
        let brief = lock(&shared.index)
            .get(run)
            .ok_or_else(|| LookupError::NoRun(run.to_string()))?;
        if brief.state.is_final() {
            Err(ended(&brief))
        } else {
            Err(EngineError::NoAnswer(run))
        }
    }

    /// Refuses what people do to a whole run, and not to a part of one that is
    /// there.
    fn is_whole(&self, run: RunId) -> Result<(), EngineError> {
        let index = lock(&self.0.index);
        match index.part_of(run) {
            Some(part) if index.first(part.run).is_some() => Err(EngineError::Part {
                short: index.short(run),
                of: index.short(part.run),
            }),
            _ => Ok(()),
        }
    }

    /// Answers what a run asks, and returns it as it is once that is written
    /// down.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn answer(
        &self,
        run: Authorized<RunId>,
        text: String,
    ) -> Result<RunView, EngineError> {
        let by = run.principal().clone();
        let run = run.into_inner();
        let shared = &self.0;
        shared.active().ok_or(EngineError::NotReady)?;
        let open = lock(&shared.open).get(&run).cloned();
        let not_asked = || AnswerError::NotAsked(lock(&shared.index).short(run));
        let open = open.ok_or_else(not_asked)?;
        let (tell, told) = oneshot::channel();
        let asked = async {
            open.inbox
                .send(ToRun::Answer { by, text, tell })
                .await
                .ok()?;
            told.await.ok()
        };
        let state = timeout(ANSWER, asked).await.ok().flatten();
        let state = state.ok_or(EngineError::NoAnswer(run))??;
        Ok(self.view_of(&state))
    }

    /// Does what somebody wants of a run, and returns it as it is once that is
    /// written down.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn wish(&self, run: Authorized<RunId>, wish: Wish) -> Result<RunView, EngineError> {
        let who = Wisher {
            by: run.principal().clone(),
            door: Some(run.caller().door),
        };
        let run = run.into_inner();
        let shared = &self.0;
        shared.active().ok_or(EngineError::NotReady)?;
        if matches!(wish, Wish::Pause | Wish::Resume) {
            self.is_whole(run)?;
        }
        let open = lock(&shared.open).get(&run).cloned();
        let refused = |why| EngineError::Refused {
            short: lock(&shared.index).short(run),
            why,
        };
        if let Some(open) = open {
            let (tell, told) = oneshot::channel();
            let asked = async {
                open.inbox
                    .send(ToRun::Wish { wish, who, tell })
                    .await
                    .ok()?;
                told.await.ok()
            };
            let state = timeout(ANSWER, asked).await.ok().flatten();
            let state = state.ok_or(EngineError::NoAnswer(run))?.map_err(refused)?;
            return Ok(self.view_of(&state));
        }
        let brief = lock(&shared.index)
            .get(run)
            .ok_or_else(|| LookupError::NoRun(run.to_string()))?;
        if brief.state.is_final() {
            Err(refused(WishError::Ended(brief.state)))
        } else {
            Err(EngineError::NoAnswer(run))
        }
    }
}

fn ended(brief: &RunBrief) -> EngineError {
    EngineError::Ended {
        short: brief.short.clone(),
        state: brief.state.as_str(),
    }
}
