//! Connections that the hypervisor's kernel follows (conntrack), where it does:
//! those of a machine that has gone are forgotten, so that whoever gets its
//! address next begins with none of them.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

/// How long the kernel may take for one answer, and all of it together.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const ALL_WITHIN: Duration = Duration::from_secs(20);
/// What one answer has at most.
const BUFFER: usize = 64 << 10;

// The numbers of the kernel's interface: linux/netlink.h,
// linux/netfilter/nfnetlink_conntrack.h.
const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const HEAD: usize = 16;
const FAMILY_HEAD: usize = 4;
const KIND: u16 = 0x3fff;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const ADDRESSES: u16 = 1;
const V4: [u16; 2] = [1, 2];
const V6: [u16; 2] = [3, 4];

/// One connection: its family, and what names it to the kernel.
struct Followed {
    family: u8,
    name: Vec<u8>,
}

/// Forgets all connections from or to these addresses; how many there were.
///
/// # Errors
/// The kernel follows none, or does not let us.
pub(super) fn forget(addresses: &[IpAddr]) -> io::Result<usize> {
    if addresses.is_empty() {
        return Ok(0);
    }
    let until = Instant::now() + ALL_WITHIN;
    let kernel = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )?;
    connect(&kernel, &SocketAddrNetlink::new(0, 0))?;
    set_socket_timeout(&kernel, Timeout::Recv, Some(ANSWER_WITHIN))?;
    let all = followed(&kernel, addresses, until)?;
    let mut count = 0;
    for one in all {
        let body = [&[one.family, 0, 0, 0][..], &one.name].concat();
        ask(&kernel, DELETE, REQUEST | ACKNOWLEDGE, &body)?;
        match answers(&kernel, until, |_, _| ()) {
            Ok(()) => count += 1,
            // It ended meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(count)
}

/// Those from or to these addresses.
fn followed(kernel: &OwnedFd, addresses: &[IpAddr], until: Instant) -> io::Result<Vec<Followed>> {
    // Of every family.
    ask(kernel, GET, REQUEST | DUMP, &[0; FAMILY_HEAD])?;
    let mut all = Vec::new();
    answers(kernel, until, |kind, body| {
        if kind == NEW {
            all.extend(named(body, addresses));
        }
    })?;
    Ok(all)
}

/// A connection, when it is one of these addresses'.
fn named(body: &[u8], addresses: &[IpAddr]) -> Option<Followed> {
    let (head, body) = body.split_at_checked(FAMILY_HEAD)?;
    let mut name = Vec::new();
    let mut is_one = false;
    for (kind, value, whole) in Attributes(body) {
        if matches!(kind, ORIGINAL | REPLY) {
            is_one |= ends(value).any(|end| addresses.contains(&end));
        }
        if matches!(kind, ORIGINAL | ID | ZONE) {
            name.extend_from_slice(whole);
            name.resize(name.len().next_multiple_of(4), 0);
        }
    }
    is_one.then(|| Followed {
        family: head[0],
        name,
    })
}

/// The addresses in one direction of a connection.
fn ends(tuple: &[u8]) -> impl Iterator<Item = IpAddr> {
    let inner = Attributes(tuple).filter(|(kind, ..)| *kind == ADDRESSES);
    inner
        .flat_map(|(_, value, _)| Attributes(value))
        .filter_map(|(kind, value, _)| {
            if V4.contains(&kind) {
                Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?))
            } else if V6.contains(&kind) {
                Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?))
            } else {
                None
            }
        })
}

/// What stands in a message: kind, value, and both as they stand there.
struct Attributes<'a>(&'a [u8]);

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

fn ask(kernel: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEAD + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // A number that is repeated in the answer, and whom it is for.
    message.extend([0; 8]);
    message.extend(body);
    send(kernel, &message, SendFlags::empty())?;
    Ok(())
}

/// Shows the parts of an answer, to its end.
fn answers(kernel: &OwnedFd, until: Instant, mut see: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let strange = || io::Error::other("the kernel's answer cannot be read");
    let mut buffer = vec![0; BUFFER];
    loop {
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (_, length) = recv(kernel, buffer.as_mut_slice(), RecvFlags::empty())?;
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
                kind => see(kind, body),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut all = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        all.extend(value);
        all.resize(all.len().next_multiple_of(4), 0);
        all
    }

    fn tuple(kind: u16, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let end = |at: usize, address: IpAddr| match address {
            IpAddr::V4(v4) => attribute(V4[at], &v4.octets()),
            IpAddr::V6(v6) => attribute(V6[at], &v6.octets()),
        };
        let both = [end(0, from), end(1, to)].concat();
        attribute(kind | 0x8000, &attribute(ADDRESSES | 0x8000, &both))
    }

    #[test]
    fn a_connection_is_an_addresss_whichever_end_it_is() {
        let at = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (one, other, third) = (at("10.0.0.1"), at("10.0.0.2"), at("fd00::3"));
        let message = |original: Vec<u8>, reply: Vec<u8>| {
            let rest = [attribute(7, &[0; 3]), attribute(ZONE, &[0, 9])].concat();
            [vec![2, 0, 0, 0], original, reply, rest].concat()
        };
        let plain = message(tuple(ORIGINAL, one, other), tuple(REPLY, other, one));
        for wanted in [one, other] {
            let found = named(&plain, &[third, wanted]).expect("it is one");
            assert_eq!(found.family, 2);
            let name = [tuple(ORIGINAL, one, other), attribute(ZONE, &[0, 9])].concat();
            assert_eq!(found.name, name);
        }
        assert!(named(&plain, &[third]).is_none());
        assert!(named(&plain, &[]).is_none());
        // One that only answers are sent to: its address was translated.
        let masked = message(tuple(ORIGINAL, one, other), tuple(REPLY, other, third));
        assert!(named(&masked, &[third]).is_some());
        // Cut off anywhere, it is none, or one; never more.
        for end in 0..plain.len() {
            let _ = named(&plain[..end], &[one]);
        }
        // A length of 0 is no end of anything.
        assert!(named(&[2, 0, 0, 0, 0, 0, 1, 0], &[one]).is_none());
    }
}
