//! Disk images.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::names::{ImageName, PrincipalName};
use crate::units::Timestamp;
use crate::vm::{ImageFormat, Sha256, Size};

/// How many bytes one part of an upload has, but for the last.
pub const IMAGE_PART: u64 = 4 << 20;

/// Makes an image known under a name: its bytes come from a URL, each
/// hypervisor takes them itself, or are uploaded in parts after this.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutImage {
    /// The hash of its bytes.
    pub sha256: Sha256,
    /// How many bytes.
    pub size: Size,
    /// How it is written.
    pub format: ImageFormat,
    /// How large a disk of it is.
    pub virtual_size: Size,
    /// Where its bytes are: `https://…`, or `http://…` as the hash decides.
    /// Uploaded when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Take the place of the image of that name, if there is one. Machines
    /// that were made of the old one keep it.
    #[serde(default)]
    pub replace: bool,
}

/// What is missing of an upload.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageUpload {
    /// The image, when nothing is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageView>,
    /// Numbers of the parts that are missing, each of [`IMAGE_PART`] bytes.
    pub missing: Vec<u32>,
}

/// An image.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ImageView {
    /// Its name.
    pub name: ImageName,
    /// The hash of its bytes.
    pub sha256: Sha256,
    /// How many bytes.
    pub size: Size,
    /// How it is written.
    pub format: ImageFormat,
    /// How large a disk of it is.
    pub virtual_size: Size,
    /// Where its bytes are; in the cluster when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Hypervisors that have it.
    pub on: u32,
    /// Machines that were made of exactly these bytes.
    pub machines: u32,
    /// Who added it.
    pub by: PrincipalName,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub added: Timestamp,
}
