//! Machines that are made and that go, with everything that is theirs.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use muster_libvirt::message::{Domain, FailureKind};
use muster_libvirt::xml;
use muster_protocol::envelope::Mode;
use muster_protocol::text::printable;
use muster_protocol::vm::{GuestState, ImageRef, Machine, Owner, VmId};
use muster_scenarios::node::Performed;
use rustix::io::Errno;
use tracing::{debug, warn};

use super::collect;
use super::files::{self, Files, Note, volume};
use super::images::{self, is_here};
use super::machines::{Done, Inner, Progress, VmError, changed, is_on, state_name, unchanged};
use super::seed;
use super::virt::VirtError;
use muster_nft::conntrack;

/// Most bytes of what is written down of the snapshots of one disk.
const MAX_SNAPSHOTS: usize = 4 << 20;

fn file(path: &Path, source: io::Error) -> VmError {
    VmError::File {
        path: path.to_owned(),
        source,
    }
}

/// How two machines of one UUID differ, for people.
fn difference(has: &Machine, wanted: &Machine) -> Option<String> {
    if has == wanted {
        return None;
    }
    let pairs = [
        ("name", has.name.to_string(), wanted.name.to_string()),
        ("processors", has.cpus.to_string(), wanted.cpus.to_string()),
        ("memory", has.memory.to_string(), wanted.memory.to_string()),
        (
            "disk",
            has.disk.size.to_string(),
            wanted.disk.size.to_string(),
        ),
        (
            "image",
            has.image.sha256.to_string(),
            wanted.image.sha256.to_string(),
        ),
    ];
    let found: Vec<String> = pairs
        .into_iter()
        .filter(|(_, has, wanted)| has != wanted)
        .map(|(what, has, wanted)| format!("{what} {has} and not {wanted}"))
        .collect();
    Some(if found.is_empty() {
        "its interfaces or what it is for are others".to_owned()
    } else {
        found.join(", ")
    })
}

impl Inner {
    pub(super) async fn image(
        &self,
        image: &ImageRef,
        mode: Mode,
        say: &dyn Progress,
    ) -> Done<Performed> {
        let (files, pool) = self.pool().await?;
        if is_here(&files, image) {
            if mode == Mode::Apply {
                // So that it stays until the machine is made.
                collect::used(&files.image(image));
            }
            return Ok(unchanged());
        }
        if pool.available < image.size {
            return Err(VmError::Space {
                pool: self.setting.pool.clone(),
                free: pool.available,
                needed: image.size,
                what: format!("the image {}", image.name),
            });
        }
        let summary = format!("{}, {}", image.name, image.size);
        if mode == Mode::Check {
            return Ok(changed(mode, format!("fetch {summary}")));
        }
        images::fetch(&files, image, &*self.source, say).await?;
        // So that libvirt knows it as the volume that disks are layers over.
        self.ask().refresh(&self.setting.pool).await?;
        Ok(changed(mode, format!("fetched {summary}")))
    }

    pub(super) async fn create(
        &self,
        machine: &Machine,
        mode: Mode,
        say: &dyn Progress,
    ) -> Done<Performed> {
        machine.check()?;
        if machine.disk.pool != self.setting.pool {
            let (pool, own) = (machine.disk.pool.clone(), self.setting.pool.clone());
            return Err(VmError::Pool { pool, own });
        }
        if let Some(domain) = self.look(machine.id).await? {
            return self.bring_up(machine, &domain, mode, say).await;
        }
        if let Some(other) = self.ask().named(machine.name.as_str()).await? {
            let (name, uuid) = (machine.name.clone(), other.uuid);
            return Err(match other.owner {
                Owner::Muster { cluster } if cluster == self.setting.cluster => {
                    VmError::Taken { name, uuid }
                }
                _ => VmError::TakenByOther { name, uuid },
            });
        }
        let (files, _) = self.pool().await?;
        // A dry run has fetched none.
        if mode == Mode::Apply && !is_here(&files, &machine.image) {
            return Err(VmError::NoImage(machine.image.name.clone()));
        }
        let note_path = files.note_path(machine.id);
        let note = files.note(machine.id).map_err(|e| file(&note_path, e))?;
        let what = format!(
            "{} CPU, {} memory, {} disk of {}",
            machine.cpus, machine.memory, machine.disk.size, machine.image.name
        );
        if mode == Mode::Check {
            return Ok(changed(mode, format!("make it: {what}")));
        }
        let disk = self
            .ask()
            .volume(&self.setting.pool, &volume(machine.id))
            .await?;
        let taken_up = match (&note, &disk) {
            // It never ran: nothing is lost with it.
            (Some(Note::Making { .. }), Some(_)) => {
                self.delete_disk(machine.id).await?;
                false
            }
            (Some(Note::Kept { .. }), None) => {
                return Err(VmError::DiskGone(machine.name.clone()));
            }
            // Somebody undefined the domain by hand, and its disk stayed.
            (Some(Note::Kept { .. } | Note::Restoring { .. }) | None, Some(_)) => true,
            (Some(Note::Making { .. } | Note::Restoring { .. }) | None, None) => false,
        };
        if taken_up {
            say.say(format!(
                "{}: the disk that was kept is taken up again",
                machine.name
            ))
            .await;
            let has = disk.map_or(machine.disk.size, |disk| disk.capacity);
            if has < machine.disk.size {
                self.grow(machine.id, machine.disk.size, None).await?;
            }
        } else {
            let making = Note::Making {
                machine: Box::new(machine.clone()),
            };
            files
                .set_note(machine.id, &making)
                .map_err(|e| file(&note_path, e))?;
            self.make_disk(machine, &files).await?;
        }
        // One that is kept was used: who takes up an old disk is somebody
        // already.
        if !taken_up || !files.seed(machine.id).exists() {
            self.make_seed(machine, &files).await?;
        }
        make_dir(&files.console).map_err(|e| file(&files.console, e))?;
        self.define(machine, &files).await?;
        if let Some(Note::Kept { snapshots, .. }) = &note {
            self.know_snapshots(machine, snapshots, say).await?;
        }
        files::remove_for_good(&note_path).map_err(|e| file(&note_path, e))?;
        self.autostart(machine).await?;
        self.start_now(machine.id).await?;
        self.came(machine.id);
        let how = if taken_up {
            "made of its old disk and started"
        } else {
            "made and started"
        };
        Ok(changed(mode, format!("{how}: {what}")))
    }

    /// A machine that is defined already: has the rest of it so.
    async fn bring_up(
        &self,
        machine: &Machine,
        domain: &Domain,
        mode: Mode,
        say: &dyn Progress,
    ) -> Done<Performed> {
        let Some(has) = &domain.machine else {
            let name = domain.name.clone();
            return Err(VmError::NotOurs {
                name,
                uuid: domain.uuid,
            });
        };
        if let Some(what) = difference(has, machine) {
            return Err(VmError::Differs {
                name: machine.name.clone(),
                what,
            });
        }
        match domain.state {
            GuestState::Paused => return Err(VmError::Paused(domain.uuid)),
            GuestState::Running if domain.autostart == machine.autostart => {}
            GuestState::Running | GuestState::Stopped | GuestState::Crashed => {
                if mode == Mode::Check {
                    return Ok(changed(mode, "start it"));
                }
            }
        }
        let (files, _) = self.pool().await?;
        let disk = self
            .ask()
            .volume(&self.setting.pool, &volume(machine.id))
            .await?;
        if disk.is_none() {
            return Err(VmError::DiskGone(machine.name.clone()));
        }
        if mode == Mode::Apply {
            // An earlier try ended right before this.
            let path = files.note_path(machine.id);
            let note = files.note(machine.id).map_err(|e| file(&path, e))?;
            if let Some(Note::Kept { snapshots, .. }) = &note {
                self.know_snapshots(machine, snapshots, say).await?;
            }
            files::remove_for_good(&path).map_err(|e| file(&path, e))?;
        }
        if domain.state == GuestState::Running && domain.autostart == machine.autostart {
            return Ok(unchanged());
        }
        if domain.autostart != machine.autostart {
            self.autostart(machine).await?;
        }
        if is_on(domain.state) {
            return Ok(changed(mode, "set whether it starts with its hypervisor"));
        }
        if !files.seed(machine.id).exists() {
            self.make_seed(machine, &files).await?;
        }
        make_dir(&files.console).map_err(|e| file(&files.console, e))?;
        self.start_now(machine.id).await?;
        Ok(changed(
            mode,
            format!("{} → started", state_name(domain.state)),
        ))
    }

    /// Has libvirt know the snapshots again that are in a disk that was kept.
    /// One that it does not take is said: the machine comes back without it.
    async fn know_snapshots(
        &self,
        machine: &Machine,
        snapshots: &[String],
        say: &dyn Progress,
    ) -> Done<()> {
        for xml in snapshots {
            let name = xml::read_snapshot_name(xml).unwrap_or_default();
            let done = self.ask().define_snapshot(machine.id, xml.clone()).await;
            let known = self.settled(done, || async {
                Ok(self.ask().snapshots(machine.id).await?.contains(&name))
            });
            match known.await {
                Err(VmError::Virt(VirtError::Failed(failure))) => {
                    let why = printable(&failure.message, 300);
                    let name = printable(&name, 60);
                    say.say(format!(
                        "{}: its snapshot {name} is not known any more: {why}",
                        machine.name
                    ))
                    .await;
                }
                known => known?,
            }
        }
        Ok(())
    }

    async fn autostart(&self, machine: &Machine) -> Done<()> {
        let done = self.ask().autostart(machine.id, machine.autostart).await;
        self.settled(done, || async {
            let domain = self.ask().domain(machine.id).await?;
            Ok(domain.is_some_and(|domain| domain.autostart == machine.autostart))
        })
        .await
    }

    async fn make_disk(&self, machine: &Machine, files: &Files) -> Done<()> {
        let pool = &self.setting.pool;
        let name = volume(machine.id);
        let image = files.image(&machine.image).display().to_string();
        let backing = Some((image.as_str(), machine.image.format));
        let xml = xml::volume(&name, machine.disk.size, backing);
        let done = self.ask().create_volume(pool, xml).await;
        self.settled(done, || async {
            let disk = self.ask().volume(pool, &name).await?;
            // One that is half made is thrown away by the next try.
            Ok(disk.is_some_and(|disk| disk.capacity == machine.disk.size))
        })
        .await
        .inspect_err(|error| self.may_come(machine.id, error))
    }

    async fn make_seed(&self, machine: &Machine, files: &Files) -> Done<()> {
        let text = self.source.seed(machine.id).await;
        let text = text.map_err(|source| VmError::NoSeed {
            name: machine.name.clone(),
            source,
        })?;
        Ok(seed::write(&files.seed(machine.id), &text)?)
    }

    async fn delete_disk(&self, id: VmId) -> Done<()> {
        let name = volume(id);
        let done = self.ask().delete_volume(&self.setting.pool, &name).await;
        self.settled(done, || async {
            Ok(self
                .ask()
                .volume(&self.setting.pool, &name)
                .await?
                .is_none())
        })
        .await
    }

    pub(super) async fn unseed(&self, id: VmId, mode: Mode) -> Done<Performed> {
        let domain = self.look(id).await?;
        let (files, _) = self.pool().await?;
        let path = files.seed(id);
        if mode == Mode::Check {
            // One that a dry run has not made would have a seed.
            return Ok(if domain.is_none() || seed::is_secret(&path)? {
                changed(mode, "take the invite out of its seed")
            } else {
                unchanged()
            });
        }
        domain.ok_or(VmError::Missing(id))?;
        Ok(if seed::strip(&path)? {
            changed(mode, "the invite is out of its seed")
        } else {
            unchanged()
        })
    }

    pub(super) async fn destroy(&self, id: VmId, purge: bool, mode: Mode) -> Done<Performed> {
        let domain = self.look(id).await?;
        let (files, _) = self.pool().await?;
        let pool = &self.setting.pool;
        let domain = match domain {
            None if mode == Mode::Apply => self.wait_for(id).await?,
            domain => domain,
        };
        let Some(domain) = domain else {
            let performed = self.sweep(id, purge, &files, mode).await?;
            return match self.came_not(id, mode) {
                Some(error) => Err(error),
                None => Ok(performed),
            };
        };
        if mode == Mode::Check {
            let disk = if purge {
                "destroy it with its disk"
            } else {
                "destroy it and keep its disk"
            };
            return Ok(changed(mode, disk));
        }
        if !purge && let Some(machine) = &domain.machine {
            // Before anything goes: what the disk was of.
            let snapshots = self.snapshots_to_keep(id, &files).await?;
            let kept = Note::Kept {
                machine: machine.clone(),
                snapshots,
            };
            let path = files.note_path(id);
            files.set_note(id, &kept).map_err(|e| file(&path, e))?;
        }
        if is_on(domain.state) {
            self.kill_now(id).await?;
        }
        // While it is known still whose they are.
        if let Some(machine) = &domain.machine {
            self.forget(machine).await;
        }
        let gone = self.ask().undefine(id).await;
        let missing = matches!(&gone, Err(e) if e.is(FailureKind::Missing));
        if !missing {
            self.settled(gone, || async {
                Ok(self.ask().domain(id).await?.is_none())
            })
            .await?;
        }
        // Somebody started it in between: libvirt undefines what runs, too,
        // and lets it run until it ends. It must not, on a disk that goes.
        if self.look(id).await?.is_some() {
            self.kill_now(id).await?;
            if let Some(there) = self.look(id).await? {
                return Err(VmError::Comes {
                    name: printable(&there.name, 80),
                });
            }
            if let Some(machine) = &domain.machine {
                self.forget(machine).await;
            }
        }
        self.sweep(id, purge, &files, mode).await?;
        self.came(id);
        let disk = self.ask().volume(pool, &volume(id)).await?;
        Ok(changed(
            mode,
            match disk {
                Some(_) => format!("{} → gone, its disk is kept", state_name(domain.state)),
                None => format!("{} → gone", state_name(domain.state)),
            },
        ))
    }

    /// What libvirt knows of the snapshots in a disk that is kept.
    async fn snapshots_to_keep(&self, id: VmId, files: &Files) -> Done<Vec<String>> {
        let mut all = self.ask().snapshot_definitions(id).await?;
        let path = files.note_path(id);
        // Whoever was killed in the middle of this knew more.
        if all.is_empty()
            && let Some(Note::Kept { snapshots, .. }) =
                files.note(id).map_err(|e| file(&path, e))?
        {
            all = snapshots;
        }
        let mut room = MAX_SNAPSHOTS;
        let fit = all
            .iter()
            .take_while(|xml| match room.checked_sub(xml.len()) {
                Some(rest) => {
                    room = rest;
                    true
                }
                None => false,
            });
        let fit = fit.count();
        all.truncate(fit);
        Ok(all)
    }

    /// What a machine without a domain has left behind: the invite in its
    /// seed, and when everything is to go its disk, its seed, its console's log
    /// and what is written down of it, which goes last.
    async fn sweep(&self, id: VmId, purge: bool, files: &Files, mode: Mode) -> Done<Performed> {
        let mut found = 0;
        let seed = files.seed(id);
        let mut paths = Vec::new();
        if !purge {
            let secret = match mode {
                Mode::Check => seed::is_secret(&seed)?,
                Mode::Apply => seed::strip(&seed)?,
            };
            found += usize::from(secret);
        } else {
            paths.push(seed);
            let logs = files
                .console_logs(id)
                .map_err(|e| file(&files.console, e))?;
            paths.extend(logs);
        }
        let disk = self.ask().volume(&self.setting.pool, &volume(id)).await?;
        if purge && disk.is_some() {
            found += 1;
            if mode == Mode::Apply {
                self.delete_disk(id).await?;
            }
        }
        // What was being written when somebody was killed holds the invite.
        paths.extend([
            files::unfinished(&files.seed(id)),
            files::unfinished(&files.note_path(id)),
        ]);
        if purge {
            // libvirt may not know yet of what it began to make.
            paths.extend([files.disk(id), files.note_path(id)]);
        }
        for path in paths {
            let there = match mode {
                Mode::Check => path.symlink_metadata().is_ok(),
                Mode::Apply => files::remove(&path).map_err(|e| file(&path, e))?,
            };
            found += usize::from(there);
        }
        Ok(match (found, mode) {
            (0, _) => unchanged(),
            (_, Mode::Check) => changed(mode, "remove what is left of it"),
            (_, Mode::Apply) => changed(mode, "what was left of it is gone"),
        })
    }

    /// Has the kernel forget the connections of a machine that does not run any
    /// more. It goes whether they do or not: they end by themselves, too.
    /// Networks on other bridges may have the same addresses: what another
    /// machine here has stays.
    async fn forget(&self, machine: &Machine) {
        let name = machine.name.clone();
        let others = match self.ask().domains().await {
            Ok(all) => all,
            Err(e) => {
                warn!("connections of {name} are not looked for: {e}");
                return;
            }
        };
        let others = others.iter().filter(|domain| domain.uuid != machine.id);
        let others = others.filter_map(|domain| domain.machine.as_ref());
        let others: HashSet<IpAddr> = others.flat_map(|other| addresses(other)).collect();
        let own: Vec<IpAddr> = addresses(machine)
            .filter(|address| !others.contains(address))
            .collect();
        let done = tokio::task::spawn_blocking(move || conntrack::forget(&own)).await;
        match done.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Ok(0) => {}
            Ok(count) => debug!("{count} connections of {name} are forgotten"),
            // A kernel that follows none.
            Err(e) if is_none(&e) => debug!("connections of {name} are not looked for: {e}"),
            Err(e) => warn!("the kernel may remember connections of {name} a while longer: {e}"),
        }
    }
}

/// Its addresses.
fn addresses(machine: &Machine) -> impl Iterator<Item = IpAddr> + '_ {
    let nics = machine.nics.iter();
    nics.flat_map(|nic| nic.addresses.iter().copied())
}

/// Whether there is nothing in the kernel that could be asked.
fn is_none(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        code,
        Some(Errno::INVAL | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::OPNOTSUPP)
    )
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}
