//! How scenarios change: stored, taken back, removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use muster_protocol::api::ScenarioVersion;
use muster_protocol::envelope::BundleHash;
use muster_protocol::names::{PrincipalName, ScenarioName};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_scenarios::{command, upgrade};

use super::{
    Content, Entry, Held, History, Library, LibraryError, Loaded, MAX_NAMES, MAX_NOTE, MAX_STORED,
    Put, Remove, Rollback, Version, checked, version,
};
use crate::authz::Authorized;
use crate::store::kv::KvError;

/// A change that is about to be made.
struct Change {
    name: ScenarioName,
    content: Option<(Content, Bytes)>,
    note: Option<String>,
    expect: Option<u32>,
    by: PrincipalName,
}

impl Library {
    /// Stores a new version, if it has no mistake. Equal content is not
    /// stored again; what is the newest then, and whether it is new.
    ///
    /// # Errors
    /// [`LibraryError`]; nothing was stored.
    pub async fn put(&self, put: Authorized<Put>) -> Result<(Version, bool), LibraryError> {
        let by = put.principal().clone();
        let put = put.into_inner();
        if [command::NAME, upgrade::NAME].contains(&put.name.as_str()) {
            return Err(LibraryError::BuiltIn(put.name));
        }
        let (bundle, manifest) = checked(&put.name, put.bundle).await?;
        let packed = Bytes::from(bundle.pack());
        let content = Content {
            bundle: bundle.hash(),
            bytes: packed.len() as u64,
            about: printable(&manifest.about, 200),
        };
        let change = Change {
            name: put.name,
            content: Some((content, packed)),
            note: put.note,
            expect: put.expect,
            by,
        };
        let (version, new) = self.change(change).await?;
        let version = version.expect("content makes a version");
        self.remember(Arc::new(Loaded {
            version: version.clone(),
            bundle,
            manifest,
        }));
        Ok((version, new))
    }

    /// Makes the content of an old version the newest, under a new number.
    ///
    /// # Errors
    /// [`LibraryError`]; nothing was stored.
    pub async fn rollback(
        &self,
        rollback: Authorized<Rollback>,
    ) -> Result<(Version, bool), LibraryError> {
        let by = rollback.principal().clone();
        let asked = rollback.into_inner();
        let old = self.load(&asked.name, Some(asked.version)).await?;
        let packed = Bytes::from(old.bundle.pack());
        let content = Content {
            bundle: old.version.hash,
            bytes: packed.len() as u64,
            about: old.version.about.clone(),
        };
        let change = Change {
            note: Some(match asked.note {
                Some(note) => note,
                None => format!("back to version {}", asked.version),
            }),
            name: asked.name,
            content: Some((content, packed)),
            expect: asked.expect,
            by,
        };
        let (version, new) = self.change(change).await?;
        Ok((version.expect("content makes a version"), new))
    }

    /// Removes a scenario: nobody can run it any more, and its history stays.
    /// One that came with muster is there again under its name.
    ///
    /// # Errors
    /// [`LibraryError`]; nothing was changed.
    pub async fn remove(
        &self,
        remove: Authorized<Remove>,
    ) -> Result<ScenarioVersion, LibraryError> {
        let by = remove.principal().clone();
        let asked = remove.into_inner();
        let name = asked.name.clone();
        if let Ok(version) = self.find(&name, None)
            && version.is_stock()
        {
            return Err(LibraryError::Stock(name));
        }
        self.find(&name, None)?;
        let change = Change {
            name: asked.name,
            content: None,
            note: asked.note,
            expect: asked.expect,
            by,
        };
        self.change(change).await?;
        let all = self.history(&name)?;
        let newest = all.into_iter().next();
        newest.ok_or(LibraryError::NoScenario { name, near: None })
    }

    /// The one way in which a history changes.
    async fn change(&self, change: Change) -> Result<(Option<Version>, bool), LibraryError> {
        let Change {
            name,
            content,
            note,
            expect,
            by,
        } = change;
        if let Some(note) = note.as_ref().filter(|note| note.len() > MAX_NOTE) {
            return Err(LibraryError::NoteTooLong(note.len()));
        }
        let note = note
            .map(|note| printable(note.trim(), MAX_NOTE))
            .filter(|note| !note.is_empty());
        let _one = self.0.writing.lock().await;
        self.active()?;
        let held = self.held().get(&name).cloned().unwrap_or_default();
        let newest = held.history.newest();
        let same = match (&content, newest) {
            (Some((content, _)), Some(entry)) => entry
                .content
                .as_ref()
                .is_some_and(|there| there.bundle == content.bundle),
            (None, newest) => newest.is_none_or(|entry| entry.content.is_none()),
            (Some(_), None) => false,
        };
        if let Some(expect) = expect
            && expect != newest.map_or(0, |entry| entry.version)
        {
            // Whoever heard no answer asks again.
            let repeated = same
                && newest.is_some_and(|e| e.by == by && e.version.checked_sub(1) == Some(expect));
            if !repeated {
                return Err(self.changed(&name, newest));
            }
        }
        if let Some((content, packed)) = &content {
            self.has_room(&name, content)?;
            // First: no history names what is not there. Also what is there
            // already: it may be damaged, and this mends it.
            self.0.shelf.keep(content.bundle, packed).await?;
        }
        if same {
            return Ok((newest.and_then(|entry| version(&name, entry)), false));
        }
        self.active()?;
        muster_checkpoint::at("broker.library.kept", || name.to_string()).await;
        let content = content.map(|(content, _)| content);
        let next = held.history.with(content, (&by, Timestamp::now()), note);
        let revision = match self.write(&name, &next, held.revision).await {
            Ok(revision) => revision,
            Err(error) => {
                // Whether it is there is not known here any more.
                self.look_again(&name).await;
                return match error {
                    KvError::Conflict { .. } => {
                        let held = self.held().get(&name).cloned().unwrap_or_default();
                        Err(self.changed(&name, held.history.newest()))
                    }
                    error => Err(error.into()),
                };
            }
        };
        let entry = next.newest().expect("it has one more").clone();
        let held = Held {
            history: next,
            revision,
        };
        self.held_mut().insert(name.clone(), held);
        self.tell(&name, &entry).await;
        Ok((version(&name, &entry), true))
    }

    async fn write(
        &self,
        name: &ScenarioName,
        next: &History,
        revision: u64,
    ) -> Result<u64, KvError> {
        if revision == 0 {
            self.0.names.create(name.as_str(), next).await
        } else {
            self.0.names.update(name.as_str(), next, revision).await
        }
    }

    async fn look_again(&self, name: &ScenarioName) {
        match self.0.names.get(name.as_str()).await {
            Ok(Some(entry)) => {
                let (history, revision) = (entry.value, entry.revision);
                let held = Held { history, revision };
                self.held_mut().insert(name.clone(), held);
            }
            Ok(None) => drop(self.held_mut().remove(name)),
            Err(error) => tracing::warn!(scenario = %name, %error, "a scenario cannot be read"),
        }
    }

    fn changed(&self, name: &ScenarioName, newest: Option<&Entry>) -> LibraryError {
        LibraryError::Changed {
            name: name.clone(),
            newest: match newest {
                None => "there is no version of it yet".to_owned(),
                Some(entry) => format!(
                    "version {} {} by {} at {}",
                    entry.version,
                    if entry.content.is_some() {
                        "was stored"
                    } else {
                        "is its removal,"
                    },
                    entry.by,
                    entry.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                ),
            },
        }
    }

    fn has_room(&self, name: &ScenarioName, content: &Content) -> Result<(), LibraryError> {
        let held = self.held();
        if !held.contains_key(name) && held.len() >= MAX_NAMES {
            return Err(LibraryError::TooManyNames);
        }
        let mut all: BTreeMap<BundleHash, u64> = held
            .values()
            .flat_map(|held| held.history.bundles())
            .collect();
        all.insert(content.bundle, content.bytes);
        if all.values().sum::<u64>() > MAX_STORED {
            return Err(LibraryError::Full);
        }
        Ok(())
    }

    async fn tell(&self, name: &ScenarioName, entry: &Entry) {
        let (kind, mut text) = match &entry.content {
            Some(content) => {
                let hash = content.bundle.to_string();
                let text = format!(
                    "{} stored version {} of scenario {name}, bundle {}",
                    entry.by,
                    entry.version,
                    hash.get(..12).unwrap_or(&hash)
                );
                ("scenario.stored", text)
            }
            None => (
                "scenario.removed",
                format!(
                    "{} removed scenario {name} (version {})",
                    entry.by, entry.version
                ),
            ),
        };
        if let Some(note) = &entry.note {
            text.push_str(&format!(": {note}"));
        }
        self.0.events.emit(kind, name.as_str(), text).await;
    }
}
