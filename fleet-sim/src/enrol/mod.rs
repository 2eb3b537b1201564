//! A whole fleet enrols: invites, keys and credentials, several nodes at a
//! time, each with the exchange that a real agent makes.

mod invites;

pub use invites::invite;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_agent::enroll::{EnrollError, check_trust};
use muster_agent::http::{BaseUrl, HttpError, UrlError, Verify};
use muster_agent::identity::{AnswerError, NodeKeys, open_answer};
use muster_agent::pace::jitter;
use muster_client::{Client, ClientError, Endpoint};
use muster_protocol::api::{InviteToken, Secret, TokenError};
use muster_protocol::keys::{KeyList, Purpose};
use muster_protocol::names::{NodeName, RoleName};
use muster_protocol::problem::Kind;
use muster_protocol::wire::{CredentialsAnswer, EnrollRequest, proof_text};
use tokio::task::JoinSet;
use tracing::{debug, info};

use crate::node::Member;
use crate::pattern::LabelPattern;
use crate::store::{Common, Store, StoreError, member};

/// Nodes that enrol at once.
const AT_ONCE: u32 = 32;
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
    let jobs = invites::jobs(&plan, &members).await?;
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
    use muster_protocol::problem::Problem;

    #[tokio::test]
    async fn a_broker_that_is_asked_too_much_is_asked_again_and_a_no_is_a_no() {
        let mut answers = vec![Err(Kind::Denied), Ok(7), Err(Kind::RateLimited)];
        let mut ask = || {
            let answer = answers.pop().expect("not asked so often");
            let problem = |kind| ClientError::Problem(Box::new(Problem::new(kind, "no")));
            std::future::ready(answer.map_err(problem))
        };
        assert_eq!(patiently(&mut ask).await.ok(), Some(7));
        let denied = patiently(&mut ask).await.expect_err("denied");
        assert_eq!(denied.kind(), Some(Kind::Denied));
    }
}
