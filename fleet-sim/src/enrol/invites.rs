//! Invites for a fleet, in as few requests as there can be.

use std::collections::{BTreeMap, HashSet, VecDeque};

use muster_client::{Client, Endpoint};
use muster_protocol::api::{InviteRequest, InviteToken};
use muster_protocol::names::NodeName;
use muster_protocol::units::Span;
use tokio::task::JoinSet;

use super::{AT_ONCE, EnrolError, Job, Plan, Source, patiently};
use crate::node::Member;
use crate::pattern::LabelPattern;

/// Most invites that are asked for at once.
const INVITES_AT_ONCE: usize = 500;
/// How long an invite of a simulated node lives.
const INVITE_LIFE: Span = Span::from_secs(3600);

/// Invites for those that have no identity yet.
pub(super) async fn jobs(plan: &Plan, known: &[Member]) -> Result<Vec<Job>, EnrolError> {
    let missing: Vec<(u32, &NodeName)> = match &plan.source {
        Source::Given(invites) => {
            let nodes = plan.names.len().saturating_sub(known.len());
            if nodes > invites.len() {
                let invites = invites.len();
                return Err(EnrolError::TooFew { invites, nodes });
            }
            let jobs = invites.iter().take(nodes).enumerate();
            return Ok(jobs
                .map(|(number, invite)| Job {
                    name: format!("the node of invite {}", number + 1),
                    invite: invite.clone(),
                })
                .collect());
        }
        Source::Api(_) => {
            let held: HashSet<&NodeName> = known.iter().map(|m| &m.assignment.name).collect();
            (0..)
                .zip(&plan.names)
                .filter(|(_, name)| !held.contains(name))
                .collect()
        }
    };
    let Source::Api(token) = &plan.source else {
        return Ok(Vec::new());
    };
    let mut endpoint = Endpoint::new(&plan.url)?.token(token.clone());
    if let Some(ca) = &plan.ca {
        endpoint = endpoint.ca_pem(ca.clone());
    }
    let client = Client::new(endpoint)?;
    let mut asks = JoinSet::new();
    let mut jobs = Vec::with_capacity(missing.len());
    for (name, names, labels) in requests(plan, &missing) {
        while asks.len() >= AT_ONCE as usize {
            collect(&mut asks, &mut jobs).await?;
        }
        let request = InviteRequest {
            name: name.clone(),
            count: None,
            roles: plan.roles.clone(),
            labels,
            infrastructure: false,
            expires: Some(INVITE_LIFE),
        };
        let client = client.clone();
        asks.spawn(async move {
            let answer = patiently(|| client.invite(&request)).await;
            let answer = answer.map_err(|source| EnrolError::Invite {
                name: name.clone(),
                source,
            })?;
            let mut tokens: BTreeMap<NodeName, String> = answer
                .invites
                .into_iter()
                .map(|i| (i.name, i.token))
                .collect();
            let jobs = names.into_iter().map(|name| {
                let text = tokens.remove(&name);
                let invite = text.and_then(|text| text.parse().ok());
                let invite = invite.ok_or(EnrolError::NoInvite(name.clone()))?;
                let name = name.to_string();
                Ok(Job { name, invite })
            });
            jobs.collect::<Result<Vec<Job>, EnrolError>>()
        });
    }
    while !asks.is_empty() {
        collect(&mut asks, &mut jobs).await?;
    }
    Ok(jobs)
}

/// Invites of all nodes of a plan, in its order.
///
/// # Errors
/// [`EnrolError`].
pub async fn invite(plan: &Plan) -> Result<Vec<InviteToken>, EnrolError> {
    let mut made: BTreeMap<String, InviteToken> = jobs(plan, &[])
        .await?
        .into_iter()
        .map(|job| (job.name, job.invite))
        .collect();
    let each = plan.names.iter().map(|name| {
        let invite = made.remove(name.as_str());
        invite.ok_or_else(|| EnrolError::NoInvite(name.clone()))
    });
    each.collect()
}

async fn collect(
    asks: &mut JoinSet<Result<Vec<Job>, EnrolError>>,
    jobs: &mut Vec<Job>,
) -> Result<(), EnrolError> {
    match asks.join_next().await {
        Some(Ok(more)) => jobs.extend(more?),
        Some(Err(e)) => return Err(EnrolError::Task(e.to_string())),
        None => {}
    }
    Ok(())
}

type Labels = BTreeMap<muster_protocol::names::LabelKey, muster_protocol::names::LabelValue>;

/// As few requests for invites as there can be: names with one row of numbers
/// and equal labels go together.
fn requests(plan: &Plan, missing: &[(u32, &NodeName)]) -> Vec<(String, Vec<NodeName>, Labels)> {
    let equal = plan.labels.iter().all(LabelPattern::is_constant);
    let mut all: Vec<(String, Vec<NodeName>, Labels)> = Vec::new();
    let mut rest: VecDeque<_> = missing.iter().copied().collect();
    while let Some((number, name)) = rest.pop_front() {
        let labels = plan.labels.iter();
        let labels: Labels = labels.map(|l| (l.key.clone(), l.value(number))).collect();
        let mut names = vec![name.clone()];
        while equal && names.len() < INVITES_AT_ONCE {
            let next = names.last().and_then(|last| successor(last.as_str()));
            match rest.front() {
                Some((_, name)) if Some(name.as_str()) == next.as_deref() => {
                    names.push((*name).clone());
                    rest.pop_front();
                }
                _ => break,
            }
        }
        let text = match names.as_slice() {
            [first, .., last] => range(first.as_str(), last.as_str()),
            _ => name.to_string(),
        };
        all.push((text, names, labels));
    }
    all
}

/// Where the last row of digits of a name is.
fn digits(name: &str) -> (usize, usize) {
    let end = name
        .rfind(|c: char| c.is_ascii_digit())
        .map_or(0, |i| i + 1);
    let begin = name[..end].bytes().rev().take_while(u8::is_ascii_digit);
    (end - begin.count(), end)
}

/// The name with the next number, as wide.
fn successor(name: &str) -> Option<String> {
    let (begin, end) = digits(name);
    let number: u64 = name[begin..end].parse().ok()?;
    let width = end - begin;
    let next = number.checked_add(1)?;
    Some(format!("{}{next:0width$}{}", &name[..begin], &name[end..]))
}

/// `sim-{0001..0500}`, from the first and the last.
fn range(first: &str, last: &str) -> String {
    let (begin, end) = digits(first);
    let (last_begin, last_end) = digits(last);
    format!(
        "{}{{{}..{}}}{}",
        &first[..begin],
        &first[begin..end],
        &last[last_begin..last_end],
        &first[end..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(labels: &[&str], names: &str) -> Plan {
        let pattern: crate::pattern::Pattern = names.parse().expect("a pattern");
        Plan {
            url: "http://127.0.0.1:1".into(),
            ca: None,
            source: Source::Given(Vec::new()),
            names: pattern.names().expect("names"),
            roles: Vec::new(),
            labels: labels.iter().map(|l| l.parse().expect("a label")).collect(),
        }
    }

    fn asked(plan: &Plan, without: &[usize]) -> Vec<(String, usize)> {
        let missing: Vec<(u32, &NodeName)> = (0..)
            .zip(&plan.names)
            .filter(|(n, _)| !without.contains(&(*n as usize)))
            .collect();
        requests(plan, &missing)
            .into_iter()
            .map(|(text, names, _)| (text, names.len()))
            .collect()
    }

    #[test]
    fn invites_are_asked_for_in_rows() {
        let equal = plan(&["zone=gva2"], "sim-{0001..1200}.x");
        assert_eq!(
            asked(&equal, &[3]),
            [
                ("sim-{0001..0003}.x".to_owned(), 3),
                ("sim-{0005..0504}.x".to_owned(), 500),
                ("sim-{0505..1004}.x".to_owned(), 500),
                ("sim-{1005..1200}.x".to_owned(), 196),
            ]
        );
        let different = plan(&["rack=r{1..2}"], "sim-{1..3}");
        assert_eq!(
            asked(&different, &[]),
            [("sim-1", 1), ("sim-2", 1), ("sim-3", 1)].map(|(t, n)| (t.to_owned(), n))
        );
        assert_eq!(asked(&plan(&[], "one"), &[]), [("one".to_owned(), 1)]);
        assert_eq!(successor("h9"), Some("h10".into()));
        assert_eq!(successor("none"), None);
    }
}
