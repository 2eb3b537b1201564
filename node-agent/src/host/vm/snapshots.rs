//! Snapshots of disks, and the way back to one.
//!
//! When libvirt sets a disk back it sets the domain's definition back, too,
//! and holds the domain. Whoever does that may be killed in the middle of it,
//! or not hear of its end. So what is to be as before is written down first,
//! and put right by whoever does something with the machine next, or by the
//! agent itself when nobody does.

use std::time::Duration;

use muster_protocol::envelope::Mode;
use muster_protocol::names::SnapshotName;
use muster_protocol::vm::{GuestState, VmId};
use muster_scenarios::node::Performed;
use tokio::time::Instant;

use super::files::{self, Note};
use super::machines::{Done, Inner, VmError, changed, is_on, unchanged};

/// Between two looks whether libvirt still works on a domain.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Inner {
    pub(super) async fn snapshot(
        &self,
        id: VmId,
        name: &SnapshotName,
        mode: Mode,
    ) -> Done<Performed> {
        self.there(id).await?;
        let has = |all: &[String]| all.iter().any(|known| known == name.as_str());
        if has(&self.ask().snapshots(id).await?) {
            return Ok(unchanged());
        }
        if mode == Mode::Apply {
            let done = self.ask().snapshot(id, name.clone()).await;
            self.settled(done, || async { Ok(has(&self.ask().snapshots(id).await?)) })
                .await?;
        }
        Ok(changed(mode, format!("snapshot {name}")))
    }

    pub(super) async fn restore(
        &self,
        id: VmId,
        name: &SnapshotName,
        mode: Mode,
    ) -> Done<Performed> {
        let domain = self.there(id).await?;
        let all = self.ask().snapshots(id).await?;
        if !all.iter().any(|known| known == name.as_str()) {
            return Err(VmError::NoSnapshot {
                name: name.clone(),
                all,
            });
        }
        if mode == Mode::Check {
            return Ok(changed(mode, format!("as in {name}")));
        }
        let (files, _) = self.pool().await?;
        let definition = self.ask().definition(id).await?;
        let ran = is_on(domain.state);
        let note = Note::Restoring { definition, ran };
        let path = files.note_path(id);
        let file = |source| VmError::File {
            path: path.clone(),
            source,
        };
        files.set_note(id, &note).map_err(file)?;
        let done = self.ask().restore(id, name.clone()).await;
        match done {
            Ok(()) => {
                files::remove_for_good(&path).map_err(file)?;
                Ok(changed(mode, format!("as in {name}")))
            }
            // Whether its disk is as it was or as in the snapshot cannot be
            // looked at; to do it once more does no harm.
            Err(first) => {
                let mended = self.mend(id).await;
                match mended {
                    Ok(()) if first.is_uncertain() => Err(VmError::Restored { first }),
                    Ok(()) => Err(first.into()),
                    Err(then) => {
                        let then = then.to_string();
                        self.cut.notify_one();
                        Err(VmError::Unmended { then })
                    }
                }
            }
        }
    }

    /// Puts right what a way back to a snapshot has left behind that nobody
    /// heard the end of.
    pub(super) async fn mend(&self, id: VmId) -> Done<()> {
        let (files, _) = self.pool().await?;
        let path = files.note_path(id);
        let file = |source| VmError::File {
            path: path.clone(),
            source,
        };
        let note = files.note(id).map_err(file)?;
        let Some(Note::Restoring { definition, ran }) = note else {
            return Ok(());
        };
        if self.look(id).await?.is_some() {
            self.put_back(id, &definition, ran).await?;
        }
        files::remove_for_good(&path).map_err(file)?;
        Ok(())
    }

    async fn put_back(&self, id: VmId, definition: &str, ran: bool) -> Done<()> {
        let begun = Instant::now();
        // One that does not run is not even said to be there until libvirt is
        // done with its disk.
        loop {
            match self.ask().busy(id).await {
                Ok(false) => break,
                Ok(true) => {}
                Err(e) if e.is_uncertain() => {}
                Err(e) => return Err(e.into()),
            }
            if begun.elapsed() >= self.patience {
                return Err(VmError::Busy(id));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        if self.ask().definition(id).await? != definition {
            let done = self.ask().define(definition.to_owned()).await;
            self.settled(done, || async {
                Ok(self.ask().definition(id).await? == definition)
            })
            .await?;
        }
        match self.there(id).await?.state {
            GuestState::Running if ran => Ok(()),
            // Also one that is held goes on.
            _ if ran => self.start_now(id).await,
            state if is_on(state) => self.kill_now(id).await,
            _ => Ok(()),
        }
    }
}
