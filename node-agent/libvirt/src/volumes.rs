//! Storage pools and volumes.

use muster_libvirt::message::{self, FailureKind};
use muster_libvirt::xml;
use muster_protocol::names::PoolName;
use muster_protocol::vm::{Size, VmId};
use virt::error::ErrorNumber;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;

use crate::domains::there;
use crate::failed::Failed;
use crate::host::Host;

impl Host {
    pub(crate) fn pool(&self, name: &PoolName) -> Result<message::Pool, Failed> {
        let pool = self.active(name)?;
        // What is free is what was free when it last looked. It cannot look
        // while it writes a volume; then that has to do.
        let _ = pool.refresh(0);
        let info = pool.get_info()?;
        Ok(message::Pool {
            capacity: Size(info.capacity),
            available: Size(info.available),
            path: xml::read_pool_path(&pool.get_xml_desc(0)?),
        })
    }

    pub(crate) fn refresh(&self, name: &PoolName) -> Result<(), Failed> {
        self.active(name)?.refresh(0)?;
        Ok(())
    }

    pub(crate) fn volume(
        &self,
        pool: &PoolName,
        name: &str,
    ) -> Result<Option<message::Volume>, Failed> {
        let pool = self.active(pool)?;
        match find(&pool, name)? {
            // Its file may have gone away behind the pool's back.
            Some(volume) => there(look(&volume)),
            None => Ok(None),
        }
    }

    pub(crate) fn volumes(&self, pool: &PoolName) -> Result<Vec<message::Volume>, Failed> {
        let pool = self.active(pool)?;
        let mut all = Vec::new();
        for volume in pool.list_all_volumes(0)? {
            // One may go away while it is looked at.
            all.extend(there(look(&volume))?);
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    pub(crate) fn create_volume(
        &self,
        pool: &PoolName,
        xml: &str,
    ) -> Result<message::Volume, Failed> {
        let pool = self.active(pool)?;
        match StorageVol::create_xml(&pool, xml, 0) {
            Ok(volume) => look(&volume),
            // A file of that name that the pool has not seen.
            Err(error) if error.message().contains("already exists") => {
                let mut failed = Failed::from(error);
                failed.0.kind = FailureKind::Exists;
                Err(failed)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn grow_volume(
        &self,
        pool: &PoolName,
        name: &str,
        size: Size,
        open_in: Option<VmId>,
    ) -> Result<(), Failed> {
        let pool = self.active(pool)?;
        let volume = find(&pool, name)?.ok_or_else(|| {
            Failed::new(FailureKind::Missing, format!("there is no volume `{name}`"))
        })?;
        let now = look(&volume)?;
        if now.capacity == size {
            return Ok(());
        }
        if now.capacity > size {
            let is = now.capacity;
            let message = format!("`{name}` is {is}, and a disk only grows: it cannot be {size}");
            return Err(Failed::new(FailureKind::State, message));
        }
        let domain = match open_in {
            Some(uuid) => there(self.own(uuid))?,
            None => None,
        };
        if let Some((domain, _)) = domain
            && domain.is_active()?
        {
            let bytes = virt_sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES;
            domain.block_resize(&now.path, size.bytes(), bytes)?;
        } else {
            volume.resize(size.bytes(), 0)?;
        }
        Ok(())
    }

    pub(crate) fn delete_volume(&self, pool: &PoolName, name: &str) -> Result<(), Failed> {
        let pool = self.active(pool)?;
        match find(&pool, name)? {
            Some(volume) => Ok(there(volume.delete(0).map_err(Failed::from)).map(drop)?),
            None => Ok(()),
        }
    }

    /// A pool, started when it is not.
    fn active(&self, name: &PoolName) -> Result<StoragePool, Failed> {
        let pool = StoragePool::lookup_by_name(&self.connection, name.as_str())?;
        if !pool.is_active()?
            && let Err(error) = pool.create(0)
        {
            let quicker = error.code() == ErrorNumber::OperationInvalid && pool.is_active()?;
            if !quicker {
                return Err(error.into());
            }
        }
        Ok(pool)
    }
}

/// A volume, also one that the pool has not seen yet.
fn find(pool: &StoragePool, name: &str) -> Result<Option<StorageVol>, Failed> {
    let known = there(StorageVol::lookup_by_name(pool, name).map_err(Failed::from))?;
    if known.is_some() {
        return Ok(known);
    }
    pool.refresh(0)?;
    there(StorageVol::lookup_by_name(pool, name).map_err(Failed::from))
}

fn look(volume: &StorageVol) -> Result<message::Volume, Failed> {
    let info = volume.get_info()?;
    Ok(message::Volume {
        name: volume.get_name()?,
        path: volume.get_path()?,
        capacity: Size(info.capacity),
        allocation: Size(info.allocation),
    })
}
