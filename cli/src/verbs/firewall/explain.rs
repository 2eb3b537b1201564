//! `muster firewall explain`

use clap::Args;
use muster_protocol::api::{Decided, PacketExplained};
use muster_protocol::text::printable_line;

use crate::Context;
use crate::failure::{Failure, NOT_ALL};

/// Arguments of `muster firewall explain`.
#[derive(Args, Debug)]
#[command(after_help = "\
It is judged by the groups that are asked for now, wherever the machines are. The exit code is 0 when
the packet passes, and 1 when it does not.

Examples:
  muster firewall explain --from 198.51.100.7 --to web-03:443 --proto tcp
  muster firewall explain --from web-03 --to 192.0.2.53:53 --proto udp
  muster firewall explain --from [2001:db8::7]:9000 --to [2001:db8::9]:80 --proto tcp
  muster firewall explain --from 198.51.100.7 --to web-03 --proto 'icmp 8'")]
pub struct ExplainArgs {
    /// From whom: an address, with a port or without, or a machine
    #[arg(long, value_name = "IP[:PORT]|VM")]
    pub from: String,
    /// To whom: a machine or an address, with the port
    #[arg(long, value_name = "VM:PORT|IP:PORT")]
    pub to: String,
    /// What: tcp, udp, icmp TYPE, icmpv6 TYPE, proto NUMBER
    #[arg(long, value_name = "PROTO")]
    pub proto: String,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(context: &Context, args: &ExplainArgs) -> Result<u8, Failure> {
    let ends = (args.from.as_str(), args.to.as_str());
    let answer = context.client()?.explain_packet(ends, &args.proto).await?;
    if args.json {
        context.term.json(&answer)?;
    } else {
        context.term.say(&shown(&answer))?;
    }
    Ok(if answer.passes { 0 } else { NOT_ALL })
}

fn shown(answer: &PacketExplained) -> String {
    let verdict = if answer.passes {
        "passes"
    } else {
        "does not pass"
    };
    let mut out = format!(
        "{} from {} to {} {verdict}\n",
        answer.traffic, answer.source, answer.target
    );
    let mut end = |way: &str, decided: &Decided| {
        let line = format!("  {way} {}: {}", decided.machine, decided.why);
        out.push_str(&printable_line(&line));
        out.push('\n');
    };
    if let Some(decided) = &answer.egress {
        end("out of", decided);
    }
    if let Some(decided) = &answer.ingress {
        end("into  ", decided);
    }
    if answer.egress.is_none() && answer.ingress.is_none() {
        out.push_str(&format!("  {}\n", printable_line(&answer.why)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_ends_are_said() {
        let answer = |json| serde_json::from_value(json).expect("an answer");
        insta::assert_snapshot!(shown(&answer(json!({
            "passes": true, "source": "192.0.2.2", "target": "192.0.2.1", "traffic": "tcp 443",
            "egress": {"machine": "lb-01", "passes": true, "why": "no group of the interface has egress rules, so all may go out"},
            "ingress": {"machine": "web-03", "passes": true, "group": "web", "rule": 3, "why": "rule 3 of web"},
            "why": "rule 3 of web",
        }))), @"
        tcp 443 from 192.0.2.2 to 192.0.2.1 passes
          out of lb-01: no group of the interface has egress rules, so all may go out
          into   web-03: rule 3 of web
        ");
        insta::assert_snapshot!(shown(&answer(json!({
            "passes": true, "source": "192.0.2.77", "target": "192.0.2.78", "traffic": "udp 53",
            "why": "it concerns no interface of a machine here",
        }))), @"
        udp 53 from 192.0.2.77 to 192.0.2.78 passes
          it concerns no interface of a machine here
        ");
    }
}
