//! What a new machine finds at its first start.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use muster_protocol::api::Secret;
use muster_protocol::ids::Serial;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::{Timestamp, after};
use muster_protocol::vm::{Enrol, SeedText, VmId};
use serde_json::{Value, json};

use super::choose::node_of;
use super::error::VmError;
use super::keep::Held;
use super::machines::Machines;
use super::ports::{ForMachine, refused};
use super::records::{HeldNic, Life, StoredVm};

/// The longest life of an invite in a seed.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Where the machine keeps what enrols it.
const SCRIPT: &str = "/usr/local/sbin/muster-first-contact";

impl Machines {
    /// The seed of a machine, for the hypervisor that is to make it. The
    /// invite in it is a new one each time, and the one before works no more.
    ///
    /// # Errors
    /// [`VmError`]: it is not for that node to make, or not now.
    pub async fn seed(&self, asks: Serial, id: VmId) -> Result<SeedText, VmError> {
        let records = &self.parts().records;
        let no = || {
            let title = format!("machine {id} is not yours to make now; nothing of it is told");
            VmError::from(refused(Problem::new(Kind::Denied, title)))
        };
        let name = records.by_id(id).ok_or_else(no)?.vm.name.clone();
        let _turn = self.turn(&name).await;
        let mut held = records.by_id(id).ok_or_else(no)?;
        let makes = matches!(held.vm.life, Life::Creating { .. } | Life::Returning { .. });
        if !makes || held.vm.place.serial != asks {
            return Err(no());
        }
        let mut enrol = None;
        if held.vm.wish.agent && held.vm.node.is_none() {
            held = self.void(held).await?;
            if held.vm.node.is_none() {
                enrol = Some(self.invite(&held).await?);
            }
        }
        Ok(text(&held.vm, enrol))
    }

    /// No invite of it works any more; the node that one has made is its.
    async fn void(&self, held: Held) -> Result<Held, VmError> {
        if held.vm.invites.is_empty() {
            return Ok(held);
        }
        let mut next = StoredVm::clone(&held.vm);
        for invite in &held.vm.invites {
            next.node = self.parts().doorman.void(invite).await?.or(next.node);
        }
        next.invites.clear();
        Ok(self.parts().records.change(&held, next).await?)
    }

    async fn invite(&self, held: &Held) -> Result<Enrol, VmError> {
        let doorman = &self.parts().doorman;
        let vm = &held.vm;
        let Some(name) = node_of(&vm.name) else {
            return Err(VmError::Wrong(format!(
                "`{}` is no name of a node",
                vm.name
            )));
        };
        let token = doorman.token();
        // Its id is known before it works: it can be voided whatever happens.
        let mut next = StoredVm::clone(vm);
        next.invites.push(token.id.clone());
        let held = self.parts().records.change(held, next).await?;
        muster_checkpoint::at("broker.vm.invited", || held.vm.name.to_string()).await;
        let vm = &held.vm;
        let life = vm.wish.ready_within.get().min(LONGEST);
        let invite = ForMachine {
            name,
            roles: vm.wish.roles.clone(),
            labels: vm.wish.labels.clone(),
            by: vm.made.by.clone(),
            expires: after(Timestamp::now(), life),
        };
        doorman.invite(&token, invite).await?;
        Ok(Enrol {
            brokers: doorman.brokers(),
            token: token.text(),
        })
    }
}

/// The texts of a seed: pure.
#[must_use]
pub(super) fn text(vm: &StoredVm, enrol: Option<Enrol>) -> SeedText {
    let user_data = vm.wish.user_data.clone();
    SeedText {
        vendor_data: vendor_data(vm, enrol.is_some()),
        user_data: user_data.unwrap_or_else(|| Secret::new("")),
        meta_data: pretty(&meta_data(vm)),
        network_config: pretty(&network_config(&vm.nics)),
        enrol,
    }
}

/// JSON is YAML, and its quotes leave nothing to chance.
fn pretty(value: &Value) -> String {
    let mut text = format!("{value:#}");
    text.push('\n');
    text
}

fn meta_data(vm: &StoredVm) -> Value {
    let mut data = json!({
        "instance-id": vm.id,
        "local-hostname": vm.name,
    });
    if !vm.wish.ssh_keys.is_empty() {
        data["public-keys"] = json!(vm.wish.ssh_keys);
    }
    data
}

fn vendor_data(vm: &StoredVm, enrols: bool) -> String {
    let mut data = json!({
        "hostname": vm.name,
        "preserve_hostname": false,
    });
    if enrols {
        data["write_files"] = json!([{
            "path": SCRIPT,
            "permissions": "0700",
            "owner": "root:root",
            "content": include_str!("first-contact.sh"),
        }]);
        data["runcmd"] = json!([[SCRIPT]]);
    }
    format!("#cloud-config\n{}", pretty(&data))
}

/// Interfaces by their hardware addresses: their names are the guest's.
fn network_config(nics: &[HeldNic]) -> Value {
    let mut ethernets = BTreeMap::new();
    // One way out for each family: that of the first network that has one.
    let (mut four, mut six) = (true, true);
    for (index, held) in nics.iter().enumerate() {
        let addresses: Vec<String> = held
            .nic
            .addresses
            .iter()
            .zip(&held.prefixes)
            .map(|(address, prefix)| format!("{address}/{prefix}"))
            .collect();
        let mut nic = json!({ "match": { "macaddress": held.nic.mac } });
        if addresses.is_empty() {
            nic["dhcp4"] = json!(true);
        } else {
            nic["addresses"] = json!(addresses);
        }
        let mut routes = Vec::new();
        for gateway in &held.gateways {
            let (first, to) = match gateway {
                IpAddr::V4(_) => (&mut four, "0.0.0.0/0"),
                IpAddr::V6(_) => (&mut six, "::/0"),
            };
            if std::mem::take(first) {
                routes.push(json!({ "to": to, "via": gateway }));
            }
        }
        if !routes.is_empty() {
            nic["routes"] = json!(routes);
        }
        if !held.dns.is_empty() {
            nic["nameservers"] = json!({ "addresses": held.dns });
        }
        if let Some(mtu) = held.mtu {
            nic["mtu"] = json!(mtu);
        }
        ethernets.insert(format!("nic{index}"), nic);
    }
    json!({ "version": 2, "ethernets": ethernets })
}
