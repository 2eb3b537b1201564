//! A whole fleet enrols: invites, keys and credentials, several nodes at a
//! time, each with the exchange that a real agent makes.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_agent::enroll::{EnrollError, check_trust};
use muster_agent::http::{BaseUrl, HttpError, UrlError, Verify};
use muster_agent::identity::{AnswerError, NodeKeys, open_answer};
use muster_agent::pace::jitter;
use muster_client::{Client, ClientError, Endpoint};
use muster_protocol::api::{InviteRequest, InviteToken, Secret, TokenError};
use muster_protocol::keys::{KeyList, Purpose};
use muster_protocol::names::{NodeName, RoleName};
use muster_protocol::problem::Kind;
use muster_protocol::units::Span;
use muster_protocol::wire::{CredentialsAnswer, EnrollRequest, proof_text};
use tokio::task::JoinSet;
use tracing::{debug, info};

use crate::node::Member;
use crate::pattern::LabelPattern;
use crate::store::{Common, Store, StoreError, member};

/// Nodes that enrol at once.
const AT_ONCE: u32 = 32;
/// Most invites that are asked for at once.
const INVITES_AT_ONCE: usize = 500;
/// How long an invite of a simulated node lives.
const INVITE_LIFE: Span = Span::from_secs(3600);
/// How long one node tries before its enrolment has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// Why the fleet is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// `--url`.
    #[error("`{url}` is not a broker's address: {why}")]
    Url {
        /// As given.
        url: String,
        /// Why not.
        why: UrlError,
    },
    /// The broker, asked with the operator's token.
    #[error("no invite for {name}: {source}{}", hint(.source))]
    Invite {
        /// For which node.
        name: String,
        /// Why not.
        source: ClientError,
    },
    /// Another answer than asked for.
    #[error("the broker made no invite for {0}")]
    NoInvite(NodeName),
    /// The broker, asked by a node.
    #[error("{name} is not enrolled: {source}{}", hint(.source))]
    Refused {
        /// Which node.
        name: String,
        /// Why not.
        source: ClientError,
    },
    /// A client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What the broker shows of the cluster.
    #[error(transparent)]
    Trust(#[from] EnrollError),
    /// It cannot be asked for it.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// An invite that is none.
    #[error("invite {line}: {source}")]
    Token {
        /// Which one, from 1.
        line: usize,
        /// Why not.
        source: TokenError,
    },
    /// Fewer invites than nodes.
    #[error("there are {invites} invites for {nodes} nodes that have no identity yet")]
    TooFew {
        /// How many invites.
        invites: usize,
        /// How many nodes.
        nodes: usize,
    },
    /// An answer that is not believed.
    #[error("the broker's answer for {name} is refused: {why}")]
    Answer {
        /// For which node.
        name: String,
        /// Why.
        why: AnswerError,
    },
    /// An identity cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate authority's file.
    #[error("cannot read the certificate authority {path}: {source}")]
    CaFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A task of this program failed.
    #[error("an enrolment was given up: {0}")]
    Task(String),
}

fn hint(error: &ClientError) -> String {
    match (error.kind(), error.hint()) {
        (Some(Kind::Conflict), _) => {
            "; keep identities between starts with --state, or choose other names".to_owned()
        }
        (_, Some(hint)) => format!("; {hint}"),
        _ => String::new(),
    }
}

impl EnrolError {
    /// Exit code of the command line.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Url { .. } | Self::Token { .. } | Self::TooFew { .. } | Self::CaFile { .. } => 2,
            Self::Invite { source, .. } | Self::Refused { source, .. } | Self::Client(source) => {
                source.exit_code()
            }
            Self::Trust(e) => e.exit_code(),
            Self::Answer { .. } => 4,
            Self::NoInvite(_) | Self::Http(_) => 5,
            Self::Store(_) | Self::Task(_) => 1,
        }
    }
}

/// Where invites come from.
#[derive(Debug)]
pub enum Source {
    /// Made by the broker, with this API token.
    Api(Secret),
    /// Given.
    Given(Vec<InviteToken>),
}

/// What is to be enrolled.
#[derive(Debug)]
pub struct Plan {
    /// The broker.
    pub url: String,
    /// A certificate authority for its HTTPS, PEM, in place of the cluster's.
    pub ca: Option<String>,
    /// Where invites come from.
    pub source: Source,
    /// The names of all nodes.
    pub names: Vec<NodeName>,
    /// Their roles.
    pub roles: Vec<RoleName>,
    /// Their labels.
    pub labels: Vec<LabelPattern>,
}

/// A node that is to enrol.
struct Job {
    name: String,
    invite: InviteToken,
}

/// Clients of the broker, each from an address of its own where that can be:
/// simulated machines must not share one machine's allowance.
#[derive(Clone, Debug)]
pub struct Clients {
    clients: Vec<Client>,
}

impl Clients {
    /// Some clients of this broker.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn new(url: &str, ca: Option<&str>) -> Result<Self, ClientError> {
        let mut clients = Vec::new();
        let local = url.starts_with("http://127.");
        for number in 0..AT_ONCE {
            let mut endpoint = Endpoint::new(url)?;
            if let Some(ca) = ca {
                endpoint = endpoint.ca_pem(ca);
            }
            if local {
                // 127.83.0.1 and so on: all of 127.0.0.0/8 is this machine.
                let address = u32::from(Ipv4Addr::new(127, 83, 0, 1)) + number;
                endpoint = endpoint.from_address(IpAddr::V4(address.into()));
            }
            clients.push(Client::new(endpoint)?);
        }
        Ok(Self { clients })
    }

    /// The client for that node.
    #[must_use]
    pub fn of(&self, number: u32) -> &Client {
        &self.clients[number as usize % self.clients.len()]
    }
}

/// Enrols those nodes of the plan that `known` does not hold. All members are
/// there when it returns, in the order of the plan.
///
/// # Errors
/// [`EnrolError`]; nodes enrolled before are in the store.
pub async fn enrol(
    plan: Plan,
    known: Vec<Member>,
    common: Option<Common>,
    store: &Store,
) -> Result<(Vec<Member>, Option<Common>), EnrolError> {
    let base = BaseUrl::parse(&plan.url).map_err(|why| EnrolError::Url {
        url: plan.url.clone(),
        why,
    })?;
    let total = plan.names.len();
    let mut members: Vec<Member> = known;
    members.truncate(total);
    let jobs = jobs(&plan, &members).await?;
    let Some(first) = jobs.first() else {
        return Ok((members, common));
    };
    let first_look = match &plan.ca {
        Some(pem) if base.is_tls() => Verify::Authority(pem.clone()),
        _ if base.is_tls() => Verify::Nothing,
        _ => Verify::System,
    };
    // Unverified at most for what proves itself: see `check_trust`.
    let shown = muster_agent::http::Client::new(&base, &first_look)?;
    let trust = shown.trust().await?;
    let authority = check_trust(&base, &trust, &first.invite)?;
    let ca = plan.ca.clone().or(authority.certificate);
    let common = Common {
        root: trust.root,
        ca: ca.clone(),
        nats_urls: Vec::new(),
        nats_ca: None,
    };
    let clients = Clients::new(&plan.url, ca.as_deref())?;
    info!(nodes = jobs.len(), "enrolling");
    let fresh = work(jobs, clients, common, store).await?;
    let (mut fresh, common) = fresh;
    members.append(&mut fresh);
    members.sort_by_key(|m| m.serial);
    Ok((members, common))
}

/// Invites for those that have no identity yet.
async fn jobs(plan: &Plan, known: &[Member]) -> Result<Vec<Job>, EnrolError> {
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
            let held: std::collections::HashSet<&NodeName> =
                known.iter().map(|m| &m.assignment.name).collect();
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

async fn work(
    jobs: Vec<Job>,
    clients: Clients,
    common: Common,
    store: &Store,
) -> Result<(Vec<Member>, Option<Common>), EnrolError> {
    let queue = Arc::new(Mutex::new(VecDeque::from(jobs)));
    let mut workers = JoinSet::new();
    for number in 0..AT_ONCE {
        let (queue, common, store) = (queue.clone(), common.clone(), store.clone());
        let client = clients.of(number).clone();
        workers.spawn(async move {
            let mut done = Vec::new();
            let mut common = common;
            loop {
                let job = {
                    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                    queue.pop_front()
                };
                let Some(job) = job else {
                    return Ok::<_, EnrolError>((done, common));
                };
                done.push(one(&job, &client, &mut common, &store).await?);
            }
        });
    }
    let (mut members, mut learnt) = (Vec::new(), None);
    while let Some(ended) = workers.join_next().await {
        let (done, common) = ended.map_err(|e| EnrolError::Task(e.to_string()))??;
        if !done.is_empty() {
            learnt = Some(common);
        }
        members.extend(done);
    }
    Ok((members, learnt))
}

/// One node, as an agent does it.
async fn one(
    job: &Job,
    client: &Client,
    common: &mut Common,
    store: &Store,
) -> Result<Member, EnrolError> {
    // The same keys for each try, so that an answer lost on the way does not
    // leave a second node behind.
    let keys = NodeKeys::generate();
    let nats_key = keys.nats.public_key();
    let answer: CredentialsAnswer = patiently(|| async {
        let challenge = client.challenge().await?.challenge;
        let text = proof_text(&common.root, &challenge, &nats_key);
        let request = EnrollRequest {
            token: job.invite.text().expose().to_owned(),
            node_key: keys.identity.public(),
            nats_key: nats_key.clone(),
            challenge,
            proof: keys.identity.sign(Purpose::NodeProof, &text),
        };
        client.enroll(&request).await
    })
    .await
    .map_err(|source| EnrolError::Refused {
        name: job.name.clone(),
        source,
    })?;
    let refuse = |why: AnswerError| EnrolError::Answer {
        name: job.name.clone(),
        why,
    };
    let list = KeyList::open(&answer.keys, &common.root).map_err(|e| refuse(e.into()))?;
    let (list, credentials) =
        open_answer(list, &answer, &keys.identity.public()).map_err(refuse)?;
    common.nats_urls.clone_from(&credentials.nats_urls);
    common.nats_ca.clone_from(&credentials.nats_ca);
    let member = member(keys, list, credentials.clone());
    store.add(&member, common, &answer.keys, &credentials)?;
    Ok(member)
}

/// Tries again what may work in a moment; a broker that is asked too much
/// says to come back in a second.
pub async fn patiently<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let begun = Instant::now();
    loop {
        let error = match attempt().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        // A challenge that was lost to others is asked for anew.
        if !error.is_passing() || begun.elapsed() > PATIENCE {
            return Err(error);
        }
        debug!("trying again: {error}");
        tokio::time::sleep(jitter(Duration::from_secs(2))).await;
    }
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
