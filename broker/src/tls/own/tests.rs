use muster_protocol::ids::ClusterId;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;
use crate::state_dir::{StateDir, write_atomic};

/// A pair for that name, which ends after so many days.
fn pair(name: &str, days: i64) -> (String, String) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let now = Timestamp::now();
    let day = |offset: i64| {
        let at = Timestamp::from_second(now.as_second() + offset * 86_400).unwrap();
        let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(
            date.year().into(),
            date.month().try_into().unwrap(),
            date.day().try_into().unwrap(),
        )
    };
    params.not_before = day(-400);
    params.not_after = day(days);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

struct Files {
    dir: TempDir,
    ca: Ca,
}

impl Files {
    fn new() -> Self {
        crate::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        let ca = Ca::open(&state, ClusterId::random()).unwrap();
        Self { dir, ca }
    }

    fn put(&self, cert: &str, key: &str) {
        write_atomic(&self.cert(), cert.as_bytes(), 0o644).unwrap();
        write_atomic(&self.key(), key.as_bytes(), 0o600).unwrap();
    }

    fn cert(&self) -> PathBuf {
        self.dir.path().join("a.pem")
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("a.key")
    }

    fn open(&self) -> Result<OwnCertificate, TlsError> {
        let listen = "127.0.0.1:0".parse().unwrap();
        OwnCertificate::open(&self.cert(), &self.key(), &self.ca, listen, &[])
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_a_reason() {
    let files = Files::new();
    let said = |files: &Files| files.open().unwrap_err().to_string();
    assert!(said(&files).contains("a.pem"), "{}", said(&files));
    let (cert, key) = pair("m.example", 90);
    files.put("", &key);
    assert!(said(&files).contains("no certificate"), "{}", said(&files));
    files.put(&cert, "nothing");
    assert!(said(&files).contains("no private key"), "{}", said(&files));
    files.put(&cert, &pair("m.example", 90).1);
    assert!(said(&files).contains("not the key"), "{}", said(&files));
    let (old, old_key) = pair("m.example", -2);
    files.put(&old, &old_key);
    assert!(said(&files).contains("has ended"), "{}", said(&files));
    files.put(&cert, &key);
    std::fs::set_permissions(files.key(), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(said(&files).contains("chmod"), "{}", said(&files));
    files.put(&cert, &key);
    assert!(files.open().is_ok());
}

#[tokio::test]
async fn a_new_pair_is_taken_and_a_bad_one_keeps_the_old() {
    let files = Files::new();
    let (cert, key) = pair("m.example", 90);
    files.put(&cert, &key);
    let own = files.open().unwrap();
    let cancel = CancellationToken::new();
    let following = tokio::spawn(own.clone().follow(cancel.clone()));
    let mut noted = own.0.noted.subscribe();
    let first = own.ends();
    // The look at the files begins with those that are there.
    tokio::time::sleep(Duration::from_millis(100)).await;

    let (newer, newer_key) = pair("m.example", 200);
    files.put(&newer, &key);
    let seen = tokio::time::timeout(
        Duration::from_secs(60),
        noted.wait_for(|n| n.problem.is_some()),
    );
    seen.await.unwrap().unwrap();
    assert_eq!(own.ends(), first);
    assert_eq!(own.findings(Timestamp::now()).len(), 1);

    files.put(&newer, &newer_key);
    let seen = tokio::time::timeout(Duration::from_secs(60), noted.wait_for(|n| n.taken == 1));
    assert_eq!(seen.await.unwrap().unwrap().problem, None);
    assert!(own.ends() > first);
    assert!(own.findings(Timestamp::now()).is_empty());
    cancel.cancel();
    following.await.unwrap();
}

#[test]
fn the_end_is_told_in_time_and_once() {
    let files = Files::new();
    let (cert, key) = pair("m.example", 40);
    files.put(&cert, &key);
    let own = files.open().unwrap();
    let at =
        |days: i64| Timestamp::from_second(own.ends().as_second() - days * 86_400 - 60).unwrap();
    let mut told = Vec::new();
    for days in (-3..40).rev() {
        for _ in 0..3 {
            told.extend(own.ends_soon(at(days)).map(|_| days));
        }
    }
    assert_eq!(told, [29, 13, 6, 2, 0, -1]);
    assert_eq!(own.findings(at(20)).len(), 0);
    assert_eq!(own.findings(at(5)).len(), 1);
}

#[test]
fn names_are_matched_as_certificates_are() {
    let names = ["m.example".to_owned(), "*.w.example".to_owned()];
    for (asked, yes) in [
        ("m.example", true),
        ("M.EXAMPLE.", true),
        ("a.w.example", true),
        ("a.b.w.example", false),
        ("w.example", false),
        (".w.example", false),
        ("x.example", false),
    ] {
        assert_eq!(is_for(&names, asked), yes, "{asked}");
    }
}
