//! Who asks.

use muster_protocol::api::Role;
use muster_protocol::envelope::Door;
use muster_protocol::names::PrincipalName;
pub use muster_protocol::origin::Origin;

/// Who asks, as the door has established it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// The principal.
    pub principal: PrincipalName,
    /// What the token may do.
    pub role: Role,
    /// Id of the token.
    pub token: String,
    /// Through which door.
    pub door: Door,
    /// Where exactly it came from.
    pub origin: Origin,
}
