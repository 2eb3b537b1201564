//! What new machines are to be like: everything that does not depend on where
//! they are put.

use std::collections::{BTreeMap, HashSet};

use muster_protocol::api::{CreateVms, MAX_USER_DATA, Secret, Strategy};
use muster_protocol::ids::RunId;
use muster_protocol::names::{LabelKey, VmName};
use muster_protocol::run::PartOf;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::vm::{
    MAX_NICS, MachineError, Readiness, Size, SshKeyError, VmId, check_key_line,
};

use super::error::VmError;
use super::machines::Machines;
use super::names::Names;
use super::placement::{Apart, Placed};
use super::records::{Life, Made, Order, StoredVm, Wish};
use crate::authz::Caller;
use crate::inventory::{MAX_LABELS, MAX_ROLES};

/// How long a machine may take to be up, when nobody says.
const READY_WITHIN: Span = Span::from_secs(600);
/// The longest.
const LONGEST: Span = Span::from_secs(3_600);
/// Most public keys.
const MAX_KEYS: usize = 100;

/// What was asked for, held against everything that can be known of it.
pub(super) struct Wanted {
    pub(super) names: Names,
    pub(super) wish: Wish,
    pub(super) on: Option<String>,
    pub(super) strategy: Strategy,
    pub(super) apart: Option<Apart>,
    pub(super) protect: bool,
    /// The call of a run that asks.
    pub(super) part: Option<PartOf>,
    /// What the request is called, if it names itself.
    pub(super) under: Option<RunId>,
}

impl Machines {
    /// Everything that does not depend on where it is put.
    pub(super) fn check(&self, request: CreateVms) -> Result<Wanted, VmError> {
        let wrong = |text: &str| Err(VmError::Wrong(text.to_owned()));
        let names = Names::parse(&request.name, request.count)?;
        let mut groups = request.groups;
        groups.sort();
        groups.dedup();
        if !groups.is_empty() && request.networks.is_empty() {
            return wrong(
                "a machine without a network has no interface that groups could guard; give it a --network",
            );
        }
        self.parts().groups.all_there(&groups)?;
        let image = self.parts().pictures.get(&request.image);
        let image = image.ok_or(VmError::NoImage(request.image))?;
        let networks = request.networks;
        if networks.len() > MAX_NICS {
            return Err(MachineError::Nics(networks.len()).into());
        }
        let reserves = &self.parts().reserves;
        if let Some(lan) = networks.iter().find(|lan| !reserves.knows(lan)) {
            return Err(VmError::NoNetwork((*lan).clone()));
        }
        if networks.iter().collect::<HashSet<_>>().len() < networks.len() {
            return wrong("a machine has one interface in a network; name each network once");
        }
        if request.roles.len() > MAX_ROLES || request.labels.len() > MAX_LABELS {
            return Err(VmError::Wrong(format!(
                "a machine has at most {MAX_ROLES} roles and {MAX_LABELS} labels"
            )));
        }
        let ready = match (request.ready, request.agent) {
            (None, true) => Readiness::Agent,
            (None, false) => Readiness::Boot,
            // What enrols it is taken away once it is up.
            (Some(Readiness::Boot | Readiness::Ping | Readiness::GuestAgent), true) => {
                return wrong(
                    "a machine with an agent is up when that has enrolled; leave --ready out, or give --no-agent",
                );
            }
            (Some(Readiness::Agent), false) => {
                return wrong(
                    "without an agent none says that the machine is up; give --ready boot, ping or guest-agent",
                );
            }
            (Some(Readiness::Ping), _) if networks.is_empty() => {
                return wrong("a machine without a network answers no ping; give it a --network");
            }
            (Some(ready), _) => ready,
        };
        let within = request.ready_within.unwrap_or(READY_WITHIN);
        if within < Span::from_secs(10) || within > LONGEST {
            return Err(VmError::Wrong(format!(
                "{within} to be up is not possible; give 10s to {LONGEST}"
            )));
        }
        let ssh_keys = self.parts().tenants.lines(request.ssh_keys)?;
        check_texts(&ssh_keys, request.user_data.as_deref())?;
        self.parts().tenants.owns(request.account.as_ref())?;
        let mut roles = request.roles;
        roles.sort();
        roles.dedup();
        let apart = match request.apart.as_deref() {
            None => None,
            Some("name") => Some(Apart::Name),
            Some(key) => {
                let key = key.parse::<LabelKey>();
                Some(Apart::Label(
                    key.map_err(|e| VmError::Wrong(e.to_string()))?,
                ))
            }
        };
        if apart.is_some() && request.account.is_none() && roles.is_empty() {
            return wrong(
                "machines are kept apart from those of the same account or role; give --account or --role",
            );
        }
        let mib = 1 << 20;
        let whole = image.virtual_size.0.div_ceil(mib).saturating_mul(mib);
        let wish = Wish {
            cpus: request.cpus,
            memory: request.memory,
            disk: request.disk.unwrap_or(Size(whole)),
            image,
            networks,
            account: request.account,
            agent: request.agent,
            ready,
            ready_within: within,
            roles,
            labels: request.labels,
            ssh_keys,
            user_data: request.user_data.map(Secret::new),
            groups,
            pairs: Vec::new(),
            autostart: request.autostart,
            configure: request.configure,
        };
        wish.check()?;
        Ok(Wanted {
            names,
            wish,
            on: request.on,
            strategy: request.strategy,
            apart,
            protect: request.protect,
            part: None,
            under: None,
        })
    }
}

impl Wanted {
    pub(super) fn draft(
        &self,
        name: VmName,
        id: VmId,
        nth: u64,
        placed: &Placed,
        caller: &Caller,
    ) -> StoredVm {
        StoredVm {
            name,
            nth,
            id,
            place: placed.place.clone(),
            wish: self.wish.clone(),
            nics: Vec::new(),
            should_run: true,
            protected: self.protect,
            invites: Vec::new(),
            node: None,
            made: Made {
                by: caller.principal.clone(),
                at: Timestamp::now(),
                part: self.part,
                under: self.under,
            },
            order: Order::of(caller),
            runs: 0,
            run: None,
            configured: None,
            drift: BTreeMap::new(),
            repaired: None,
            life: Life::Reserved,
        }
    }
}

/// Texts that go into the machine as they are.
fn check_texts(keys: &[String], user_data: Option<&str>) -> Result<(), VmError> {
    let wrong = |text: String| Err(VmError::Wrong(text));
    if keys.len() > MAX_KEYS {
        return wrong(format!(
            "{} public keys are too many; at most {MAX_KEYS}",
            keys.len()
        ));
    }
    for (key, nth) in keys.iter().zip(1..) {
        // What it is is not said: it may be a secret.
        check_key_line(key).map_err(|error| match error {
            SshKeyError::Private => VmError::PrivateKey,
            error => VmError::Wrong(format!("ssh key {nth}: {error}")),
        })?;
    }
    if let Some(text) = user_data.filter(|text| text.len() > MAX_USER_DATA) {
        return wrong(format!(
            "{} bytes of user-data are too many; at most {MAX_USER_DATA}",
            text.len()
        ));
    }
    Ok(())
}
