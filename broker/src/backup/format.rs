//! The file: parts one after the other, each with its hash, and a list of all
//! at the end.
//!
//! ```text
//! "muster backup 1\n"
//! frames: kind (1 byte), length (4 bytes, big endian), content
//!   H  JSON Head: first, once
//!   P  name of a part
//!   D  data of that part: a piece of a file, or one message of a stream
//!   E  end of that part: SHA-256 of its name and its data
//!   M  JSON Manifest: last but one, once
//!   Z  SHA-256 of head and manifest: last
//! ```
//!
//! It can be written as it is read, by whoever cannot go back, and checked
//! part by part.

use std::io::{self, Read};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use muster_protocol::ids::ClusterId;
use muster_protocol::text::printable;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What a backup begins with.
const MAGIC: &[u8] = b"muster backup 1\n";
/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Largest frame, in bytes: above the largest message of muster's streams.
pub const MAX_FRAME: usize = 16 << 20;
/// Most parts of a backup.
const MAX_PARTS: usize = 4_096;
/// Longest name of a part.
const MAX_NAME: usize = 300;

/// What is known before anything is read.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the muster that wrote it.
    pub muster: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// When it was begun.
    pub made: Timestamp,
    /// The epoch of the broker that wrote it.
    pub broker_epoch: u64,
    /// The epoch of the list of broker keys.
    pub key_epoch: u64,
}

/// What a backup holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// When it was finished.
    pub finished: Timestamp,
    /// All parts, in their order.
    pub parts: Vec<PartNote>,
}

/// A part, as the manifest names it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PartNote {
    /// `file keys/ca.pem`, `stream MUSTER_RUNS`.
    pub name: String,
    /// Hash of name and data, hexadecimal.
    pub sha256: String,
    /// Bytes of data.
    pub bytes: u64,
    /// Pieces of a file, messages of a stream with its settings.
    pub pieces: u64,
    /// For a stream: its position, the last sequence that was looked at.
    pub position: Option<u64>,
}

/// Why a file is not read as a backup. Names the part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Not a backup at all.
    #[error("it is not a backup of muster")]
    NotABackup,
    /// Written by a newer muster.
    #[error(
        "it is a backup of format {found}, this muster reads formats up to {FORMAT}; use the \
         muster that wrote it, or a newer one"
    )]
    Newer {
        /// Its format.
        found: u32,
    },
    /// It ends too early.
    #[error("it is truncated: it ends in {place}; use another copy")]
    Truncated {
        /// Where.
        place: String,
    },
    /// Something in it is not what was written.
    #[error("it is damaged in {place} ({what}); use another copy")]
    Damaged {
        /// Where.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// The system said no.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Makes the frames of a backup.
#[derive(Debug)]
pub struct Framer {
    head: Vec<u8>,
    parts: Vec<PartNote>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    name: String,
    hash: Sha256,
    bytes: u64,
    pieces: u64,
}

impl Open {
    fn new(name: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(length(name.len()));
        hash.update(name);
        Self {
            name: name.to_owned(),
            hash,
            bytes: 0,
            pieces: 0,
        }
    }

    fn add(&mut self, data: &[u8]) {
        self.hash.update(length(data.len()));
        self.hash.update(data);
        self.bytes += data.len() as u64;
        self.pieces += 1;
    }

    fn end(self, position: Option<u64>) -> ([u8; 32], PartNote) {
        let hash: [u8; 32] = self.hash.finalize().into();
        let note = PartNote {
            name: self.name,
            sha256: HEXLOWER.encode(&hash),
            bytes: self.bytes,
            pieces: self.pieces,
            position,
        };
        (hash, note)
    }
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

fn frame(kind: u8, content: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(content.len() + 5);
    bytes.push(kind);
    bytes.extend_from_slice(&length(content.len()));
    bytes.extend_from_slice(content);
    bytes.into()
}

impl Framer {
    /// Begins; the first bytes of the file.
    ///
    /// # Errors
    /// When the head has no JSON form.
    pub fn begin(head: &Head) -> Result<(Self, Bytes), serde_json::Error> {
        let head = serde_json::to_vec(head)?;
        let mut first = MAGIC.to_vec();
        first.extend_from_slice(&frame(b'H', &head));
        let framer = Self {
            head,
            parts: Vec::new(),
            open: None,
        };
        Ok((framer, first.into()))
    }

    /// Begins a part; one that is open is given up.
    pub fn part(&mut self, name: &str) -> Bytes {
        self.open = Some(Open::new(name));
        frame(b'P', name.as_bytes())
    }

    /// Data of the part. At most [`MAX_FRAME`] bytes.
    pub fn data(&mut self, data: &[u8]) -> Bytes {
        if let Some(open) = &mut self.open {
            open.add(data);
        }
        frame(b'D', data)
    }

    /// Ends the part.
    pub fn end(&mut self, position: Option<u64>) -> Bytes {
        let Some(open) = self.open.take() else {
            return Bytes::new();
        };
        let (hash, note) = open.end(position);
        self.parts.push(note);
        frame(b'E', &hash)
    }

    /// The last bytes of the file.
    ///
    /// # Errors
    /// When the manifest has no JSON form.
    pub fn finish(self, finished: Timestamp) -> Result<Bytes, serde_json::Error> {
        let manifest = serde_json::to_vec(&Manifest {
            finished,
            parts: self.parts,
        })?;
        let mut last = frame(b'M', &manifest).to_vec();
        last.extend_from_slice(&frame(b'Z', &whole(&self.head, &manifest)));
        Ok(last.into())
    }
}

fn whole(head: &[u8], manifest: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(length(head.len()));
    hash.update(head);
    hash.update(manifest);
    hash.finalize().into()
}

/// What is done with what a backup holds. Nothing of it is to be believed
/// before the whole file was read once.
pub trait Visitor {
    /// Why it does not go on.
    type Error;

    /// A part begins.
    ///
    /// # Errors
    /// The visitor's.
    fn part(&mut self, name: &str) -> Result<(), Self::Error>;

    /// Data of that part.
    ///
    /// # Errors
    /// The visitor's.
    fn data(&mut self, data: &[u8]) -> Result<(), Self::Error>;

    /// That part ends.
    ///
    /// # Errors
    /// The visitor's.
    fn end(&mut self) -> Result<(), Self::Error>;
}

/// Looks at nothing: only the hashes are checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOnly;

impl Visitor for CheckOnly {
    type Error = std::convert::Infallible;

    fn part(&mut self, _: &str) -> Result<(), Self::Error> {
        Ok(())
    }

    fn data(&mut self, _: &[u8]) -> Result<(), Self::Error> {
        Ok(())
    }

    fn end(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Why a backup was not read to its end.
#[derive(Debug)]
pub enum ReadError<E> {
    /// The file.
    Format(FormatError),
    /// The visitor.
    Visitor(E),
}

impl<E> From<FormatError> for ReadError<E> {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

/// Checks a whole backup.
///
/// # Errors
/// [`FormatError`].
pub fn check(from: impl Read) -> Result<(Head, Manifest), FormatError> {
    match read(from, &mut CheckOnly) {
        Ok(found) => Ok(found),
        Err(ReadError::Format(error)) => Err(error),
        Err(ReadError::Visitor(never)) => match never {},
    }
}

/// Reads a whole backup, checking each part as it ends.
///
/// # Errors
/// [`ReadError`].
pub fn read<V: Visitor>(
    from: impl Read,
    visitor: &mut V,
) -> Result<(Head, Manifest), ReadError<V::Error>> {
    let mut reader = Reader {
        from,
        place: "its head".into(),
    };
    let mut magic = [0; MAGIC.len()];
    match reader.fill(&mut magic) {
        Ok(()) if magic == MAGIC => {}
        Ok(()) | Err(FormatError::Truncated { .. }) => return Err(FormatError::NotABackup.into()),
        Err(error) => return Err(error.into()),
    }
    let (kind, head_text) = reader.frame()?;
    if kind != b'H' {
        return Err(reader.damaged("no head").into());
    }
    let head = read_head(&reader, &head_text)?;
    let mut seen: Vec<PartNote> = Vec::new();
    let mut open: Option<Open> = None;
    loop {
        let (kind, content) = reader.frame()?;
        match (kind, open.take()) {
            (b'P', None) => {
                let name = std::str::from_utf8(&content)
                    .ok()
                    .filter(|name| name.len() <= MAX_NAME && seen.len() < MAX_PARTS)
                    .ok_or_else(|| reader.damaged("no name of a part"))?;
                if seen.iter().any(|part| part.name == name) {
                    return Err(reader.damaged("a part that is there twice").into());
                }
                reader.place = format!("the part `{}`", printable(name, MAX_NAME));
                visitor.part(name).map_err(ReadError::Visitor)?;
                open = Some(Open::new(name));
            }
            (b'D', Some(mut part)) => {
                part.add(&content);
                visitor.data(&content).map_err(ReadError::Visitor)?;
                open = Some(part);
            }
            (b'E', Some(part)) => {
                let (hash, note) = part.end(None);
                if content != hash {
                    return Err(reader.damaged("its SHA-256 is another").into());
                }
                visitor.end().map_err(ReadError::Visitor)?;
                seen.push(note);
                reader.place = format!("what follows {}", reader.place);
            }
            (b'M', None) => {
                reader.place = "its manifest".into();
                let manifest: Manifest =
                    serde_json::from_slice(&content).map_err(|e| reader.damaged(&e.to_string()))?;
                compare(&reader, &manifest, &seen)?;
                let (kind, hash) = reader.frame()?;
                if kind != b'Z' || hash != whole(&head_text, &content) {
                    return Err(reader.damaged("its SHA-256 is another").into());
                }
                if reader.from.read(&mut [0]).map_err(FormatError::Io)? != 0 {
                    return Err(reader.damaged("something follows its end").into());
                }
                return Ok((head, manifest));
            }
            _ => return Err(reader.damaged("a piece that cannot be there").into()),
        }
    }
}

/// A newer head may hold more.
#[derive(Deserialize)]
struct AnyHead {
    format: u32,
}

fn read_head<R: Read>(reader: &Reader<R>, text: &[u8]) -> Result<Head, FormatError> {
    let any: AnyHead = serde_json::from_slice(text).map_err(|e| reader.damaged(&e.to_string()))?;
    if any.format > FORMAT {
        return Err(FormatError::Newer { found: any.format });
    }
    serde_json::from_slice(text).map_err(|e| reader.damaged(&e.to_string()))
}

fn compare<R: Read>(
    reader: &Reader<R>,
    manifest: &Manifest,
    seen: &[PartNote],
) -> Result<(), FormatError> {
    for (at, wanted) in manifest.parts.iter().enumerate() {
        let name = printable(&wanted.name, MAX_NAME);
        match seen.get(at) {
            Some(part) if part.name == wanted.name && part.sha256 == wanted.sha256 => {}
            Some(_) => return Err(reader.damaged(&format!("the part `{name}` is another"))),
            None => return Err(reader.damaged(&format!("the part `{name}` is missing"))),
        }
    }
    if seen.len() > manifest.parts.len() {
        return Err(reader.damaged("there are parts that it does not name"));
    }
    Ok(())
}

struct Reader<R> {
    from: R,
    place: String,
}

impl<R: Read> Reader<R> {
    fn damaged(&self, what: &str) -> FormatError {
        FormatError::Damaged {
            place: self.place.clone(),
            what: printable(what, 300),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), FormatError> {
        self.from
            .read_exact(buffer)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => FormatError::Truncated {
                    place: self.place.clone(),
                },
                _ => error.into(),
            })
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>), FormatError> {
        let mut kind = [0; 1];
        self.fill(&mut kind)?;
        let mut len = [0; 4];
        self.fill(&mut len)?;
        let len = u32::from_be_bytes(len) as usize;
        if len > MAX_FRAME {
            return Err(self.damaged("a piece that is too large"));
        }
        let mut content = vec![0; len];
        self.fill(&mut content)?;
        Ok((kind[0], content))
    }
}

/// A message of a stream: the content of one `D` frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where and when it was.
    pub note: RecordNote,
    /// Its payload.
    pub payload: Bytes,
}

/// What a message is besides its payload.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RecordNote {
    /// Its sequence in the stream that was read.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// When the server had stored it.
    pub time: Timestamp,
    /// Its headers, without those that are for the server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

impl Record {
    /// As a frame's content; `None` when it has no JSON form or is too large.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let note = serde_json::to_vec(&self.note).ok()?;
        let mut bytes = length(note.len()).to_vec();
        bytes.extend_from_slice(&note);
        bytes.extend_from_slice(&self.payload);
        (bytes.len() <= MAX_FRAME).then_some(bytes)
    }

    /// From a frame's content.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (note, payload) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        Some(Self {
            note: serde_json::from_slice(note).ok()?,
            payload: Bytes::copy_from_slice(payload),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let head = Head {
            format: FORMAT,
            muster: "0.1.0".into(),
            cluster: ClusterId::from_bytes([1; 16]),
            made: Timestamp::UNIX_EPOCH,
            broker_epoch: 3,
            key_epoch: 2,
        };
        let (mut framer, mut all) = Framer::begin(&head).map(|(f, b)| (f, b.to_vec())).unwrap();
        for (name, data) in [
            ("file a", vec!["x"]),
            ("stream S", vec!["settings", "m", ""]),
        ] {
            all.extend(framer.part(name));
            for piece in data {
                all.extend(framer.data(piece.as_bytes()));
            }
            all.extend(framer.end(Some(7)));
        }
        all.extend(framer.finish(Timestamp::UNIX_EPOCH).unwrap());
        all
    }

    #[derive(Default)]
    struct Collect(Vec<String>);

    impl Visitor for Collect {
        type Error = String;

        fn part(&mut self, name: &str) -> Result<(), String> {
            self.0.push(name.to_owned());
            Ok(())
        }

        fn data(&mut self, data: &[u8]) -> Result<(), String> {
            self.0.push(String::from_utf8_lossy(data).into_owned());
            Ok(())
        }

        fn end(&mut self) -> Result<(), String> {
            self.0.push(".".into());
            Ok(())
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut seen = Collect::default();
        let Ok((head, manifest)) = read(&*sample(), &mut seen) else {
            panic!("it is not read");
        };
        assert_eq!((head.broker_epoch, head.key_epoch), (3, 2));
        assert_eq!(manifest.parts.len(), 2);
        assert_eq!(
            (manifest.parts[1].pieces, manifest.parts[1].position),
            (3, Some(7))
        );
        assert_eq!(
            seen.0,
            ["file a", "x", ".", "stream S", "settings", "m", "", "."]
        );
    }

    #[test]
    fn every_change_of_a_byte_and_every_cut_is_found() {
        let good = sample();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(check(&*bad).is_err(), "byte {at}");
            assert!(check(&good[..at]).is_err(), "cut at {at}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(check(&*longer).is_err());
    }

    #[test]
    fn damage_names_the_part() {
        let good = sample();
        let at = good.windows(8).position(|w| w == b"settings").unwrap();
        let mut bad = good.clone();
        bad[at] = b'X';
        assert_eq!(
            check(&*bad).unwrap_err().to_string(),
            "it is damaged in the part `stream S` (its SHA-256 is another); use another copy"
        );
        assert_eq!(
            check(&good[..at + 3]).unwrap_err().to_string(),
            "it is truncated: it ends in the part `stream S`; use another copy"
        );
        assert!(matches!(check(&b"PK"[..]), Err(FormatError::NotABackup)));
        let mut newer = good.clone();
        let at = good.windows(10).position(|w| w == b"\"format\":1").unwrap();
        newer[at + 9] = b'9';
        assert!(matches!(
            check(&*newer),
            Err(FormatError::Newer { found: 9 })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::decode(&bytes);
            let mut file = MAGIC.to_vec();
            file.extend_from_slice(&bytes);
            prop_assert!(check(&*file).is_err());
        }

        #[test]
        fn a_record_comes_back(sequence: u64, payload: Vec<u8>, value in "\\PC{0,20}") {
            let record = Record {
                note: RecordNote {
                    sequence,
                    subject: "m1.run.x.o".into(),
                    time: Timestamp::UNIX_EPOCH,
                    headers: vec![("Muster-Output".into(), value)],
                },
                payload: payload.into(),
            };
            prop_assert_eq!(Record::decode(&record.encode().unwrap()), Some(record));
        }
    }
}
