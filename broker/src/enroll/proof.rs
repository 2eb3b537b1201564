//! Whether somebody who asks is the node that it says: by its identity key,
//! over a challenge that works once.

use std::sync::Arc;
use std::time::Instant;

use muster_protocol::ids::Serial;
use muster_protocol::keys::{PublicKey, Purpose, Signature};
use muster_protocol::wire::{self, proof_text};

use super::{EnrollError, Enrolment};
use crate::inventory::{Absent, NodeRecord};
use crate::vm::is_hypervisor;

impl Enrolment {
    /// Whether it is an enrolled node that asks for a release.
    ///
    /// # Errors
    /// [`EnrollError`].
    pub async fn prove_node(&self, request: &wire::ReleaseRequest) -> Result<(), EnrollError> {
        self.proven(request.serial, &request.challenge, &request.proof)
            .await
            .map(drop)
    }

    /// Whether it is a hypervisor that asks for an image.
    ///
    /// # Errors
    /// [`EnrollError`].
    pub async fn prove_hypervisor(&self, request: &wire::ImageRequest) -> Result<(), EnrollError> {
        let node = self
            .proven(request.serial, &request.challenge, &request.proof)
            .await?;
        if !is_hypervisor(&node) {
            return Err(EnrollError::NoHypervisor(node.assignment.name.clone()));
        }
        Ok(())
    }

    /// The node of that serial, when it is the one that asks.
    pub(super) async fn proven(
        &self,
        serial: Serial,
        challenge: &str,
        proof: &Signature,
    ) -> Result<Arc<NodeRecord>, EnrollError> {
        self.active()?;
        let Some(record) = self.0.inventory.snapshot().get(serial).cloned() else {
            return Err(match self.0.inventory.knock(serial).await {
                Absent::Removed => EnrollError::Gone(serial),
                Absent::Unknown => EnrollError::Unknown(serial),
            });
        };
        self.prove(&record.node_key, challenge, &record.nats_key, proof)?;
        Ok(record)
    }

    /// Whether it is an enrolled node that asks about its firewall.
    ///
    /// # Errors
    /// [`EnrollError`].
    pub async fn prove_firewalled(
        &self,
        serial: Serial,
        challenge: &str,
        proof: &Signature,
    ) -> Result<(), EnrollError> {
        self.proven(serial, challenge, proof).await.map(drop)
    }

    /// Whether it is an enrolled node that asks for the seed of a machine.
    ///
    /// # Errors
    /// [`EnrollError`].
    pub async fn prove_maker(&self, request: &wire::SeedRequest) -> Result<(), EnrollError> {
        self.proven(request.serial, &request.challenge, &request.proof)
            .await
            .map(drop)
    }

    pub(super) fn prove(
        &self,
        key: &PublicKey,
        challenge: &str,
        nats_key: &str,
        proof: &Signature,
    ) -> Result<(), EnrollError> {
        if !self.0.challenges.take(challenge, Instant::now()) {
            return Err(EnrollError::BadChallenge);
        }
        let text = proof_text(&self.0.authority.root(), challenge, nats_key);
        key.verify(Purpose::NodeProof, &text, proof)
            .map_err(|_| EnrollError::BadProof)
    }
}
