//! `muster match`

use clap::Args;
use muster_protocol::api::MatchRequest;
use muster_protocol::names::NodeName;

use crate::Context;
use crate::failure::Failure;

/// Arguments of `muster match`.
#[derive(Args, Debug)]
pub struct MatchArgs {
    /// The predicate, such as 'role=web and zone=gva2'
    #[arg(value_name = "PREDICATE")]
    pub predicate: String,
    /// Show which clause decided for this node
    #[arg(long, value_name = "NODE")]
    pub explain: Option<NodeName>,
    /// Names that no node has are meant
    #[arg(long)]
    pub allow_unknown: bool,
    /// One JSON array of names, sorted (with --explain: an object)
    #[arg(long)]
    pub json: bool,
}

/// Lists the names of the nodes that match.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: &MatchArgs) -> Result<u8, Failure> {
    let request = MatchRequest {
        predicate: args.predicate.clone(),
        allow_unknown: args.allow_unknown,
        explain: args.explain.clone(),
    };
    let mut answer = context.client()?.matching(&request).await?;
    answer.nodes.sort();
    let term = &context.term;
    if let Some(why) = &answer.explanation {
        if args.json {
            term.json(why)?;
        } else {
            let verdict = if why.matches {
                "matches"
            } else {
                "does not match"
            };
            // The first line of the text says the same, in other words.
            term.line(&format!("{} {verdict} {}", why.node, answer.predicate))?;
            for line in why.text.lines().skip(1) {
                term.line(&muster_protocol::text::printable_line(line))?;
            }
        }
        return Ok(if why.matches { 0 } else { 3 });
    }
    if args.json {
        term.json(&answer.nodes)?;
    } else {
        let mut text = String::new();
        for name in &answer.nodes {
            text.push_str(name.as_str());
            text.push('\n');
        }
        term.say(&text)?;
        if term.err_tty {
            let n = answer.nodes.len();
            let verb = if n == 1 { "matches" } else { "match" };
            term.note(&term.err.dim(&format!(
                "{} {verb} {}",
                crate::ui::count(n, "node"),
                answer.predicate
            )));
        }
        if let Some(text) = infrastructure(answer.left_out) {
            term.note(&text);
        }
    }
    Ok(if answer.nodes.is_empty() { 3 } else { 0 })
}

/// That `muster run` takes fewer nodes than these.
fn infrastructure(machines: u32) -> Option<String> {
    let (are, them) = match machines {
        0 => return None,
        1 => ("is", "it"),
        _ => ("are", "them"),
    };
    Some(format!(
        "{machines} of these {are} the broker's own: `muster run` leaves {them} out \
         (--include-infrastructure)"
    ))
}

#[cfg(test)]
mod tests {
    use super::infrastructure;

    #[test]
    fn it_is_said_when_a_run_takes_fewer() {
        assert_eq!(infrastructure(0), None);
        insta::assert_snapshot!(
            [1, 3].map(|n| infrastructure(n).unwrap_or_default()).join("\n"),
            @r"
        1 of these is the broker's own: `muster run` leaves it out (--include-infrastructure)
        3 of these are the broker's own: `muster run` leaves them out (--include-infrastructure)
        "
        );
    }
}
