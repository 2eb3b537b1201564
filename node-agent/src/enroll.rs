//! Enrolment: from an invite to an identity that the cluster knows.
//!
//! The invite carries the fingerprint of the cluster's root key, so nothing
//! else has to be trusted beforehand: the root key signs the certificate
//! authority that the rest of the talk is checked with, and the list of
//! broker keys that the answer must be signed with.

use std::time::Duration;

use muster_protocol::api::{InviteToken, Secret};
use muster_protocol::keys::{KeyError, KeyList, KeyListError, Purpose};
use muster_protocol::problem::Kind;
use muster_protocol::wire::{Authority, CredentialsAnswer, EnrollRequest, Trust, proof_text};

use crate::http::{BaseUrl, Client, HttpError, UrlError, Verify, awake_first};
use crate::identity::{AnswerError, Enrolled, Enrolment, NodeKeys, open_answer};
use crate::pace::Backoff;
use crate::state::{StateDir, StateError};

/// How often a broker that does not answer is asked.
const TRIES: u32 = 3;

/// What a person gave.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// The brokers of the cluster, in the order to try.
    pub urls: Vec<String>,
    /// The invite.
    pub token: Secret,
    /// A certificate authority for the broker's HTTPS, PEM, in place of the
    /// cluster's own.
    pub ca: Option<String>,
    /// Enrol although this state belongs to a node already.
    pub again: bool,
}

/// Why this machine is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// `--url`.
    #[error("`{url}` is not a broker's address: {why}")]
    Url {
        /// As given.
        url: String,
        /// Why not.
        why: UrlError,
    },
    /// `--token`.
    #[error("this is not an invite; make one with: muster node invite --name NAME")]
    Token,
    /// It belongs to a cluster already.
    #[error(
        "{dir} is enrolled already, as {name} (serial {serial}); to give this machine a new identity say --again, for a second agent say another --state"
    )]
    Already {
        /// The state directory.
        dir: String,
        /// The node's name.
        name: String,
        /// Its serial.
        serial: u32,
    },
    /// The broker's root key is another one.
    #[error(
        "the broker at {url} belongs to another cluster: its root key is {theirs}, the invite names {ours}; check the URL, and do not go on if it is right"
    )]
    Fingerprint {
        /// Where.
        url: String,
        /// In the invite.
        ours: String,
        /// What the broker showed.
        theirs: String,
    },
    /// What the broker showed as signed by the root key is not.
    #[error(
        "the broker at {url} shows {what} that its root key did not sign ({why}); do not trust it"
    )]
    Trust {
        /// Where.
        url: String,
        /// What.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// The answer is not believed.
    #[error("the answer of {url} is refused: {why}")]
    Answer {
        /// Where.
        url: String,
        /// Why.
        why: AnswerError,
    },
    /// The broker says no to the invite.
    #[error(
        "the invite is refused: {0}; invites work once and for a limited time: make a new one with: muster node invite --name NAME"
    )]
    Refused(HttpError),
    /// The broker cannot be asked.
    #[error(transparent)]
    Http(HttpError),
    /// The result cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
}

impl EnrollError {
    /// Exit code of the command line.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Url { .. } | Self::Token | Self::Already { .. } => 2,
            Self::Fingerprint { .. }
            | Self::Trust { .. }
            | Self::Answer { .. }
            | Self::Refused(_) => 4,
            Self::Http(HttpError::Problem(problem)) => problem.kind.exit_code(),
            Self::Http(_) => 5,
            Self::State(_) => 1,
        }
    }
}

/// Makes the keys, presents the invite, checks the answer, stores it.
///
/// # Errors
/// [`EnrollError`]. Keys that were made stay for the next try, so that an
/// answer lost on the way does not leave a second node behind.
pub async fn enroll(dir: &StateDir, invitation: &Invitation) -> Result<Enrolled, EnrollError> {
    let mut urls = Vec::new();
    for text in &invitation.urls {
        let url = BaseUrl::parse(text.trim()).map_err(|why| EnrollError::Url {
            url: text.clone(),
            why,
        })?;
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    let texts: Vec<String> = urls.iter().map(ToString::to_string).collect();
    let ca = invitation.ca.as_deref();
    let order = awake_first(&texts, |url| unproven(url, ca)).await;
    urls.sort_by_key(|url| order.iter().position(|text| *text == url.to_string()));
    let token: InviteToken = invitation
        .token
        .expose()
        .trim()
        .parse()
        .map_err(|_| EnrollError::Token)?;
    let old = Enrolled::load(dir)?;
    if let Some(old) = &old
        && !invitation.again
    {
        return Err(EnrollError::Already {
            dir: dir.dir().display().to_string(),
            name: old.assignment().name.to_string(),
            serial: old.serial().0,
        });
    }
    let mut last = EnrollError::Url {
        url: String::new(),
        why: UrlError::Syntax("there is none".into()),
    };
    for url in &urls {
        match enroll_at(dir, url, invitation, &token, old.as_ref()).await {
            Ok(mut stored) => {
                let others = urls.iter().filter(|other| *other != url);
                stored.others = others.map(ToString::to_string).collect();
                let enrolled = Enrolled::new(stored).map_err(|e| EnrollError::Answer {
                    url: url.to_string(),
                    why: e.into(),
                })?;
                enrolled.save(dir)?;
                return Ok(enrolled);
            }
            // It is not there, or stands by: another one may serve.
            Err(error @ EnrollError::Http(_)) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// The same at one broker; nothing but keys is stored.
async fn enroll_at(
    dir: &StateDir,
    url: &BaseUrl,
    invitation: &Invitation,
    token: &InviteToken,
    old: Option<&Enrolled>,
) -> Result<Enrolment, EnrollError> {
    let (trust, ca) = trust(url, token, invitation.ca.as_deref()).await?;
    // The file goes with the rest: with a second broker it is aside already.
    if let Some(old) = old
        && Enrolled::load(dir)?.is_some()
    {
        let stamp = muster_protocol::units::Timestamp::now().as_second();
        dir.set_aside(&format!("{}-{stamp}", old.serial()))?;
    }
    let keys = match NodeKeys::load(dir)? {
        Some(keys) => keys,
        None => {
            let keys = NodeKeys::generate();
            keys.save(dir)?;
            keys
        }
    };
    let verify = verification(url, ca.as_deref());
    let answer = present(url, &verify, &trust, token, &keys).await?;
    let refuse = |why| EnrollError::Answer {
        url: url.to_string(),
        why,
    };
    let list = KeyList::open(&answer.keys, &trust.root).map_err(|e| refuse(e.into()))?;
    let (_, credentials) = open_answer(list, &answer, &keys.identity.public()).map_err(refuse)?;
    Ok(Enrolment {
        url: url.to_string(),
        others: Vec::new(),
        root: trust.root,
        keys: answer.keys,
        ca,
        credentials,
    })
}

/// How the broker's HTTPS is checked once its authority is known.
#[must_use]
pub fn verification(url: &BaseUrl, ca: Option<&str>) -> Verify {
    match ca {
        Some(pem) if url.is_tls() => Verify::Authority(pem.to_owned()),
        _ => Verify::System,
    }
}

/// The same as long as it is not known, unless the operator named one.
fn unproven(url: &BaseUrl, ca: Option<&str>) -> Verify {
    match ca {
        Some(pem) => verification(url, Some(pem)),
        None if url.is_tls() => Verify::Nothing,
        None => Verify::System,
    }
}

/// Asks a broker who it is, and holds that against the invite. The one
/// exchange whose TLS is not verified: what comes back proves itself.
async fn trust(
    url: &BaseUrl,
    token: &InviteToken,
    ca: Option<&str>,
) -> Result<(Trust, Option<String>), EnrollError> {
    let client = Client::new(url, &unproven(url, ca)).map_err(EnrollError::Http)?;
    let trust = patiently(|| client.trust())
        .await
        .map_err(EnrollError::Http)?;
    let authority = check_trust(url, &trust, token)?;
    let ca = match ca {
        Some(pem) => Some(pem.to_owned()),
        None => authority.certificate,
    };
    Ok((trust, ca))
}

/// Whether what a broker shows of its cluster is what the invite names; the
/// cluster's certificate authority if so.
///
/// # Errors
/// [`EnrollError::Fingerprint`], [`EnrollError::Trust`].
pub fn check_trust(
    url: &BaseUrl,
    trust: &Trust,
    token: &InviteToken,
) -> Result<Authority, EnrollError> {
    if trust.root.fingerprint() != token.root {
        return Err(EnrollError::Fingerprint {
            url: url.to_string(),
            ours: token.root.to_string(),
            theirs: trust.root.fingerprint().to_string(),
        });
    }
    let unsigned = |what, why: &dyn std::fmt::Display| EnrollError::Trust {
        url: url.to_string(),
        what,
        why: why.to_string(),
    };
    let list = KeyList::open(&trust.keys, &trust.root)
        .map_err(|e: KeyListError| unsigned("a list of broker keys", &e))?;
    let authority: Authority = trust
        .authority
        .open(&trust.root, Purpose::Authority)
        .map_err(|e: KeyError| unsigned("a certificate authority", &e))?;
    if authority.cluster != list.cluster {
        return Err(unsigned(
            "a certificate authority",
            &"it is for another cluster",
        ));
    }
    Ok(authority)
}

async fn present(
    url: &BaseUrl,
    verify: &Verify,
    trust: &Trust,
    token: &InviteToken,
    keys: &NodeKeys,
) -> Result<CredentialsAnswer, EnrollError> {
    let client = Client::new(url, verify).map_err(EnrollError::Http)?;
    let nats_key = keys.nats.public_key();
    let attempt = || async {
        let challenge = client.challenge().await?.challenge;
        let proof = keys.identity.sign(
            Purpose::NodeProof,
            &proof_text(&trust.root, &challenge, &nats_key),
        );
        let request = EnrollRequest {
            token: token.text().expose().to_owned(),
            node_key: keys.identity.public(),
            nats_key: nats_key.clone(),
            challenge,
            proof,
        };
        client.enroll(&request).await
    };
    patiently(attempt).await.map_err(|e| match &e {
        HttpError::Problem(problem) => match problem.kind {
            Kind::Unauthenticated
            | Kind::Denied
            | Kind::NotFound
            | Kind::Conflict
            | Kind::PlanGone => EnrollError::Refused(e),
            _ => EnrollError::Http(e),
        },
        _ => EnrollError::Http(e),
    })
}

/// A few tries at what may work in a moment.
async fn patiently<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, HttpError>
where
    F: Future<Output = Result<T, HttpError>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(4));
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match attempt().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let soon = match &error {
            HttpError::Unreachable { .. } => true,
            HttpError::Problem(p) => matches!(p.kind, Kind::Unavailable | Kind::RateLimited),
            HttpError::Strange { .. } | HttpError::Certificate(_) => false,
        };
        if !soon || tries == TRIES {
            return Err(error);
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}
