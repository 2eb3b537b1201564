//! What is said to the kernel directly, without a program between: the
//! generation of its rules, and elements of sets. `nft` reads far more than it
//! needs before it adds one element; a message of a few dozen bytes does not.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

/// How long the kernel may take for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// What one answer has at most.
const BUFFER: usize = 64 << 10;

// The numbers of the kernel's interface: linux/netlink.h,
// linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEAD: usize = 16;
const KIND: u16 = 0x3fff;
const NESTED: u16 = 0x8000;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const TABLES: u16 = 10;
const GET_TABLE: u16 = TABLES << 8 | 1;
const NEW_RULE: u16 = TABLES << 8 | 6;
const GET_RULE: u16 = TABLES << 8 | 7;
const NEW_ELEMENTS: u16 = TABLES << 8 | 12;
const DELETE_ELEMENTS: u16 = TABLES << 8 | 14;
const GET_GENERATION: u16 = TABLES << 8 | 16;
const NEW_OBJECT: u16 = TABLES << 8 | 18;
const GET_OBJECT: u16 = TABLES << 8 | 19;
const CREATE: u16 = 0x400;
const TABLE_NAME: u16 = 1;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_DATA: u16 = 7;
const DATA_COMMENT: u8 = 0;
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const COUNTER: u32 = 1;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;
const GENERATION_ID: u16 = 1;

/// A request.
pub(crate) const REQUEST: u16 = 1;
/// An answer is wanted in any case.
pub(crate) const ACKNOWLEDGE: u16 = 4;
/// All of them are wanted.
pub(crate) const DUMP: u16 = 0x300;
/// What stands before the attributes: a family, a version, an id.
pub(crate) const FAMILY_HEAD: usize = 4;

/// The family of a table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// Frames that cross a bridge.
    Bridge,
}

impl Family {
    /// As `nft` writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Bridge => 7,
        }
    }
}

/// An element of a set of plain addresses that comes or goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Element {
    /// The set.
    pub set: String,
    /// The address.
    pub address: IpAddr,
    /// Whether it comes; else it goes.
    pub comes: bool,
}

/// A connection to the kernel's netfilter.
#[derive(Debug)]
pub struct Kernel(OwnedFd);

impl Kernel {
    /// Opens one, to the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn open() -> io::Result<Self> {
        let kernel = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        connect(&kernel, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&kernel, Timeout::Recv, Some(ANSWER_WITHIN))?;
        Ok(Self(kernel))
    }

    /// The number of the rules' newest state: rises with each transaction,
    /// whoever does it, in whatever table.
    ///
    /// # Errors
    /// The kernel has no nftables, or does not say.
    pub fn generation(&self) -> io::Result<u32> {
        self.ask(GET_GENERATION, REQUEST, &[0; FAMILY_HEAD])?;
        let mut found = None;
        let until = Instant::now() + ANSWER_WITHIN;
        // One message, without an end.
        self.read(until, |_, body| {
            let attributes = body.get(FAMILY_HEAD..).unwrap_or_default();
            found = Attributes(attributes)
                .find(|(kind, ..)| *kind == GENERATION_ID)
                .and_then(|(_, value, _)| Some(u32::from_be_bytes(*value.first_chunk()?)));
            Next::Enough
        })?;
        found.ok_or_else(|| io::Error::other("the kernel says no generation of its rules"))
    }

    /// Whether there is a table of that name.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn has_table(&self, family: Family, table: &str) -> io::Result<bool> {
        let name = attribute(TABLE_NAME, &text(table))?;
        let body = [&[family.number(), 0, 0, 0][..], &name].concat();
        self.ask(GET_TABLE, REQUEST | ACKNOWLEDGE, &body)?;
        match self.read(Instant::now() + ANSWER_WITHIN, |_, _| Next::Go) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Shows the named counters of a table: name, packets, bytes.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn counters(
        &self,
        family: Family,
        table: &str,
        mut see: impl FnMut(&str, u64, u64),
    ) -> io::Result<()> {
        let of = attribute(OBJECT_TABLE, &text(table))?;
        let kind = attribute(OBJECT_TYPE, &COUNTER.to_be_bytes())?;
        let body = [&[family.number(), 0, 0, 0][..], &of, &kind].concat();
        self.ask(GET_OBJECT, REQUEST | DUMP, &body)?;
        self.read(Instant::now() + ANSWER_WITHIN, |kind, body| {
            let body = body.get(FAMILY_HEAD..).unwrap_or_default();
            let is_one = |kind, wanted: &[u8]| value(body, kind) == Some(wanted);
            let name = value(body, OBJECT_NAME).and_then(plain);
            let counts = value(body, OBJECT_DATA).unwrap_or_default();
            let number = |kind| value(counts, kind).and_then(u64_of);
            if kind == NEW_OBJECT
                && is_one(OBJECT_TABLE, &text(table))
                && is_one(OBJECT_TYPE, &COUNTER.to_be_bytes())
                && let (Some(name), Some(packets), Some(bytes)) =
                    (name, number(COUNTER_PACKETS), number(COUNTER_BYTES))
            {
                see(name, packets, bytes);
            }
            Next::Go
        })
    }

    /// Shows the rules of a chain in their order: handle and comment, which is
    /// empty when there is none.
    ///
    /// # Errors
    /// There is no such chain, or the kernel does not say.
    pub fn rules(
        &self,
        family: Family,
        table: &str,
        chain: &str,
        mut see: impl FnMut(u64, &str),
    ) -> io::Result<()> {
        let of = attribute(RULE_TABLE, &text(table))?;
        let in_chain = attribute(RULE_CHAIN, &text(chain))?;
        let body = [&[family.number(), 0, 0, 0][..], &of, &in_chain].concat();
        self.ask(GET_RULE, REQUEST | DUMP, &body)?;
        self.read(Instant::now() + ANSWER_WITHIN, |kind, body| {
            let body = body.get(FAMILY_HEAD..).unwrap_or_default();
            let is_one = |kind, wanted: &str| value(body, kind) == Some(&text(wanted));
            let handle = value(body, RULE_HANDLE).and_then(u64_of);
            if kind == NEW_RULE
                && is_one(RULE_TABLE, table)
                && is_one(RULE_CHAIN, chain)
                && let Some(handle) = handle
            {
                let data = value(body, RULE_DATA).unwrap_or_default();
                see(handle, comment(data).unwrap_or_default());
            }
            Next::Go
        })
    }

    /// Adds and removes elements, all of them or none, in one transaction.
    ///
    /// # Errors
    /// The kernel refuses one: then it did none of them.
    pub fn elements(&self, family: Family, table: &str, all: &[Element]) -> io::Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        let tables = TABLES.to_be_bytes();
        let edge = [0, 0, tables[0], tables[1]];
        let mut batch = message(BATCH_BEGIN, REQUEST, 0, &edge)?;
        let mut number = 0;
        // Those of one set that are alike go in one message, as long as it
        // holds them: an attribute has at most 64 KiB.
        for run in all.chunk_by(|a, b| a.set == b.set && a.comes == b.comes) {
            for part in run.chunks(1_000) {
                number += 1;
                batch.extend(elements(family, table, part, number)?);
            }
        }
        batch.extend(message(BATCH_END, REQUEST, number + 1, &edge)?);
        self.send(&batch)?;
        // Every message is answered, and so is what is wrong with the whole.
        // A batch that is refused is refused whole.
        let until = Instant::now() + ANSWER_WITHIN;
        let mut left = number;
        while left > 0 {
            self.read(until, |_, _| Next::Go)?;
            left -= 1;
        }
        Ok(())
    }

    pub(crate) fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.send(&message(kind, flags, 0, body)?)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(&self.0, bytes, SendFlags::empty())?;
        Ok(())
    }

    /// Shows the parts of an answer, to its end.
    pub(crate) fn read(
        &self,
        until: Instant,
        mut see: impl FnMut(u16, &[u8]) -> Next,
    ) -> io::Result<()> {
        let strange = || io::Error::other("the kernel's answer cannot be read");
        let mut buffer = vec![0; BUFFER];
        loop {
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let length = match recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((_, length)) => length,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let mut rest = buffer.get(..length).ok_or_else(strange)?;
            while !rest.is_empty() {
                let length = u32_at(rest, 0).ok_or_else(strange)? as usize;
                let kind = u16_at(rest, 4).ok_or_else(strange)?;
                let body = rest.get(HEAD..length).ok_or_else(strange)?;
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = u32_at(body, 0).ok_or_else(strange)?.cast_signed();
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                        };
                    }
                    kind => {
                        if let Next::Enough = see(kind, body) {
                            return Ok(());
                        }
                    }
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// Whether the rest of an answer is wanted.
pub(crate) enum Next {
    /// It is.
    Go,
    /// This was all.
    Enough,
}

fn elements(family: Family, table: &str, part: &[Element], number: u32) -> io::Result<Vec<u8>> {
    let Some(first) = part.first() else {
        return Ok(Vec::new());
    };
    let mut list = Vec::new();
    for element in part {
        let value = match element.address {
            IpAddr::V4(v4) => attribute(DATA_VALUE, &v4.octets())?,
            IpAddr::V6(v6) => attribute(DATA_VALUE, &v6.octets())?,
        };
        let key = attribute(ELEMENT_KEY | NESTED, &value)?;
        list.extend(attribute(LIST_ELEMENT | NESTED, &key)?);
    }
    let mut body = vec![family.number(), 0, 0, 0];
    body.extend(attribute(LIST_TABLE, &text(table))?);
    body.extend(attribute(LIST_SET, &text(&first.set))?);
    body.extend(attribute(LIST_ELEMENTS | NESTED, &list)?);
    let (kind, create) = match first.comes {
        true => (NEW_ELEMENTS, CREATE),
        false => (DELETE_ELEMENTS, 0),
    };
    message(kind, REQUEST | ACKNOWLEDGE | create, number, &body)
}

/// A message to the kernel.
fn message(kind: u16, flags: u16, number: u32, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEAD + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(number.to_ne_bytes());
    // Whom it is for: the kernel.
    message.extend([0; 4]);
    message.extend(body);
    message.resize(message.len().next_multiple_of(4), 0);
    Ok(message)
}

/// A name, as the kernel writes it.
fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn plain(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text.strip_suffix(&[0])?).ok()
}

fn u64_of(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*value.first_chunk()?))
}

fn value(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut all = Attributes(attributes);
    all.find(|(kind, ..)| *kind == wanted)
        .map(|(_, value, _)| value)
}

/// The comment in what `nft` keeps beside a rule: kinds, lengths, values.
fn comment(mut data: &[u8]) -> Option<&str> {
    loop {
        let [kind, length, rest @ ..] = data else {
            return None;
        };
        let (value, after) = rest.split_at_checked(usize::from(*length))?;
        if *kind == DATA_COMMENT {
            return plain(value);
        }
        data = after;
    }
}

/// An attribute of a message.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(4 + value.len()).map_err(io::Error::other)?;
    let mut all = Vec::with_capacity(usize::from(length).next_multiple_of(4));
    all.extend(length.to_ne_bytes());
    all.extend(kind.to_ne_bytes());
    all.extend(value);
    all.resize(all.len().next_multiple_of(4), 0);
    Ok(all)
}

/// What stands in a message: kind, value, and both as they stand there.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & KIND;
        let (whole, value) = (self.0.get(..length)?, self.0.get(4..length)?);
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value, whole))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let found = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*found))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let found = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*found))
}
