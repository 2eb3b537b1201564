//! Alarms as things with a number: who looks after them, which are not to be
//! heard of for a while, and which were said.

pub mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{ChatPlace, ClusterEvent};
use muster_protocol::names::PrincipalName;
use muster_protocol::text::printable;
use muster_protocol::units::{Span, Timestamp};
use serde_json::{Map, json};
use tokio::sync::Mutex;

use self::table::{Acked, Alarm, Came, MOST_SILENCES, Silence, State, Table};
use crate::events::Events;
use crate::events::glob::{Glob, GlobError};
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// The key of the table.
const KEY: &str = "alarms";
/// Longest silence.
const MOST_SILENCE: Duration = Duration::from_secs(30 * 86_400);

/// Who does something about an alarm.
#[derive(Clone, Debug, PartialEq)]
pub struct By {
    /// The principal.
    pub principal: PrincipalName,
    /// Where they wrote it: they are answered there, and it is not said there
    /// again.
    pub place: Option<ChatPlace>,
}

/// What is silenced.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The alarm with that number.
    Number(u32),
    /// Every alarm whose name, kind, instances or nodes this fits.
    Pattern(Glob),
}

impl std::str::FromStr for What {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        match text.parse() {
            Ok(number) => Ok(Self::Number(number)),
            Err(_) => text.parse().map(Self::Pattern),
        }
    }
}

/// Why nothing was done about an alarm.
#[derive(Debug, thiserror::Error)]
pub enum AlarmsError {
    /// No such number.
    #[error("there is no alarm {0}")]
    Unknown(u32),
    /// It is over.
    #[error("alarm {number} ({name}) is over")]
    Over {
        /// Which.
        number: u32,
        /// What it is called.
        name: String,
    },
    /// Somebody else looks after it already.
    #[error("{by} looks after alarm {number} ({name}) already")]
    Acked {
        /// Which.
        number: u32,
        /// What it is called.
        name: String,
        /// Who.
        by: PrincipalName,
    },
    /// Too long.
    #[error("a silence lasts 30 days at most")]
    TooLong,
    /// Too many.
    #[error("there are {MOST_SILENCES} silences already; end one with a time of 0s")]
    TooMany,
    /// There is none to end.
    #[error("`{0}` is not silenced")]
    NotSilenced(String),
    /// Another broker is active.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// The store.
    #[error("alarms cannot be stored now: {0}")]
    Store(#[from] KvError),
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Alarms(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: Kv<Table>,
    lease: Lease,
    events: Events,
    numbering: String,
    held: Mutex<Held>,
}

#[derive(Clone, Debug, Default)]
struct Held {
    table: Table,
    revision: Option<u64>,
}

impl Alarms {
    /// Reads what is stored.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn open(
        bucket: Kv<Table>,
        lease: Lease,
        events: Events,
        numbering: String,
    ) -> Result<Self, KvError> {
        let held = read(&bucket).await?;
        Ok(Self(Arc::new(Inner {
            bucket,
            lease,
            events,
            numbering,
            held: Mutex::new(held),
        })))
    }

    /// Those that fire, and those that are over since not long ago; by
    /// number.
    pub async fn list(&self) -> Vec<Alarm> {
        let mut table = self.0.held.lock().await.table.clone();
        table.tidy(Timestamp::now());
        table.alarms.into_values().collect()
    }

    /// What is silenced by pattern.
    pub async fn silences(&self) -> Vec<Silence> {
        let mut table = self.0.held.lock().await.table.clone();
        table.tidy(Timestamp::now());
        table.silences
    }

    /// Somebody looks after an alarm: it is not repeated any more.
    ///
    /// # Errors
    /// [`AlarmsError`].
    pub async fn ack(&self, number: u32, by: &By) -> Result<Alarm, AlarmsError> {
        let now = Timestamp::now();
        let alarm = self
            .change(|table| {
                let alarm = firing(table, number, now)?;
                if let Some(acked) = &alarm.acked {
                    return Err(AlarmsError::Acked {
                        number,
                        name: alarm.name.clone(),
                        by: acked.by.clone(),
                    });
                }
                alarm.acked = Some(Acked {
                    by: by.principal.clone(),
                    at: now,
                });
                Ok(alarm.clone())
            })
            .await?;
        let text = format!(
            "{} looks after alarm {number}: {}",
            by.principal, alarm.name
        );
        self.tell("alarm.acked", &number.to_string(), text, by, Map::new())
            .await;
        Ok(alarm)
    }

    /// Nothing is said of an alarm, or of all that a pattern fits, for that
    /// time; a time of zero ends that. Until when.
    ///
    /// # Errors
    /// [`AlarmsError`].
    pub async fn silence(
        &self,
        what: &What,
        span: Span,
        by: &By,
    ) -> Result<Timestamp, AlarmsError> {
        if span.get() > MOST_SILENCE {
            return Err(AlarmsError::TooLong);
        }
        let now = Timestamp::now();
        let length = jiff::SignedDuration::try_from(span.get()).unwrap_or_default();
        let until = now.checked_add(length).unwrap_or(now);
        let ends = span.get().is_zero();
        let name = self
            .change(|table| match what {
                What::Number(number) => {
                    let alarm = firing(table, *number, now)?;
                    alarm.silenced_until = (!ends).then_some(until);
                    Ok(format!("alarm {number} ({})", alarm.name))
                }
                What::Pattern(glob) => {
                    table.tidy(now);
                    let before = table.silences.len();
                    table.silences.retain(|s| s.pattern != glob.as_str());
                    let was = before > table.silences.len();
                    if ends && !was {
                        return Err(AlarmsError::NotSilenced(printable(glob.as_str(), 100)));
                    }
                    if !ends {
                        if table.silences.len() >= MOST_SILENCES {
                            return Err(AlarmsError::TooMany);
                        }
                        table.silences.push(Silence {
                            pattern: glob.as_str().to_owned(),
                            until,
                            by: by.principal.clone(),
                        });
                    }
                    Ok(format!("`{}`", printable(glob.as_str(), 100)))
                }
            })
            .await?;
        let who = &by.principal;
        let text = if ends {
            format!("{who} ended the silence of {name}")
        } else {
            format!("{who} silenced {name} for {span}")
        };
        let subject = match what {
            What::Number(number) => number.to_string(),
            What::Pattern(glob) => glob.as_str().to_owned(),
        };
        let fields = Map::from_iter([("until".to_owned(), json!(until))]);
        self.tell("alarm.silenced", &subject, text, by, fields)
            .await;
        Ok(until)
    }

    async fn tell(
        &self,
        kind: &str,
        subject: &str,
        text: String,
        by: &By,
        mut fields: Map<String, serde_json::Value>,
    ) {
        fields.insert("by".to_owned(), json!(by.principal));
        if let Some(place) = &by.place {
            fields.insert("chat".to_owned(), json!(place));
        }
        self.0.events.tell(kind, subject, text, fields).await;
    }

    /// What an event comes to. It is kept by [`Alarms::keep`], once what is
    /// to be said is said: whoever dies in between finds all as it was, and
    /// says the same.
    pub(super) async fn take(&self, event: &ClusterEvent, repeat: Duration) -> Came {
        // Most events are about none, and the table may be large.
        if !table::is_about_alarms(event) {
            return Came::Nothing;
        }
        let mut table = self.0.held.lock().await.table.clone();
        if table.has(event, &self.0.numbering) {
            // What is in it was said before it was kept.
            return Came::Quiet;
        }
        table.apply(event, &self.0.numbering, repeat, Timestamp::now())
    }

    /// Keeps what came of an event.
    ///
    /// # Errors
    /// [`AlarmsError`]; it can be tried again.
    pub(super) async fn keep(
        &self,
        event: &ClusterEvent,
        repeat: Duration,
    ) -> Result<(), AlarmsError> {
        let numbering = &self.0.numbering;
        self.change(|table| {
            // Somebody may have acknowledged something meanwhile: it is done
            // anew over that, and comes to the same numbers.
            if !table.has(event, numbering) {
                table.apply(event, numbering, repeat, Timestamp::now());
            }
            Ok(())
        })
        .await
    }

    async fn change<T>(
        &self,
        change: impl Fn(&mut Table) -> Result<T, AlarmsError>,
    ) -> Result<T, AlarmsError> {
        let mut held = self.0.held.lock().await;
        let mut tries = 0;
        loop {
            if self.0.lease.epoch().is_none() {
                return Err(AlarmsError::NotActive);
            }
            let mut table = held.table.clone();
            let done = change(&mut table)?;
            let stored = match held.revision {
                Some(revision) => self.0.bucket.update(KEY, &table, revision).await,
                None => self.0.bucket.create(KEY, &table).await,
            };
            match stored {
                Ok(revision) => {
                    *held = Held {
                        table,
                        revision: Some(revision),
                    };
                    return Ok(done);
                }
                Err(error) => {
                    // Whether it was written is not known, or it was by
                    // somebody else: what is there counts.
                    *held = read(&self.0.bucket).await?;
                    tries += 1;
                    if tries >= 3 || !matches!(error, KvError::Conflict { .. }) {
                        return Err(error.into());
                    }
                }
            }
        }
    }
}

async fn read(bucket: &Kv<Table>) -> Result<Held, KvError> {
    let entry = bucket.get(KEY).await?;
    Ok(entry.map_or_else(Held::default, |entry| Held {
        table: entry.value,
        revision: Some(entry.revision),
    }))
}

fn firing(table: &mut Table, number: u32, now: Timestamp) -> Result<&mut Alarm, AlarmsError> {
    table.tidy(now);
    match table.alarms.get_mut(&number) {
        None => Err(AlarmsError::Unknown(number)),
        Some(alarm) if alarm.state == State::Resolved => Err(AlarmsError::Over {
            number,
            name: alarm.name.clone(),
        }),
        Some(alarm) => Ok(alarm),
    }
}
