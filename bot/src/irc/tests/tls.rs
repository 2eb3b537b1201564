use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::*;

/// An authority, and a certificate for irc.example of it.
struct Made {
    authority: CertificateDer<'static>,
    cert: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn made() -> Made {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["irc.example".to_owned()]).unwrap();
    let cert = cert.signed_by(&key, &ca).unwrap();
    Made {
        authority: ca.der().clone(),
        cert: cert.der().clone(),
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

impl Made {
    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        roots
    }

    fn pin(&self) -> Pin {
        Pin(Sha256::digest(&self.cert).into())
    }
}

/// What becomes of a connection to a server with that certificate: the first
/// line that the server read, or why there was none.
async fn connects(made: &Made, tls: TlsSettings) -> Result<String, String> {
    let config =
        ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.clone()], made.key.clone_key())
            .unwrap();
    let server = Server::start().await;
    let mut settings = server.settings();
    settings.timing.pause_least = PATIENCE;
    settings.timing.pause_most = PATIENCE;
    settings.tls = Some(tls);
    let mut bot = Bot::start(settings);
    let (stream, _) = timeout(PATIENCE, server.listener.accept())
        .await
        .unwrap()
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    match timeout(PATIENCE, acceptor.accept(stream)).await.unwrap() {
        Err(_) => Err(bot.gone().await),
        Ok(mut stream) => {
            let mut bytes = [0; 10];
            if timeout(PATIENCE, stream.read_exact(&mut bytes))
                .await
                .unwrap()
                .is_err()
            {
                return Err(bot.gone().await);
            }
            stream.write_all(b"ERROR :enough\r\n").await.unwrap();
            drop(stream);
            assert!(bot.gone().await.contains("enough"));
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }
}

#[tokio::test]
async fn only_the_right_certificate_is_spoken_to() {
    let made = made();
    let other = self::made();
    let settings = |name: &str, roots: Option<&Made>, pin: Option<Pin>| TlsSettings {
        server_name: ServerName::try_from(name.to_owned()).unwrap(),
        roots: roots.map(Made::roots),
        pin,
        identity: None,
    };
    let said = Ok("CAP LS 302".to_owned());
    for good in [
        settings("irc.example", Some(&made), None),
        settings("irc.example", Some(&made), Some(made.pin())),
        settings("127.0.0.1", None, Some(made.pin())),
    ] {
        assert_eq!(connects(&made, good).await, said);
    }
    // To the authorities that this machine knows, if it knows any.
    let nobodys = settings("irc.example", None, None);
    connects(&made, nobodys).await.expect_err("nobody knows it");
    let mut all = Vec::new();
    for (what, bad) in [
        (
            "another authority",
            settings("irc.example", Some(&other), None),
        ),
        ("another name", settings("other.example", Some(&made), None)),
        (
            "another pin",
            settings("irc.example", Some(&made), Some(other.pin())),
        ),
        (
            "another pin alone",
            settings("irc.example", None, Some(other.pin())),
        ),
        (
            "the pin and another name",
            settings("other.example", Some(&made), Some(made.pin())),
        ),
        (
            "the pin and another authority",
            settings("irc.example", Some(&other), Some(made.pin())),
        ),
    ] {
        let why = connects(&made, bad).await.expect_err(what);
        let why = why.replace(&made.pin().to_string(), "PIN");
        let why = why.split_once("127.0.0.1:").map_or(why.clone(), |(a, b)| {
            format!(
                "{a}HOST{}",
                b.trim_start_matches(|c: char| c.is_ascii_digit())
            )
        });
        all.push(format!("{what}\n    {why}"));
    }
    insta::assert_snapshot!(all.join("\n"));
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_told_nothing() {
    let server = Server::start().await;
    let mut settings = server.settings();
    settings.tls = Some(TlsSettings {
        server_name: ServerName::try_from("irc.example").unwrap(),
        roots: Some(made().roots()),
        pin: None,
        identity: None,
    });
    let mut bot = Bot::start(settings);
    let mut peer = server.accept().await;
    peer.say(":s NOTICE * :*** Looking up your hostname\r\n")
        .await;
    let why = bot.gone().await;
    assert!(why.contains("`tls = false`"), "{why}");
}
