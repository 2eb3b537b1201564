//! The frozen set: a bitmap over enrolment serials.

use std::fmt;
use std::str::FromStr;

use crate::ids::Serial;
use crate::text_form::text_form;
use data_encoding::BASE64URL_NOPAD;

/// A set of nodes. 10,000 nodes that enrolled together take 1,250 bytes.
///
/// In JSON it is `"<first>.<base64url>"`: the serial of the first bit (a
/// multiple of 8) and the bits, lowest first. Every set has one spelling, so
/// a signature over it covers the set itself.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct NodeSet {
    /// Serial of bit 0 divided by 8; zero for the empty set.
    base: u32,
    /// No zero byte at either end.
    bits: Vec<u8>,
}

/// Most bytes of a bitmap that are read: room for four million serials.
const MAX_BYTES: usize = 512 * 1024;

/// Why a text is not a node set.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this is not a node set: {0}")]
pub struct NodeSetError(&'static str);

impl NodeSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the node is in the set.
    #[must_use]
    pub fn contains(&self, node: Serial) -> bool {
        (node.0 / 8)
            .checked_sub(self.base)
            .and_then(|i| self.bits.get(i as usize))
            .is_some_and(|byte| byte & (1 << (node.0 % 8)) != 0)
    }

    /// How many nodes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bits.iter().map(|b| b.count_ones() as usize).sum()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// The nodes, by rising serial.
    pub fn iter(&self) -> impl Iterator<Item = Serial> + '_ {
        self.bits.iter().zip(self.base..).flat_map(|(byte, at)| {
            (0..8)
                .filter(move |bit| byte & (1 << bit) != 0)
                .map(move |bit| Serial(at * 8 + bit))
        })
    }
}

impl FromIterator<Serial> for NodeSet {
    fn from_iter<I: IntoIterator<Item = Serial>>(nodes: I) -> Self {
        let mut serials: Vec<u32> = nodes.into_iter().map(|s| s.0).collect();
        serials.sort_unstable();
        let (Some(first), Some(last)) = (serials.first(), serials.last()) else {
            return Self::default();
        };
        let base = first / 8;
        let mut bits = vec![0u8; (last / 8 - base) as usize + 1];
        for serial in serials {
            bits[(serial / 8 - base) as usize] |= 1 << (serial % 8);
        }
        Self { base, bits }
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|s| s.0)).finish()
    }
}

impl fmt::Display for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{}",
            u64::from(self.base) * 8,
            BASE64URL_NOPAD.encode(&self.bits)
        )
    }
}

impl FromStr for NodeSet {
    type Err = NodeSetError;

    fn from_str(text: &str) -> Result<Self, NodeSetError> {
        let (first, bits) = text.split_once('.').ok_or(NodeSetError("it has no `.`"))?;
        let first: Serial = first
            .parse()
            .map_err(|_| NodeSetError("its first serial is not a number"))?;
        if bits.len() > MAX_BYTES {
            return Err(NodeSetError("it is too long"));
        }
        let bits = BASE64URL_NOPAD
            .decode(bits.as_bytes())
            .map_err(|_| NodeSetError("its bits are not base64"))?;
        let base = first.0 / 8;
        let ends = [bits.first(), bits.last()];
        let canonical = first.0.is_multiple_of(8)
            && ends.iter().flatten().all(|byte| **byte != 0)
            && (base == 0 || !bits.is_empty());
        if !canonical {
            return Err(NodeSetError("it is not in its shortest form"));
        }
        if u64::from(base) + bits.len() as u64 > u64::from(u32::MAX / 8) + 1 {
            return Err(NodeSetError("a serial in it is too large"));
        }
        Ok(Self { base, bits })
    }
}

text_form!(NodeSet);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set(nodes in prop::collection::btree_set(0u32..5000, 0..200), other in 0u32..6000) {
            let set: NodeSet = nodes.iter().copied().map(Serial).collect();
            prop_assert_eq!(set.len(), nodes.len());
            prop_assert_eq!(set.iter().map(|s| s.0).collect::<BTreeSet<_>>(), nodes.clone());
            prop_assert_eq!(set.contains(Serial(other)), nodes.contains(&other));
            prop_assert_eq!(set.to_string().parse::<NodeSet>(), Ok(set));
        }

        #[test]
        fn any_text_is_a_set_in_its_one_spelling_or_an_error(text in "[0-9]{0,11}\\.?[A-Za-z0-9_-]{0,12}") {
            if let Ok(set) = text.parse::<NodeSet>() {
                prop_assert_eq!(set.to_string(), text);
                let _ = set.iter().count();
            }
        }
    }

    #[test]
    fn the_extremes_hold() {
        let far: NodeSet = [Serial(u32::MAX), Serial(u32::MAX - 9)]
            .into_iter()
            .collect();
        assert_eq!(far.to_string().parse(), Ok(far.clone()));
        assert_eq!(far.iter().last(), Some(Serial(u32::MAX)));
        let fleet: NodeSet = (0..10_000).map(Serial).collect();
        assert!(fleet.to_string().len() < 1700);
        assert_eq!("0.".parse(), Ok(NodeSet::new()));
    }
}
