//! Whether a record is whole: a pure function of its lines, and of what was
//! kept elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Checkpoint, Head, Line, MAX_LINE, Record, Tail};
use crate::ids::ClusterId;
use crate::keys::{KeyList, SignedText};
use crate::units::Timestamp;

/// Faults that are kept; what is above is only counted.
const MAX_FAULTS: usize = 100;

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// A line is not what the line behind it was built on.
    Edited,
    /// Lines are missing between others.
    Dropped,
    /// A line is not at its place.
    Reordered,
    /// The end is missing.
    Truncated,
    /// The beginning is missing, and no broker says that it removed it.
    Beheaded,
    /// The chain is whole, but it is another one than it was.
    Rewritten,
    /// A checkpoint that no broker key of this cluster has signed.
    Forged,
    /// A line that is none.
    Unreadable,
}

impl FaultKind {
    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Edited => "edited",
            Self::Dropped => "dropped",
            Self::Reordered => "reordered",
            Self::Truncated => "truncated",
            Self::Beheaded => "beheaded",
            Self::Rewritten => "rewritten",
            Self::Forged => "forged",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Something wrong, and where.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Fault {
    /// The number of the record.
    pub record: u64,
    /// The line of what was read, from 1; 0 where it is about what is not
    /// there.
    pub line: u64,
    /// What kind.
    pub kind: FaultKind,
    /// For people.
    pub text: String,
}

/// Something that was kept elsewhere: what the head was at a number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Anchor {
    /// The head there.
    pub head: Head,
    /// When it was kept.
    pub at: Timestamp,
    /// Where it is, for people: `FILE line 12`.
    pub place: String,
    /// A checkpoint, or the record itself.
    pub what: &'static str,
}

/// Why what was kept elsewhere cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OutsideError {
    /// Not a line of a record.
    #[error("{place} is neither a record nor a checkpoint: {why}")]
    Line {
        /// Where.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// A checkpoint that cannot be believed.
    #[error(
        "the checkpoint at {place} is forged or of another cluster: {why}. What is compared with it says nothing"
    )]
    Forged {
        /// Where.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// Two things were kept of one number, and they differ.
    #[error(
        "{place} and {other} both say what record {record} was, and differ: one of them is not what was kept"
    )]
    Contradiction {
        /// The number.
        record: u64,
        /// One.
        place: String,
        /// The other.
        other: String,
    },
}

/// What was kept where the broker cannot write.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    anchors: BTreeMap<u64, Anchor>,
}

impl Outside {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many numbers something is known of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Takes one line of a file that was kept: a record as it was, or a
    /// checkpoint. `keys` are the cluster's, and `place` is for people.
    ///
    /// # Errors
    /// [`OutsideError`].
    pub fn take(
        &mut self,
        line: &str,
        keys: Option<&KeyList>,
        place: &str,
    ) -> Result<(), OutsideError> {
        let unreadable = |why: String| OutsideError::Line {
            place: place.to_owned(),
            why,
        };
        if line.len() > MAX_LINE {
            return Err(unreadable("it is too long".into()));
        }
        let parsed: Line = serde_json::from_str(line).map_err(|e| unreadable(e.to_string()))?;
        let (record, anchor) = match parsed {
            Line::Record(record) => (
                record.n,
                Anchor {
                    head: Head::of(line.as_bytes()),
                    at: record.entry.at,
                    place: place.to_owned(),
                    what: "record",
                },
            ),
            Line::Checkpoint(signed) => {
                let said = opened(&signed, keys).map_err(|why| OutsideError::Forged {
                    place: place.to_owned(),
                    why,
                })?;
                (
                    said.count,
                    Anchor {
                        head: said.head,
                        at: said.at,
                        place: place.to_owned(),
                        what: "checkpoint",
                    },
                )
            }
            Line::Trust(_) => return Ok(()),
        };
        if let Some(other) = self.anchors.get(&record) {
            if other.head != anchor.head {
                return Err(OutsideError::Contradiction {
                    record,
                    place: place.to_owned(),
                    other: other.place.clone(),
                });
            }
            return Ok(());
        }
        self.anchors.insert(record, anchor);
        Ok(())
    }
}

/// The checkpoint, if a broker key of the cluster signed it. Also one that is
/// revoked by now: it was not always. Without `keys` nothing is checked.
fn opened(signed: &SignedText, keys: Option<&KeyList>) -> Result<Checkpoint, String> {
    let Some(keys) = keys else {
        return serde_json::from_str(&signed.text).map_err(|e| e.to_string());
    };
    let key = keys
        .find(signed.key)
        .ok_or_else(|| format!("key {} is not on the cluster's list", signed.key))?;
    let said: Checkpoint = signed
        .open(&key.key, crate::keys::Purpose::AuditCheckpoint)
        .map_err(|e| e.to_string())?;
    if said.cluster != keys.cluster {
        return Err(format!("it is of cluster {}", said.cluster));
    }
    Ok(said)
}

/// What came of a verification.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// How many records were read.
    pub records: u64,
    /// The number of the first one.
    pub first: Option<u64>,
    /// The number of the last one.
    pub last: Option<u64>,
    /// When the last one was written.
    pub last_at: Option<Timestamp>,
    /// The hash of the last one.
    pub head: Option<Head>,
    /// How many signed checkpoints were found among them, all good.
    pub checkpoints: u64,
    /// The number up to which a good checkpoint goes.
    pub covered: u64,
    /// How many numbers were held against what was kept elsewhere.
    pub compared: u64,
    /// Of how many the record is not kept any more here.
    pub too_old: u64,
    /// The cluster, as the checkpoints say.
    pub cluster: Option<ClusterId>,
    /// What is wrong, in the order in which it was found.
    pub faults: Vec<Fault>,
    /// How much more is wrong.
    pub more_faults: u64,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.faults.is_empty() && self.more_faults == 0
    }
}

/// Reads the lines of a record in their order and says what is wrong.
#[derive(Clone, Debug)]
pub struct Verifier {
    keys: Option<KeyList>,
    outside: Outside,
    report: Report,
    line: u64,
    tail: Option<Tail>,
    /// Number and link of the first record, when it is not the first of all.
    start: Option<(u64, Head)>,
    /// What brokers say to have removed.
    cuts: Vec<Checkpoint>,
    /// An unreadable line stands before the next one.
    blind: bool,
}

impl Verifier {
    /// `keys`: the cluster's broker keys, to check checkpoints with; without
    /// them checkpoints are compared but could be anybody's.
    #[must_use]
    pub fn new(keys: Option<KeyList>, outside: Outside) -> Self {
        Self {
            keys,
            outside,
            report: Report::default(),
            line: 0,
            tail: None,
            start: None,
            cuts: Vec::new(),
            blind: false,
        }
    }

    /// The next line, without its line end.
    pub fn take(&mut self, line: &str) {
        self.line += 1;
        let parsed = if line.len() > MAX_LINE {
            Err("it is too long".to_owned())
        } else {
            serde_json::from_str::<Line>(line).map_err(|e| e.to_string())
        };
        match parsed {
            Ok(Line::Record(record)) => self.record(&record, Head::of(line.as_bytes())),
            Ok(Line::Checkpoint(signed)) => self.checkpoint(&signed),
            Ok(Line::Trust(_)) => {}
            Err(why) => {
                self.blind = true;
                let behind = self.tail.map_or(0, |tail| tail.count);
                let text = format!("what stands behind record {behind} cannot be read: {why}");
                self.fault(behind.saturating_add(1), FaultKind::Unreadable, text);
            }
        }
    }

    fn record(&mut self, record: &Record, head: Head) {
        let n = record.n;
        self.report.records += 1;
        match self.tail {
            None => {
                self.report.first = Some(n);
                if n != 1 {
                    self.start = Some((n, record.prev));
                } else if record.prev != Head::START {
                    let text = "record 1 says that there was one before it".to_owned();
                    self.fault(1, FaultKind::Edited, text);
                }
            }
            Some(tail) if n == tail.count.saturating_add(1) => {
                if record.prev != tail.head && !self.blind {
                    let text = format!(
                        "record {} is not what record {n} was built on: one of the two was edited",
                        tail.count
                    );
                    self.fault(tail.count, FaultKind::Edited, text);
                }
            }
            Some(tail) if n > tail.count => {
                let (from, to) = (tail.count.saturating_add(1), n - 1);
                let text = if from == to {
                    format!("record {from} was dropped")
                } else {
                    format!("records {from} to {to} were dropped")
                };
                if !(self.blind && from == to) {
                    self.fault(from, FaultKind::Dropped, text);
                }
            }
            Some(tail) => {
                // What is missed further up may be this one.
                let was = self.report.faults.iter().position(|fault| {
                    fault.kind == FaultKind::Dropped
                        && fault.text == format!("record {n} was dropped")
                });
                if let Some(was) = was {
                    self.report.faults.remove(was);
                }
                let text = format!("record {n} stands behind record {}", tail.count);
                self.fault(n, FaultKind::Reordered, text);
            }
        }
        self.compare(n, head);
        self.blind = false;
        if self.tail.is_none_or(|tail| n > tail.count) {
            self.tail = Some(Tail { count: n, head });
            self.report.last_at = Some(record.entry.until.unwrap_or(record.entry.at));
        }
    }

    fn compare(&mut self, n: u64, head: Head) {
        let Some(anchor) = self.outside.anchors.get(&n) else {
            return;
        };
        self.report.compared += 1;
        if anchor.head != head {
            let text = format!(
                "record {n} is not the one that was kept outside ({} at {}, of {}): it, or one before it, was \
                 replaced, and the chain computed anew",
                anchor.what, anchor.place, anchor.at
            );
            self.fault(n, FaultKind::Rewritten, text);
        }
    }

    fn checkpoint(&mut self, signed: &SignedText) {
        let at = self.tail.map_or(0, |tail| tail.count);
        let said = match opened(signed, self.keys.as_ref()) {
            Ok(said) => said,
            Err(why) => {
                let text = format!("the checkpoint behind record {at} is forged: {why}");
                self.fault(at, FaultKind::Forged, text);
                return;
            }
        };
        self.report.cluster.get_or_insert(said.cluster);
        if said.cut {
            self.cuts.push(said);
            return;
        }
        match self.tail {
            // It is of what was removed, and says nothing of what is here.
            None => self.report.first = None,
            Some(tail) if said.count > tail.count => {
                let text = format!(
                    "the checkpoint of {} counts {} records; behind record {} there are {} missing",
                    said.at,
                    said.count,
                    tail.count,
                    said.count - tail.count
                );
                self.fault(tail.count.saturating_add(1), FaultKind::Dropped, text);
            }
            Some(tail) if said.count < tail.count => {
                let text = format!(
                    "the checkpoint of {}, which counts {} records, stands behind record {}",
                    said.at, said.count, tail.count
                );
                self.fault(tail.count, FaultKind::Reordered, text);
            }
            Some(tail) if said.head != tail.head => {
                let text = format!(
                    "record {} is not the one that the checkpoint of {} was signed for: it, or one before it, was edited",
                    tail.count, said.at
                );
                self.fault(tail.count, FaultKind::Edited, text);
            }
            Some(tail) => {
                self.report.checkpoints += 1;
                self.report.covered = tail.count;
            }
        }
    }

    fn fault(&mut self, record: u64, kind: FaultKind, text: String) {
        if self.report.faults.len() == MAX_FAULTS {
            self.report.more_faults += 1;
            return;
        }
        self.report.faults.push(Fault {
            record,
            line: self.line,
            kind,
            text,
        });
    }

    /// What came of it, when all lines were read.
    #[must_use]
    pub fn finish(mut self) -> Report {
        self.line = 0;
        let tail = self.tail.unwrap_or(Tail::START);
        if let Some((first, prev)) = self.start {
            let said =
                |cut: &Checkpoint| cut.count.checked_add(1) == Some(first) && cut.head == prev;
            if !self.cuts.iter().any(said) {
                let text = format!(
                    "it begins with record {first}, and no signed checkpoint says that what stood before was removed \
                     because of its age"
                );
                self.fault(first.saturating_sub(1), FaultKind::Beheaded, text);
            }
        }
        let first = self.start.map_or(1, |(first, _)| first);
        // The record before the first one that is kept is known by its hash.
        if let Some((_, prev)) = self.start {
            self.compare(first.saturating_sub(1), prev);
        }
        self.report.too_old = self
            .outside
            .anchors
            .range(..first.saturating_sub(1))
            .count() as u64;
        if let Some((count, anchor)) = self.outside.anchors.last_key_value()
            && *count > tail.count
        {
            let text = format!(
                "it ends with record {}, and what was kept outside ({} at {}, of {}) knows {count}: {} were cut off",
                tail.count,
                anchor.what,
                anchor.place,
                anchor.at,
                count - tail.count
            );
            self.fault(tail.count.saturating_add(1), FaultKind::Truncated, text);
        }
        if let Some(tail) = self.tail {
            self.report.last = Some(tail.count);
            self.report.head = Some(tail.head);
        }
        self.report
    }
}
