//! Packets as bytes.

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};
use muster_firewall::groups::judge::{Content, Packet, Payload, RawMac};

use crate::world::sign;

/// A packet as a frame between these two, with its number in it. `flags` are
/// those of TCP where it does not open a connection.
pub(crate) fn frame(
    packet: &Packet,
    source: RawMac,
    target: RawMac,
    number: u64,
    flags: u8,
) -> Vec<u8> {
    let mut out = Vec::new();
    let id = u16::try_from(number % 65_536).expect("16 bits");
    match &packet.content {
        Content::Ip {
            source: from,
            target: to,
            hops,
            payload,
        } => {
            out = ip(
                source,
                target,
                *from,
                *to,
                *hops,
                payload,
                id,
                flags,
                &sign(number),
            )
        }
        Content::Arp {
            operation,
            sender_mac,
            sender,
            target: asked,
        } => {
            head(&mut out, source, target, 0x0806);
            out.extend([0, 1, 8, 0, 6, 4]);
            out.extend(operation.to_be_bytes());
            out.extend(sender_mac.unwrap_or(source));
            out.extend(sender.octets());
            out.extend([0; 6]);
            out.extend(asked.octets());
            out.extend(sign(number));
        }
        Content::Rarp {
            sender_mac,
            target_mac,
        } => {
            head(&mut out, source, target, 0x8035);
            out.extend([0, 1, 8, 0, 6, 4, 0, 3]);
            out.extend(sender_mac);
            out.extend([0; 4]);
            out.extend(target_mac);
            out.extend([0; 4]);
            out.extend(sign(number));
        }
        Content::Other(kind) => {
            head(&mut out, source, target, *kind);
            out.extend([0x42; 40]);
            out.extend(sign(number));
        }
    }
    if packet.tagged {
        out.splice(12..12, [0x81, 0, 0, 5]);
    }
    if out.len() < 60 {
        out.resize(60, 0);
    }
    out
}

pub(crate) fn head(out: &mut Vec<u8>, source: RawMac, target: RawMac, kind: u16) {
    out.extend(target);
    out.extend(source);
    out.extend(kind.to_be_bytes());
}

#[allow(clippy::too_many_arguments)]
fn ip(
    source: RawMac,
    target: RawMac,
    from: IpAddr,
    to: IpAddr,
    hops: u8,
    payload: &Payload,
    id: u16,
    flags: u8,
    data: &[u8],
) -> Vec<u8> {
    let mut out = Vec::new();
    let build = PacketBuilder::ethernet2(source, target);
    let protocol = IpNumber(payload.protocol());
    if let Payload::Other(_) = payload {
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let length = u16::try_from(data.len()).expect("short");
                let header = Ipv4Header::new(length, hops, protocol, from.octets(), to.octets());
                let header = etherparse::IpHeaders::Ipv4(
                    header.expect("a header"),
                    etherparse::Ipv4Extensions::default(),
                );
                build.ip(header).write(&mut out, protocol, data)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: etherparse::Ipv6FlowLabel::ZERO,
                    payload_length: u16::try_from(data.len()).expect("short"),
                    next_header: protocol,
                    hop_limit: hops,
                    source: from.octets(),
                    destination: to.octets(),
                };
                let header =
                    etherparse::IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default());
                build.ip(header).write(&mut out, protocol, data)
            }
            _ => panic!("one family"),
        }
        .expect("a packet");
        return out;
    }
    let step = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => build.ipv4(from.octets(), to.octets(), hops),
        (IpAddr::V6(from), IpAddr::V6(to)) => build.ipv6(from.octets(), to.octets(), hops),
        _ => panic!("one family"),
    };
    let [high, low] = id.to_be_bytes();
    match payload {
        Payload::Tcp {
            source,
            target,
            opens,
        } => {
            let mut header = etherparse::TcpHeader::new(*source, *target, 1_000, 64_000);
            let flags = if *opens { 0x02 } else { flags };
            header.fin = flags & 0x01 != 0;
            header.syn = flags & 0x02 != 0;
            header.rst = flags & 0x04 != 0;
            header.ack = flags & 0x10 != 0;
            step.tcp_header(header).write(&mut out, data)
        }
        Payload::Udp { source, target } => step.udp(*source, *target).write(&mut out, data),
        Payload::Icmp { kind, code } => {
            let step = step.icmpv4_raw(*kind, *code, [high, low, 0, 1]);
            step.write(&mut out, data)
        }
        Payload::Icmpv6 { kind, code, about } => {
            let rest = match about {
                Some(_) => [0; 4],
                None => [high, low, 0, 1],
            };
            let mut behind = about.map(|a| a.octets().to_vec()).unwrap_or_default();
            behind.extend(data);
            step.icmpv6_raw(*kind, *code, rest).write(&mut out, &behind)
        }
        Payload::Other(_) => return out,
    }
    .expect("a packet");
    out
}
