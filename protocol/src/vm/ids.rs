//! What tells one machine from every other.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256 as Hash};

use crate::ids::ClusterId;
use crate::names::{TapName, VmName};
use crate::text_form::text_form;

/// Why a text is not such an id.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not {what}; it looks like {example}")]
pub struct VmIdError {
    text: String,
    what: &'static str,
    example: &'static str,
}

impl VmIdError {
    fn new(text: &str, what: &'static str, example: &'static str) -> Self {
        let text = crate::text::printable(text, 60);
        Self {
            text,
            what,
            example,
        }
    }
}

/// The UUID of a machine (RFC 9562, version 8), the same in libvirt, in the
/// broker and in what the guest sees of its firmware. It follows from what
/// was asked for, so that whoever asks again for the same asks for the same
/// machine.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VmId([u8; 16]);

impl VmId {
    /// The machine of that name which was asked for as the `nth` of that name
    /// in this cluster: a machine that takes the name of an earlier one is
    /// another machine.
    #[must_use]
    pub fn derive(cluster: &ClusterId, name: &VmName, nth: u64) -> Self {
        let mut hash = Hash::new();
        hash.update(b"muster machine v1\0");
        hash.update(cluster.as_bytes());
        hash.update(nth.to_be_bytes());
        hash.update(name.as_str().as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        bytes[6] = (bytes[6] & 0x0f) | 0x80;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// The sixteen bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The hardware address of its interface `index`: locally administered,
    /// never a group's.
    #[must_use]
    pub fn mac(&self, index: u8) -> Mac {
        let digest = self.digest(b"mac", index);
        Mac([0x52, digest[0], digest[1], digest[2], digest[3], digest[4]])
    }

    /// The tap of its interface `index` on the hypervisor; no other machine
    /// ever has a tap of that name.
    ///
    /// # Panics
    /// Never: such a name is a valid one.
    #[must_use]
    pub fn tap(&self, index: u8) -> TapName {
        let digest = self.digest(b"tap", index);
        // 13 letters of five bits: 65 of the digest's.
        let text = crate::ids::base32(&digest[..8]);
        let text: String = text.chars().take(12).collect();
        format!("mt{text}").parse().expect("letters and digits")
    }

    fn digest(&self, what: &[u8], index: u8) -> [u8; 32] {
        let mut hash = Hash::new();
        hash.update(b"muster machine v1\0");
        hash.update(what);
        hash.update([0, index]);
        hash.update(self.0);
        hash.finalize().into()
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmId({self})")
    }
}

impl FromStr for VmId {
    type Err = VmIdError;

    fn from_str(text: &str) -> Result<Self, VmIdError> {
        let fail = || {
            VmIdError::new(
                text,
                "the UUID of a machine",
                "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102",
            )
        };
        let parts: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        if lengths != [8, 4, 4, 4, 12] {
            return Err(fail());
        }
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(parts.concat().as_bytes())
            .map_err(|_| fail())?;
        bytes.try_into().map(Self).map_err(|_| fail())
    }
}

text_form!(
    VmId,
    "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    36
);

/// A hardware address.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Mac([u8; 6]);

impl Mac {
    /// The six bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 6] {
        &self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

impl FromStr for Mac {
    type Err = VmIdError;

    fn from_str(text: &str) -> Result<Self, VmIdError> {
        let fail = || {
            VmIdError::new(
                text,
                "a hardware address of one interface",
                "52:54:00:12:ab:0f",
            )
        };
        let parts: Vec<&str> = text.split(':').collect();
        if parts.len() != 6 || parts.iter().any(|part| part.len() != 2) {
            return Err(fail());
        }
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(parts.concat().as_bytes())
            .map_err(|_| fail())?;
        let bytes: [u8; 6] = bytes.try_into().map_err(|_| fail())?;
        // A group's address, or none.
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(fail());
        }
        Ok(Self(bytes))
    }
}

text_form!(Mac, "^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$", 17);

/// The SHA-256 of some bytes, 64 hex digits: what an image is known by.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// From the digest itself.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Hash::digest(bytes).into())
    }

    /// The digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = VmIdError;

    fn from_str(text: &str) -> Result<Self, VmIdError> {
        let fail = || VmIdError::new(text, "a SHA-256", "64 hex digits, as sha256sum prints them");
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .map_err(|_| fail())?;
        bytes.try_into().map(Self).map_err(|_| fail())
    }
}

text_form!(Sha256, "^[0-9a-fA-F]{64}$", 64);

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str, nth: u64) -> VmId {
        let cluster = ClusterId::from_bytes([7; 16]);
        VmId::derive(&cluster, &name.parse().expect("a name"), nth)
    }

    #[test]
    fn an_id_follows_from_what_was_asked_for() {
        assert_eq!(id("web-03", 1), id("web-03", 1));
        assert_ne!(id("web-03", 1), id("web-03", 2));
        assert_ne!(id("web-03", 1), id("web-04", 1));
        let text = id("web-03", 1).to_string();
        assert_eq!(text.parse(), Ok(id("web-03", 1)));
        assert_eq!(&text[14..15], "8", "{text}");
        assert!("89ab".contains(&text[19..20]), "{text}");
        assert!("web-03".parse::<VmId>().is_err());
        assert!("../0".parse::<VmId>().is_err());
    }

    #[test]
    fn interfaces_have_addresses_and_taps_of_their_own() {
        let (one, two) = (id("a", 1), id("b", 1));
        let all = [one.mac(0), one.mac(1), two.mac(0)];
        for mac in all {
            assert_eq!(mac.as_bytes()[0] & 3, 2, "local, and one interface's");
            assert_eq!(mac.to_string().parse(), Ok(mac));
        }
        assert_ne!(all[0], all[1]);
        assert_ne!(all[0], all[2]);
        assert_eq!(one.tap(0).as_str().len(), 14);
        assert_ne!(one.tap(0), one.tap(1));
        assert!("01:00:5e:00:00:01".parse::<Mac>().is_err());
        assert!("00:00:00:00:00:00".parse::<Mac>().is_err());
    }

    #[test]
    fn a_hash_is_64_digits() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Sha256::of(b"").to_string(), empty);
        assert_eq!(empty.to_uppercase().parse(), Ok(Sha256::of(b"")));
        assert!("e3b0".parse::<Sha256>().is_err());
    }
}
