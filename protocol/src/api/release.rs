//! Agent releases: what the broker keeps for `muster agent upgrade`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::names::PrincipalName;
use crate::release::{Release, ReleaseId};
use crate::units::Timestamp;

/// Bytes of every uploaded part but the last.
pub const UPLOAD_PART: u32 = 512 * 1024;

/// A release that the broker has.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ReleaseView {
    /// SHA-256 of the file.
    pub id: ReleaseId,
    /// Its size in bytes.
    pub size: u64,
    /// What it says about itself.
    pub release: Release,
    /// When it was whole.
    #[schema(value_type = String, format = DateTime)]
    pub stored: Timestamp,
    /// Who uploaded it.
    pub by: PrincipalName,
}

/// Announces an upload, or asks how far one is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseOffer {
    /// The file's size in bytes.
    pub size: u64,
}

/// How far an upload is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ReleaseUpload {
    /// The release, when the broker has it: nothing need be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<ReleaseView>,
    /// Bytes of every part but the last.
    pub part_bytes: u32,
    /// Numbers of the parts that are missing, from 0.
    pub missing: Vec<u32>,
}
