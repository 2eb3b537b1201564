//! What the first bytes of an image say of it.
//!
//! A qcow2 file can name other files, of which its disk is made: whoever
//! starts a machine of it would open them. So what an image names beside
//! itself is refused where it comes in, by whoever sends it, and again by
//! whoever uses it.

use super::spec::{ImageFormat, MAX_DISK, Size};

/// So many bytes of the beginning of an image decide; a shorter image has
/// fewer.
pub const IMAGE_HEAD: usize = 112;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of a header of version 2; of version 3, at least.
const V2: usize = 72;
const V3: usize = 104;
/// A disk is so many bytes, times a whole number.
const SECTOR: u64 = 512;
/// Bits of a cluster's size: what QEMU itself takes.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The largest first table, in entries: what QEMU itself takes.
const MAX_L1: u64 = (32 << 20) / 8;
/// The largest table of reference counts, in bytes: what QEMU itself takes.
const MAX_REFCOUNTS: u64 = 8 << 20;

// Incompatible features of version 3.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Why an image is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageFault {
    /// Not qcow2.
    #[error("this is not a qcow2 image; if its bytes are the disk's, its format is raw")]
    NotQcow2,
    /// qcow2 under the name of raw.
    #[error("this is a qcow2 image, not a raw one; give its format as qcow2")]
    NotRaw,
    /// No bytes, or not even a header.
    #[error("an image of {0} is too short; it is cut off")]
    Short(Size),
    /// Not whole sectors.
    #[error(
        "a raw image of {0} bytes is cut off, or none: a disk is whole sectors of {SECTOR} bytes"
    )]
    Sectors(u64),
    /// A version that nobody knows here.
    #[error("a qcow2 image of version {0} is not known; convert it: qemu-img convert -O qcow2")]
    Version(u32),
    /// It is a layer over another file.
    #[error(
        "this qcow2 image is a layer over another file, its backing file; make it whole: qemu-img convert -O qcow2"
    )]
    Backing,
    /// Its bytes are in another file.
    #[error(
        "this qcow2 image has its bytes in another file, its external data file; make it whole: qemu-img convert -O qcow2"
    )]
    ExternalData,
    /// Nobody could read it.
    #[error("this qcow2 image is encrypted; give one that is not")]
    Encrypted,
    /// Whoever wrote it did not come to an end, or it is known to be broken.
    #[error("this qcow2 image says of itself that it is damaged; repair it: qemu-img check -r all")]
    Damaged,
    /// A feature that nobody knows here.
    #[error(
        "this qcow2 image needs something that is not known here (features {0:#x}); convert it: qemu-img convert -O qcow2"
    )]
    Feature(u64),
    /// Something in the header cannot be.
    #[error("the header of this qcow2 image cannot be right: {0}; it is damaged")]
    Header(&'static str),
    /// Its tables are beyond its end.
    #[error("this qcow2 image has {has} bytes, and its tables end at {needs}; it is cut off")]
    Cut {
        /// Bytes that there are.
        has: u64,
        /// Bytes that there would be at least.
        needs: u64,
    },
    /// A disk that no machine can have.
    #[error("a disk of {0} bytes: a disk has 1 to {max}", max = MAX_DISK)]
    VirtualSize(u64),
}

/// How large a disk of an image is, from its first [`IMAGE_HEAD`] bytes (more
/// do no harm) and its length.
///
/// # Errors
/// [`ImageFault`]: it cannot be a disk, or would not be one by itself.
pub fn virtual_size(format: ImageFormat, head: &[u8], size: Size) -> Result<Size, ImageFault> {
    if size.bytes() == 0 {
        return Err(ImageFault::Short(size));
    }
    let disk = match format {
        ImageFormat::Raw if head.starts_with(&MAGIC) => return Err(ImageFault::NotRaw),
        ImageFormat::Raw if !size.bytes().is_multiple_of(SECTOR) => {
            return Err(ImageFault::Sectors(size.bytes()));
        }
        ImageFormat::Raw => size.bytes(),
        ImageFormat::Qcow2 => qcow2(head, size)?,
    };
    if disk == 0 || disk > MAX_DISK.bytes() {
        return Err(ImageFault::VirtualSize(disk));
    }
    Ok(Size(disk))
}

/// What the first bytes look like.
#[must_use]
pub fn looks_like(head: &[u8]) -> ImageFormat {
    if head.starts_with(&MAGIC) {
        ImageFormat::Qcow2
    } else {
        ImageFormat::Raw
    }
}

/// Numbers of a header, which was held against its length before.
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_be_bytes(bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_be_bytes(bytes)
    }
}

fn qcow2(head: &[u8], size: Size) -> Result<u64, ImageFault> {
    if !head.starts_with(&MAGIC) {
        return Err(ImageFault::NotQcow2);
    }
    if head.len() < V2 {
        return Err(ImageFault::Short(size));
    }
    let header = Header(head);
    let features = match header.u32(4) {
        2 => 0,
        3 if head.len() < V3 => return Err(ImageFault::Short(size)),
        3 => header.u64(72),
        other => return Err(ImageFault::Version(other)),
    };
    if header.u64(8) != 0 {
        return Err(ImageFault::Backing);
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(ImageFault::ExternalData);
    }
    if header.u32(32) != 0 {
        return Err(ImageFault::Encrypted);
    }
    let unknown = features & !(DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2);
    if unknown != 0 {
        return Err(ImageFault::Feature(unknown));
    }
    if features & (DIRTY | CORRUPT) != 0 {
        return Err(ImageFault::Damaged);
    }
    tables(&header, features, size)?;
    Ok(header.u64(24))
}

/// Whether the tables are in the file, and the first is large enough for the
/// disk.
fn tables(header: &Header<'_>, features: u64, size: Size) -> Result<(), ImageFault> {
    let bits = header.u32(20);
    if !CLUSTER_BITS.contains(&bits) {
        return Err(ImageFault::Header("the size of its clusters"));
    }
    let cluster = 1_u64 << bits;
    let entry = if features & EXTENDED_L2 == 0 { 8 } else { 16 };
    let disk = header.u64(24);
    let (entries, at) = (u64::from(header.u32(36)), header.u64(40));
    // At most 2^21 * 2^18: no overflow.
    if entries > MAX_L1 || entries < disk.div_ceil(cluster * (cluster / entry)) {
        return Err(ImageFault::Header("the size of its first table"));
    }
    let refcounts = u64::from(header.u32(56)).saturating_mul(cluster);
    if refcounts == 0 || refcounts > MAX_REFCOUNTS {
        return Err(ImageFault::Header("the size of its reference counts"));
    }
    for (at, bytes) in [(at, entries * 8), (header.u64(48), refcounts)] {
        if !at.is_multiple_of(cluster) || (at == 0 && bytes > 0) {
            return Err(ImageFault::Header("where a table begins"));
        }
        let needs = at.saturating_add(bytes);
        if needs > size.bytes() {
            let has = size.bytes();
            return Err(ImageFault::Cut { has, needs });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;
    /// As `qemu-img create` leaves it.
    const BYTES: Size = Size(4 * 65536);

    /// The header of `qemu-img create -f qcow2 x 1G`.
    fn head(change: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut head = vec![0; IMAGE_HEAD];
        head[..4].copy_from_slice(&MAGIC);
        put32(&mut head, 4, 3);
        put32(&mut head, 20, 16);
        put64(&mut head, 24, GIB);
        put32(&mut head, 36, 2);
        put64(&mut head, 40, 3 * 65536);
        put64(&mut head, 48, 65536);
        put32(&mut head, 56, 1);
        put32(&mut head, 96, 4);
        put32(&mut head, 100, 112);
        change(&mut head);
        head
    }

    fn put32(head: &mut [u8], at: usize, value: u32) {
        head[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn put64(head: &mut [u8], at: usize, value: u64) {
        head[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn seen(change: impl Fn(&mut [u8])) -> Result<Size, ImageFault> {
        virtual_size(ImageFormat::Qcow2, &head(change), BYTES)
    }

    #[test]
    fn an_image_that_is_whole_says_how_large_its_disk_is() {
        assert_eq!(seen(|_| {}), Ok(Size(GIB)));
        assert_eq!(seen(|h| put32(h, 4, 2)), Ok(Size(GIB)));
        let compressed = |h: &mut [u8]| put64(h, 72, COMPRESSION);
        assert_eq!(seen(compressed), Ok(Size(GIB)));
        let raw = |bytes, head: &[u8]| virtual_size(ImageFormat::Raw, head, Size(bytes));
        assert_eq!(raw(1024, b"anything"), Ok(Size(1024)));
        assert_eq!(looks_like(&head(|_| {})), ImageFormat::Qcow2);
        assert_eq!(looks_like(b"\x7fELF"), ImageFormat::Raw);
    }

    #[test]
    fn what_names_another_file_is_refused() {
        assert_eq!(seen(|h| put64(h, 8, 0x1c8)), Err(ImageFault::Backing));
        // Also where the length says that there is no name.
        let nameless = |h: &mut [u8]| {
            put64(h, 8, 1);
            put32(h, 16, 0);
        };
        assert_eq!(seen(nameless), Err(ImageFault::Backing));
        let external = |h: &mut [u8]| put64(h, 72, EXTERNAL_DATA);
        assert_eq!(seen(external), Err(ImageFault::ExternalData));
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused_and_says_why() {
        let faults: Vec<String> = [
            seen(|h| put32(h, 32, 2)),
            seen(|h| put64(h, 72, DIRTY)),
            seen(|h| put64(h, 72, 1 << 40)),
            seen(|h| put32(h, 4, 4)),
            seen(|h| h[0] = b'X'),
            seen(|h| put64(h, 24, 0)),
            seen(|h| put64(h, 24, u64::MAX)),
            seen(|h| put32(h, 20, 63)),
            seen(|h| put64(h, 40, 9 * 65536)),
            seen(|h| put64(h, 48, u64::MAX << 16)),
            seen(|h| put32(h, 36, 1)),
            virtual_size(ImageFormat::Qcow2, &head(|_| {})[..71], Size(71)),
            virtual_size(ImageFormat::Qcow2, &[], Size(0)),
            virtual_size(ImageFormat::Raw, &head(|_| {}), BYTES),
            virtual_size(ImageFormat::Raw, b"", Size(1000)),
            virtual_size(ImageFormat::Raw, b"", Size(1 << 60)),
        ]
        .into_iter()
        .map(|seen| seen.expect_err("refused").to_string())
        .collect();
        insta::assert_snapshot!(faults.join("\n"), @r"
        this qcow2 image is encrypted; give one that is not
        this qcow2 image says of itself that it is damaged; repair it: qemu-img check -r all
        this qcow2 image needs something that is not known here (features 0x10000000000); convert it: qemu-img convert -O qcow2
        a qcow2 image of version 4 is not known; convert it: qemu-img convert -O qcow2
        this is not a qcow2 image; if its bytes are the disk's, its format is raw
        a disk of 0 bytes: a disk has 1 to 64TiB
        the header of this qcow2 image cannot be right: the size of its first table; it is damaged
        the header of this qcow2 image cannot be right: the size of its clusters; it is damaged
        this qcow2 image has 262144 bytes, and its tables end at 589840; it is cut off
        this qcow2 image has 262144 bytes, and its tables end at 18446744073709551615; it is cut off
        the header of this qcow2 image cannot be right: the size of its first table; it is damaged
        an image of 71B is too short; it is cut off
        an image of 0B is too short; it is cut off
        this is a qcow2 image, not a raw one; give its format as qcow2
        a raw image of 1000 bytes is cut off, or none: a disk is whole sectors of 512 bytes
        a disk of 1152921504606846976 bytes: a disk has 1 to 64TiB
        ");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), size: u64, magic: bool,
        ) {
            let mut bytes = bytes;
            if magic && bytes.len() >= 8 {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4..8].copy_from_slice(&3_u32.to_be_bytes());
            }
            for format in [ImageFormat::Qcow2, ImageFormat::Raw] {
                if let Ok(disk) = virtual_size(format, &bytes, Size(size)) {
                    prop_assert!(disk.bytes() > 0 && disk <= MAX_DISK);
                }
            }
        }

        #[test]
        fn one_changed_field_never_lets_another_file_in(at in 0_usize..26, value: u32) {
            let changed = head(|h| put32(h, at * 4, value));
            let named = changed[8..16] != [0; 8] || changed[79] & 4 != 0;
            let disk = virtual_size(ImageFormat::Qcow2, &changed, BYTES);
            prop_assert!(disk.is_err() || !named);
        }
    }
}
