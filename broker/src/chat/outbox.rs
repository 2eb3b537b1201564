//! The one who says what is to be said of events: puts it into the stream
//! that bots follow, each once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{ChatPlace, ClusterEvent, Say, Urgency, Utterance};
use muster_protocol::ids::RunId;
use muster_protocol::units::Timestamp;
use tokio::time::sleep;

use super::alarms::table::Came;
use super::builds::results::Results;
use super::handle::Chat;
use super::outputs::Ran;
use super::result;
use super::sentences::vms::OfMachine;
use super::sentences::{self, Known, runs, vms};
use super::settings::Settings;
use super::spoken::id_of;
use crate::events::follower::{Anew, Follower, How};
use crate::routes::To;
use crate::store::error::StreamError;

/// Pause before something is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// So many utterances are looked through for those that the broker before may
/// have put in without writing down that it did.
const LOOK_BACK: u64 = 2_000;
/// The key of how builds ended.
const RESULTS: &str = "results";

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    chat: Chat,
    ran: Arc<dyn Ran>,
    results: Results,
    follower: Follower,
    /// What there was when this began; empty once nothing of before comes any
    /// more.
    before: HashSet<String>,
}

impl Outbox {
    pub(super) async fn begin(chat: Chat, ran: Arc<dyn Ran>) -> Self {
        let inner = &chat.0;
        let how = How {
            key: "chat".to_owned(),
            name: "chat".to_owned(),
            does: "they were said in chat".to_owned(),
            // What was put back was said in its time.
            anew: Anew::Now,
        };
        let numbering = inner.spoken.numbering();
        let follower = Follower::begin(&inner.events, &inner.places, numbering, how).await;
        let before = if follower.place().seq < follower.behind() {
            loop {
                match inner.spoken.newest_ids(LOOK_BACK).await {
                    Ok(ids) => break ids,
                    Err(error) => {
                        tracing::warn!(%error, "what was said in chat cannot be read; trying again");
                        sleep(AGAIN).await;
                    }
                }
            }
        } else {
            HashSet::new()
        };
        let results = loop {
            match inner.stores.results.get(RESULTS).await {
                Ok(entry) => break entry.map(|entry| entry.value).unwrap_or_default(),
                Err(error) => {
                    tracing::warn!(%error, "how builds ended cannot be read; trying again");
                    sleep(AGAIN).await;
                }
            }
        };
        Self {
            chat,
            ran,
            results,
            follower,
            before,
        }
    }

    /// Works for ever.
    pub(super) async fn work(mut self) {
        for heard in self.chat.0.builds.orphans().await {
            let id = id_of(&["build", &heard.id, "unknown"]);
            self.put_as(id, heard.place, heard.say, Timestamp::now())
                .await;
            self.chat.0.builds.orphan_was_told(&heard.id).await;
        }
        loop {
            let place = self.follower.place().seq;
            self.chat.0.routes.said_up_to(place);
            if place >= self.follower.behind() {
                self.before = HashSet::new();
            }
            for event in &self.follower.next().await {
                if self.take(event).await {
                    self.follower.done(event.seq).await;
                }
            }
        }
    }

    /// Says what is to be said of an event; whether anything came of it.
    async fn take(&mut self, event: &ClusterEvent) -> bool {
        let chat = self.chat.clone();
        let declared = chat.0.held.get();
        let settings = &declared.chat;
        let came = chat.0.alarms.take(event, settings.repeat).await;
        let is_alarm = came != Came::Nothing;
        let mut known = Known {
            alarm: Some(came),
            build: None,
        };
        let mut results = None;
        if event.kind == "build.finished" {
            let mut after = self.results.clone();
            known.build = after.apply(event, chat.0.spoken.numbering());
            results = Some(after).filter(|after| *after != self.results);
        }
        let asked = told_at(event);
        let mut any = false;
        if let Some(place) = runs::asked_at(event)
            && let Some(say) = self.answer(event, settings).await
        {
            any = true;
            self.put(event, place, say, "asked").await;
        }
        if let Some(place) = vms::asked_at(event) {
            any = true;
            let say = vms::ended(event);
            match vms::batch(event).filter(|batch| batch.open == 0) {
                // Two that ended at once both are the last one.
                Some(batch) => {
                    let id = id_of(&["machines", &batch.id.to_string()]);
                    self.put_as(id, place, say, event.at).await;
                }
                None => self.put(event, place, say, "asked").await,
            }
        }
        for heard in chat.0.builds.take(event).await {
            any = true;
            self.put(event, heard.place, heard.say, &heard.id).await;
            chat.0.builds.end(&heard.id).await;
        }
        for (name, route) in &declared.routes {
            let To::Channels(channels) = &route.to else {
                continue;
            };
            if !route.takes(event) {
                continue;
            }
            let exactly = route.wanted.names(&event.kind);
            let Some(say) = sentences::of(event, &known, settings, exactly) else {
                continue;
            };
            for channel in channels {
                let place = channel.place();
                // Who asked was told there.
                let told = asked.as_ref().is_some_and(|asked| {
                    (&asked.network, &asked.channel) == (&place.network, &place.channel)
                });
                if told {
                    continue;
                }
                any = true;
                self.put(event, place, say.clone(), "route").await;
                chat.0.routes.said(name);
            }
        }
        // What is remembered changes behind what is said: whoever dies in
        // between says the same again, which is known by its id.
        if is_alarm {
            self.keep_alarms(event, settings).await;
        }
        if let Some(results) = results {
            self.results = results;
            self.keep_results().await;
            any = true;
        }
        any || is_alarm
    }

    async fn keep_alarms(&self, event: &ClusterEvent, settings: &Settings) {
        while let Err(error) = self.chat.0.alarms.keep(event, settings.repeat).await {
            tracing::warn!(%error, "what is known of alarms cannot be stored yet");
            sleep(AGAIN).await;
        }
    }

    async fn keep_results(&self) {
        let chat = &self.chat.0;
        loop {
            if chat.lease.epoch().is_some() {
                match chat.stores.results.put(RESULTS, &self.results).await {
                    Ok(_) => return,
                    Err(error) => {
                        tracing::warn!(%error, "how builds ended cannot be stored yet");
                    }
                }
            }
            sleep(AGAIN).await;
        }
    }

    /// What whoever asked for a run in chat is told of it.
    async fn answer(&self, event: &ClusterEvent, settings: &Settings) -> Option<Say> {
        if let Some(run) = event.fields.get("run").and_then(|run| run.as_str())
            && let Ok(run) = run.parse()
            && let Some(of) = self.ran.machine_of(run)
        {
            // Of what configures it, the machine's own event tells the end.
            if !vms::is_of_machine(event) && event.kind == "run.ended" {
                return None;
            }
            if !vms::is_of_machine(event) {
                return self.of_run(event, settings).await;
            }
            return match event.kind.as_str() {
                "run.begun" => runs::begun(event),
                "run.progress" if of.is_one_of_many => None,
                "run.progress" => vms::stage(&self.ran.came_to(run).await?.0, &of),
                "run.waits" => Some(runs::waits(event, settings)),
                "run.ended" => self.looked(event, run, &of, settings).await,
                _ => None,
            };
        }
        self.of_run(event, settings).await
    }

    async fn of_run(&self, event: &ClusterEvent, settings: &Settings) -> Option<Say> {
        match event.kind.as_str() {
            "run.begun" => runs::begun(event),
            "run.progress" => Some(runs::progress(event)),
            "run.waits" => runs::waits_since(event, settings),
            "run.ended" => Some(self.ended(event, settings).await),
            _ => None,
        }
    }

    /// What a machine has said to who only looked; the end of everything else
    /// the machine's own event tells.
    async fn looked(
        &self,
        event: &ClusterEvent,
        run: RunId,
        of: &OfMachine,
        settings: &Settings,
    ) -> Option<Say> {
        let scenario = event.fields.get("scenario")?.as_str()?;
        if !matches!(scenario, "vm-console" | "vm-exec") {
            return None;
        }
        let (view, _) = self.ran.came_to(run).await?;
        let link = settings.link_of(&run.to_string(), &view.brief.short);
        Some(vms::shown(&view, of, Some(link)))
    }

    /// What the run came to.
    async fn ended(&self, event: &ClusterEvent, settings: &Settings) -> Say {
        let plain = || {
            let said = sentences::of(event, &Known::default(), settings, false);
            said.unwrap_or_else(|| sentences::plain(event))
        };
        let run = event.fields.get("run").and_then(|run| run.as_str());
        let Some(run) = run.and_then(|run| run.parse().ok()) else {
            return plain();
        };
        let Some((view, outputs)) = self.ran.came_to(run).await else {
            return Say {
                urgency: Urgency::Reply,
                ..plain()
            };
        };
        let link = settings.link_of(&run.to_string(), &view.brief.short);
        result::ended(&view, &outputs, Some(link))
    }

    /// Puts it in, once, however long that takes; `why` tells apart what is
    /// said of one event in one place.
    async fn put(&self, event: &ClusterEvent, place: ChatPlace, say: Say, why: &str) {
        let channel = place.channel.as_ref().map_or("", |c| c.as_str());
        let person = place.person.as_ref().map_or("", |person| {
            let known = person.account.as_deref().or(person.sight.as_deref());
            known.unwrap_or(&person.nick)
        });
        let parts = [
            event.source.as_str(),
            &event.id,
            place.network.as_str(),
            channel,
            // To everybody there, it is one thing, whoever else is told.
            if channel.is_empty() { person } else { "" },
            why,
        ];
        self.put_as(id_of(&parts), place, say, event.at).await;
    }

    /// The same, under that id.
    async fn put_as(&self, id: String, place: ChatPlace, say: Say, at: Timestamp) {
        if self.before.contains(&id) {
            return;
        }
        let utterance = Utterance { id, place, say, at };
        loop {
            match self.chat.0.spoken.put(utterance.clone()).await {
                Ok(()) => return,
                Err(error @ StreamError::TooLarge { .. }) => {
                    tracing::error!(%error, id = utterance.id, "something is not said in chat");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "something cannot be said in chat yet");
                    sleep(AGAIN).await;
                }
            }
        }
    }
}

/// Where an event is known already, because somebody there did what it tells
/// of.
fn told_at(event: &ClusterEvent) -> Option<ChatPlace> {
    let own = event.source == muster_protocol::api::OWN_SOURCE;
    let place = event.fields.get("chat").filter(|_| own)?;
    serde_json::from_value(place.clone()).ok()
}
