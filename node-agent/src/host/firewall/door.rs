//! The ways between this node and the cluster, tried anew: by connections that
//! did not exist before the firewall changed.

use std::time::Duration;

use async_nats::ServerAddr;
use futures_util::future::select_ok;
use muster_protocol::firewall::{
    AddressesRequest, ConfirmRequest, Confirmation, ProbeWish, RoleAddresses,
};
use muster_protocol::ids::RequestId;
use muster_protocol::keys::{Purpose, Signature};
use muster_protocol::names::RoleName;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::wire::proof_text;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::enroll::verification;
use crate::http::{BaseUrl, Client, HttpError, awake_first};
use crate::identity::Identity;
use crate::pace::Backoff;

/// How long one try takes at most.
const TRY: Duration = Duration::from_secs(15);
/// How long a NATS server has to say who it is, each time.
const NATS_WITHIN: Duration = Duration::from_secs(2);
/// How long before the end the last try has to be over, so that it is said
/// what it came to.
const LAST: Duration = Duration::from_millis(1_500);
/// How long the addresses of roles are asked for.
const ADDRESSES_WITHIN: Duration = Duration::from_secs(30);
/// Most bytes of what a NATS server says first.
const MAX_INFO: usize = 64 * 1024;

/// Why the broker was not reached, or said no.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The broker.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A broker's address that is none.
    #[error("`{0}` is no broker's address")]
    Url(String),
    /// Nobody is known.
    #[error("this node knows no broker")]
    Nobody,
}

/// What the cluster says of a change.
enum Said {
    /// As reachable as it has to be.
    Well,
    /// Not so; perhaps a moment later.
    NotYet(String),
    /// Not so, and asking again is of no use.
    Never(String),
}

/// The ways to the cluster.
#[derive(Clone)]
pub struct Door {
    identity: Identity,
    brokers: Vec<String>,
    nats: Vec<String>,
}

impl Door {
    /// By these brokers and NATS servers, or those that the node has heard of
    /// where there are none.
    #[must_use]
    pub fn new(identity: Identity, brokers: Vec<String>, nats: Vec<String>) -> Self {
        Self {
            identity,
            brokers,
            nats,
        }
    }

    /// The brokers, in the order to ask.
    async fn urls(&self) -> Vec<String> {
        let enrolled = self.identity.now();
        let own = enrolled.stored.brokers();
        let urls = if self.brokers.is_empty() {
            &own
        } else {
            &self.brokers
        };
        let ca = enrolled.stored.ca.as_deref();
        awake_first(urls, |base| verification(base, ca)).await
    }

    /// A client that has no connection yet.
    fn client(&self, url: &str) -> Result<Client, DoorError> {
        let enrolled = self.identity.now();
        let base = BaseUrl::parse(url).map_err(|_| DoorError::Url(printable(url, 100)))?;
        let verify = verification(&base, enrolled.stored.ca.as_deref());
        Ok(Client::new(&base, &verify)?)
    }

    /// A challenge, and the proof for it.
    async fn proof(&self, client: &Client) -> Result<(String, Signature), DoorError> {
        let challenge = client.challenge().await?.challenge;
        let (enrolled, keys) = (self.identity.now(), self.identity.keys());
        let text = proof_text(&enrolled.stored.root, &challenge, &keys.nats.public_key());
        let proof = keys.identity.sign(Purpose::NodeProof, &text);
        Ok((challenge, proof))
    }

    /// The addresses that the operators gave to nodes with these roles.
    ///
    /// # Errors
    /// [`DoorError`]: no broker answers, or it says no.
    pub async fn addresses(
        &self,
        request: RequestId,
        roles: &[RoleName],
    ) -> Result<RoleAddresses, DoorError> {
        let until = Instant::now() + ADDRESSES_WITHIN;
        let mut backoff = Backoff::new(Duration::from_millis(300), Duration::from_secs(5));
        let mut last = DoorError::Nobody;
        loop {
            for url in &self.urls().await {
                match self.addresses_from(url, request, roles).await {
                    Ok(addresses) => return Ok(addresses),
                    Err(error) => last = error,
                }
            }
            let wait = backoff.wait();
            let said_no = matches!(&last, DoorError::Http(error) if error.is_final());
            if said_no || Instant::now() + wait > until {
                return Err(last);
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn addresses_from(
        &self,
        url: &str,
        request: RequestId,
        roles: &[RoleName],
    ) -> Result<RoleAddresses, DoorError> {
        let client = self.client(url)?;
        let (challenge, proof) = self.proof(&client).await?;
        let asks = AddressesRequest {
            serial: self.identity.now().serial(),
            challenge,
            proof,
            request,
            roles: roles.to_vec(),
        };
        Ok(client.firewall_addresses(&asks).await?)
    }

    /// Whether the node can be reached as it has to be, by connections made
    /// from now on: to NATS, to a broker, and from those who probe. It is tried
    /// again and again until then.
    ///
    /// # Errors
    /// What did not work last, for people.
    pub async fn confirm(
        &self,
        request: RequestId,
        probes: &[ProbeWish],
        until: Instant,
    ) -> Result<(), String> {
        let until = until.checked_sub(LAST).unwrap_or(until);
        let mut backoff = Backoff::new(Duration::from_millis(300), Duration::from_secs(3));
        let mut last = "no broker was asked".to_owned();
        loop {
            let end = until.min(Instant::now() + TRY);
            match timeout_at(end, self.try_once(request, probes, end)).await {
                Ok(Said::Well) => return Ok(()),
                Ok(Said::Never(why)) => return Err(why),
                Ok(Said::NotYet(why)) => last = why,
                // What was said before tells more.
                Err(_) if last != "no broker was asked" => {}
                Err(_) => "the broker did not answer".clone_into(&mut last),
            }
            let wait = backoff.wait();
            if Instant::now() + wait >= until {
                return Err(last);
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn try_once(&self, request: RequestId, probes: &[ProbeWish], end: Instant) -> Said {
        // Orders come by NATS: without it the broker's word is of no use.
        if let Err(why) = self.nats_answers().await {
            return Said::NotYet(why);
        }
        let mut last = Said::NotYet(DoorError::Nobody.to_string());
        for url in &self.urls().await {
            match self.confirmed_by(url, request, probes, end).await {
                Ok(said) if said.failed.is_empty() => return Said::Well,
                Ok(said) => last = Said::NotYet(printable(&said.failed.join("; "), 400)),
                Err(error) => {
                    let text = printable(&error.to_string(), 300);
                    let said_no = matches!(&error, DoorError::Http(error) if error.is_final());
                    last = if said_no {
                        Said::Never(text)
                    } else {
                        Said::NotYet(text)
                    };
                }
            }
        }
        last
    }

    async fn confirmed_by(
        &self,
        url: &str,
        request: RequestId,
        probes: &[ProbeWish],
        end: Instant,
    ) -> Result<Confirmation, DoorError> {
        let client = self.client(url)?;
        let (challenge, proof) = self.proof(&client).await?;
        let left = end.saturating_duration_since(Instant::now());
        let asks = ConfirmRequest {
            serial: self.identity.now().serial(),
            challenge,
            proof,
            request,
            probes: probes.to_vec(),
            within: Span::from_millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        };
        Ok(client.confirm_firewall(&asks).await?)
    }

    /// Whether a NATS server says who it is, over a new connection.
    async fn nats_answers(&self) -> Result<(), String> {
        let enrolled = self.identity.now();
        let credentials = &enrolled.stored.credentials;
        let urls = if self.nats.is_empty() {
            &credentials.nats_urls
        } else {
            &self.nats
        };
        // All at once: one that is silent must not use up the others' time.
        let ca = credentials.nats_ca.as_deref();
        let tries = urls.iter().map(|url| {
            Box::pin(async move {
                let why = match timeout(NATS_WITHIN, server_answers(url, ca)).await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(why)) => why,
                    Err(_) => "no answer".to_owned(),
                };
                Err(format!(
                    "NATS at {} is not reached: {why}",
                    printable(url, 80)
                ))
            })
        });
        if urls.is_empty() {
            return Err("no address of NATS is known".to_owned());
        }
        select_ok(tries).await.map(|_| ())
    }
}

/// Connects to a NATS server as far as it says anything, with TLS where it has
/// a certificate by that authority.
async fn server_answers(url: &str, ca: Option<&str>) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| printable(&error.to_string(), 200);
    let address: ServerAddr = url.parse().map_err(|e| text(&e))?;
    let to = (address.host(), address.port());
    let mut stream = TcpStream::connect(to).await.map_err(|e| text(&e))?;
    let mut info = Vec::new();
    while !info.ends_with(b"\n") {
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(0) => return Err("it hangs up".to_owned()),
            Ok(bytes) => info.extend_from_slice(&piece[..bytes]),
            Err(error) => return Err(text(&error)),
        }
        if info.len() > MAX_INFO {
            return Err("it does not talk like NATS".to_owned());
        }
    }
    if !info.starts_with(b"INFO ") {
        return Err("it does not talk like NATS".to_owned());
    }
    let Some(ca) = ca else {
        return Ok(());
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.map_err(|e| text(&e))?;
        roots.add(certificate).map_err(|e| text(&e))?;
    }
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(address.host().trim_matches(['[', ']']).to_owned());
    let name = name.map_err(|e| text(&e))?;
    let connector = TlsConnector::from(std::sync::Arc::new(config));
    let mut stream = connector
        .connect(name, stream)
        .await
        .map_err(|e| text(&e))?;
    let _ = stream.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn only_what_talks_like_nats_counts() {
        for (says, well) in [
            ("INFO {}\r\n", true),
            ("HTTP/1.1 400 Bad Request\r\n", false),
            ("", false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("nats://{}", listener.local_addr().unwrap());
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(says.as_bytes()).await.unwrap();
            });
            assert_eq!(server_answers(&url, None).await.is_ok(), well, "{says}");
            server.await.unwrap();
            assert!(server_answers(&url, None).await.is_err(), "nobody listens");
        }
    }
}
