//! Connections that the hypervisor's kernel follows (conntrack), where it does:
//! those of a machine that has gone are forgotten, so that whoever gets its
//! address next begins with none of them; those that are allowed no longer get
//! a bit in their mark, which the rules drop them by.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::netlink::{
    ACKNOWLEDGE, Attributes, DUMP, FAMILY_HEAD, Kernel, Next, REQUEST, attribute,
};

/// How long all of it may take.
const ALL_WITHIN: Duration = Duration::from_secs(20);

// The numbers of the kernel's interface:
// linux/netfilter/nfnetlink_conntrack.h.
const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const MARK: u16 = 8;
const ID: u16 = 12;
const MASTER: u16 = 14;
const ZONE: u16 = 18;
const MARK_MASK: u16 = 21;
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
const V4: [u16; 2] = [1, 2];
const V6: [u16; 2] = [3, 4];

/// One direction of a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Tuple {
    /// Who sends.
    pub from: IpAddr,
    /// Who is sent to.
    pub to: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// The port it is sent from, for protocols that have ports.
    pub from_port: Option<u16>,
    /// The port it is sent to.
    pub to_port: Option<u16>,
    /// The type and code of ICMP.
    pub icmp: Option<(u8, u8)>,
}

/// A connection that the kernel follows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Followed {
    /// As it began.
    pub original: Tuple,
    /// As answers come.
    pub reply: Tuple,
    /// The connection that it belongs to, when it is one that another one
    /// spoke of.
    pub master: Option<Tuple>,
    /// Its mark.
    pub mark: u32,
    family: u8,
    /// What names it to the kernel.
    name: Vec<u8>,
}

impl Followed {
    /// The addresses at its ends, all that it has, translated or not.
    pub fn ends(&self) -> impl Iterator<Item = IpAddr> {
        let (one, other) = (self.original, self.reply);
        [one.from, one.to, other.from, other.to].into_iter()
    }
}

/// The kernel's connections.
#[derive(Debug)]
pub struct Connections(Kernel);

impl Connections {
    /// Those of the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel has no netfilter.
    pub fn open() -> io::Result<Self> {
        Kernel::open().map(Self)
    }

    /// All of which `wanted` holds.
    ///
    /// # Errors
    /// The kernel follows none, or does not let us.
    pub fn all(&self, wanted: impl FnMut(&Followed) -> bool) -> io::Result<Vec<Followed>> {
        self.dump(&[], wanted)
    }

    /// All that have every bit of `mask` in their mark, and of which `wanted`
    /// holds. The kernel leaves out the others.
    ///
    /// # Errors
    /// As [`Self::all`].
    pub fn marked(
        &self,
        mask: u32,
        wanted: impl FnMut(&Followed) -> bool,
    ) -> io::Result<Vec<Followed>> {
        self.dump(&marks(mask, mask)?, wanted)
    }

    fn dump(
        &self,
        filter: &[u8],
        mut wanted: impl FnMut(&Followed) -> bool,
    ) -> io::Result<Vec<Followed>> {
        let until = Instant::now() + ALL_WITHIN;
        // Of every family.
        let body = [&[0; FAMILY_HEAD][..], filter].concat();
        self.0.ask(GET, REQUEST | DUMP, &body)?;
        let mut all = Vec::new();
        self.0.read(until, |kind, body| {
            if kind == NEW {
                all.extend(read(body).filter(&mut wanted));
            }
            Next::Go
        })?;
        Ok(all)
    }

    /// Sets the bits of `mask` in a connection's mark as they are in `mark`;
    /// false when it has ended meanwhile.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn mark(&self, one: &Followed, mark: u32, mask: u32) -> io::Result<bool> {
        self.tell(NEW, one, &marks(mark, mask)?)
    }

    /// Forgets a connection; false when it has ended meanwhile.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn forget(&self, one: &Followed) -> io::Result<bool> {
        self.tell(DELETE, one, &[])
    }

    fn tell(&self, kind: u16, one: &Followed, more: &[u8]) -> io::Result<bool> {
        let until = Instant::now() + ALL_WITHIN;
        let body = [&[one.family, 0, 0, 0][..], &one.name, more].concat();
        self.0.ask(kind, REQUEST | ACKNOWLEDGE, &body)?;
        match self.0.read(until, |_, _| Next::Go) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Forgets all connections from or to these addresses; how many there were.
///
/// # Errors
/// The kernel follows none, or does not let us.
pub fn forget(addresses: &[IpAddr]) -> io::Result<usize> {
    if addresses.is_empty() {
        return Ok(0);
    }
    let kernel = Connections::open()?;
    let all = kernel.all(|one| one.ends().any(|end| addresses.contains(&end)))?;
    let mut count = 0;
    for one in all {
        count += usize::from(kernel.forget(&one)?);
    }
    Ok(count)
}

fn marks(mark: u32, mask: u32) -> io::Result<Vec<u8>> {
    let mark = attribute(MARK, &mark.to_be_bytes())?;
    Ok([mark, attribute(MARK_MASK, &mask.to_be_bytes())?].concat())
}

/// A connection, as the kernel describes it.
fn read(body: &[u8]) -> Option<Followed> {
    let (head, body) = body.split_at_checked(FAMILY_HEAD)?;
    let mut name = Vec::new();
    let (mut original, mut reply, mut master, mut mark) = (None, None, None, 0);
    for (kind, value, whole) in Attributes(body) {
        match kind {
            ORIGINAL => original = tuple(value),
            REPLY => reply = tuple(value),
            MASTER => master = tuple(value),
            MARK => mark = u32::from_be_bytes(*value.first_chunk()?),
            _ => {}
        }
        if matches!(kind, ORIGINAL | ID | ZONE) {
            name.extend_from_slice(whole);
            name.resize(name.len().next_multiple_of(4), 0);
        }
    }
    Some(Followed {
        original: original?,
        reply: reply?,
        master,
        mark,
        family: head[0],
        name,
    })
}

/// One direction of a connection.
fn tuple(value: &[u8]) -> Option<Tuple> {
    let (mut from, mut to, mut protocol) = (None, None, None);
    let (mut from_port, mut to_port, mut icmp_kind, mut icmp_code) = (None, None, None, None);
    let port = |value: &[u8]| value.first_chunk().map(|port| u16::from_be_bytes(*port));
    for (kind, value, _) in Attributes(value) {
        match kind {
            ADDRESSES => {
                for (kind, value, _) in Attributes(value) {
                    let address = if V4.contains(&kind) {
                        IpAddr::from(<[u8; 4]>::try_from(value).ok()?)
                    } else if V6.contains(&kind) {
                        IpAddr::from(<[u8; 16]>::try_from(value).ok()?)
                    } else {
                        continue;
                    };
                    let is_from = kind == V4[0] || kind == V6[0];
                    *(if is_from { &mut from } else { &mut to }) = Some(address);
                }
            }
            PROTOCOL => {
                for (kind, value, _) in Attributes(value) {
                    match kind {
                        1 => protocol = value.first().copied(),
                        2 => from_port = port(value),
                        3 => to_port = port(value),
                        5 | 8 => icmp_kind = value.first().copied(),
                        6 | 9 => icmp_code = value.first().copied(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Tuple {
        from: from?,
        to: to?,
        protocol: protocol?,
        from_port,
        to_port,
        icmp: icmp_kind.zip(icmp_code),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(kind: u16, value: &[u8]) -> Vec<u8> {
        attribute(kind, value).expect("short")
    }

    fn direction(kind: u16, from: IpAddr, to: IpAddr, ports: [u16; 2]) -> Vec<u8> {
        let end = |at: usize, address: IpAddr| match address {
            IpAddr::V4(v4) => part(V4[at], &v4.octets()),
            IpAddr::V6(v6) => part(V6[at], &v6.octets()),
        };
        let both = [end(0, from), end(1, to)].concat();
        let ports = [
            part(1, &[6]),
            part(2, &ports[0].to_be_bytes()),
            part(3, &ports[1].to_be_bytes()),
        ];
        let inner = [
            part(ADDRESSES | 0x8000, &both),
            part(PROTOCOL | 0x8000, &ports.concat()),
        ];
        part(kind | 0x8000, &inner.concat())
    }

    #[test]
    fn a_connection_is_read_with_its_name_and_mark() {
        let at = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (one, other, third) = (at("10.0.0.1"), at("10.0.0.2"), at("fd00::3"));
        let message = |original: Vec<u8>, reply: Vec<u8>| {
            let mark = part(MARK, &0x8000_0001_u32.to_be_bytes());
            let rest = [part(7, &[0; 3]), part(ZONE, &[0, 9]), mark].concat();
            [vec![2, 0, 0, 0], original, reply, rest].concat()
        };
        let original = direction(ORIGINAL, one, other, [4000, 80]);
        let plain = message(original.clone(), direction(REPLY, other, one, [80, 4000]));
        let found = read(&plain).expect("it is one");
        assert_eq!((found.family, found.mark), (2, 0x8000_0001));
        assert_eq!(found.name, [original.clone(), part(ZONE, &[0, 9])].concat());
        let wanted = Tuple {
            from: one,
            to: other,
            protocol: 6,
            from_port: Some(4000),
            to_port: Some(80),
            icmp: None,
        };
        assert_eq!(found.original, wanted);
        // One that only answers are sent to: its address was translated.
        let masked = message(original, direction(REPLY, other, third, [80, 4000]));
        let found = read(&masked).expect("it is one");
        assert!(found.ends().any(|end| end == third));
        // Cut off anywhere, it is none, or one; never more.
        for end in 0..plain.len() {
            let _ = read(&plain[..end]);
        }
        // A length of 0 is no end of anything.
        assert!(read(&[2, 0, 0, 0, 0, 0, 1, 0]).is_none());
    }
}
