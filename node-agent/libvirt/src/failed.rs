//! What kind of failure an error of libvirt is.

use muster_libvirt::message::{Failure, FailureKind};
use virt::error::{Error, ErrorNumber};

/// The longest message that is passed on, in characters.
const MAX_MESSAGE: usize = 2_000;

/// A call did not do what it should.
pub(crate) struct Failed(pub(crate) Failure);

impl Failed {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self(Failure {
            kind,
            message: message.into(),
        })
    }

    /// A failure in whose words a guest may have had a say: only its number,
    /// which is libvirt's own, decides what it is.
    pub(crate) fn said_by_a_guest(error: Error) -> Self {
        let message: String = error.message().chars().take(MAX_MESSAGE).collect();
        Self::new(guest_kind(error.code()), message)
    }

    pub(crate) fn kind(&self) -> FailureKind {
        self.0.kind
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let message: String = error.message().chars().take(MAX_MESSAGE).collect();
        Self::new(kind(error.code(), &message), message)
    }
}

/// libvirt has a number for some things, and only words for others.
fn kind(code: ErrorNumber, message: &str) -> FailureKind {
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    // qemu-img and qemu say why in words.
    if says(&["No space left on device", "Disk quota exceeded"]) {
        return FailureKind::Space;
    }
    match number(code) {
        Some(kind) => kind,
        // Somebody else has the file open.
        None if says(&["Failed to get \"write\" lock"]) => FailureKind::State,
        None if says(&["client socket is closed"]) => FailureKind::Lost,
        None => FailureKind::Other,
    }
}

/// What kind it is when a guest was asked.
fn guest_kind(code: ErrorNumber) -> FailureKind {
    match code {
        // There is no channel for an agent.
        ErrorNumber::ArgumentUnsupported => FailureKind::NoAgent,
        code => number(code).unwrap_or(FailureKind::Other),
    }
}

/// What libvirt's number for it says.
fn number(code: ErrorNumber) -> Option<FailureKind> {
    Some(match code {
        ErrorNumber::NoDomain
        | ErrorNumber::NoStoragePool
        | ErrorNumber::NoStorageVolume
        | ErrorNumber::NoDomainSnapshot => FailureKind::Missing,
        ErrorNumber::DomExist | ErrorNumber::StorageVolExist => FailureKind::Exists,
        ErrorNumber::AgentUnresponsive
        | ErrorNumber::AgentUnsynced
        | ErrorNumber::AgentCommandTimeout => FailureKind::NoAgent,
        ErrorNumber::OperationInvalid
        | ErrorNumber::ResourceBusy
        | ErrorNumber::SnapshotRevertRisky => FailureKind::State,
        ErrorNumber::Rpc | ErrorNumber::InvalidConn => FailureKind::Lost,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_failures() {
        use ErrorNumber as E;
        use FailureKind as K;
        for (code, message, expected) in [
            (E::NoDomain, "Domain not found", K::Missing),
            (E::NoStoragePool, "x", K::Missing),
            (E::NoStorageVolume, "x", K::Missing),
            (E::NoDomainSnapshot, "x", K::Missing),
            (E::StorageVolExist, "x", K::Exists),
            (E::OperationInvalid, "domain is not running", K::State),
            (E::AgentUnresponsive, "x", K::NoAgent),
            (
                E::InternalError,
                "qemu-img: a: No space left on device",
                K::Space,
            ),
            (
                E::OperationInvalid,
                "write: No space left on device",
                K::Space,
            ),
            (
                E::InternalError,
                "qemu-img: Failed to get \"write\" lock",
                K::State,
            ),
            (E::Rpc, "x", K::Lost),
            (
                E::InternalError,
                "internal error: client socket is closed",
                K::Lost,
            ),
            (E::InternalError, "x", K::Other),
            (E::XmlError, "x", K::Other),
        ] {
            assert_eq!(kind(code, message), expected, "{code}: {message}");
        }
    }

    #[test]
    fn what_a_guest_says_decides_nothing() {
        use ErrorNumber as E;
        use FailureKind as K;
        // libvirt's own words around those of the guest's agent.
        for words in [
            "client socket is closed",
            "No space left on device",
            "guest agent is not",
            "Failed to get \"write\" lock",
        ] {
            let message = format!("unable to execute QEMU agent command 'guest-exec': {words}");
            assert_eq!(guest_kind(E::InternalError), K::Other, "{message}");
            assert_eq!(guest_kind(E::OperationInvalid), K::State, "{message}");
        }
        assert_eq!(guest_kind(E::AgentUnresponsive), K::NoAgent);
        assert_eq!(guest_kind(E::ArgumentUnsupported), K::NoAgent);
        assert_eq!(guest_kind(E::Rpc), K::Lost);
    }
}
