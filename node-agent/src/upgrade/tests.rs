use super::*;

#[test]
fn the_new_one_has_a_part_of_the_time() {
    let secs = Duration::from_secs;
    assert_eq!(confirm_within(secs(300)), secs(60));
    assert_eq!(confirm_within(secs(40)), secs(10));
    assert_eq!(confirm_within(secs(1)), secs(3));
}

fn upgrade_to(bytes: &[u8], version: &str) -> Upgrade {
    use muster_protocol::release::{Release, ReleaseId};
    Upgrade {
        release: ReleaseId::of(bytes),
        size: bytes.len() as u64,
        about: Release {
            version: version.parse().expect("a version"),
            ..release::about().clone()
        },
        allow_downgrade: false,
    }
}

#[tokio::test]
async fn bytes_that_the_broker_did_not_sign_are_not_taken() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("new");
    // This very test holds the agent's marker: a release like any other.
    let own = std::fs::read(program::own_path().expect("known")).expect("read");
    let good = upgrade_to(&own, env!("CARGO_PKG_VERSION"));
    std::fs::write(&file, &own).expect("written");
    work::verify(&file, &good).await.expect("signed");
    let mut other = own.clone();
    *other.last_mut().expect("not empty") ^= 1;
    std::fs::write(&file, &other).expect("written");
    let error = work::verify(&file, &good).await.expect_err("another");
    assert!(error.contains("not the release that was signed"), "{error}");
    // The hash is right, and what was said of it is not.
    std::fs::write(&file, &own).expect("written");
    let lie = upgrade_to(&own, "0.98.0");
    let error = work::verify(&file, &lie).await.expect_err("a lie");
    assert!(error.contains("not what the request says"), "{error}");
    let none = upgrade_to(b"hello", "0.98.0");
    std::fs::write(&file, b"hello").expect("written");
    let error = work::verify(&file, &none).await.expect_err("no agent");
    assert!(error.contains("no release marker"), "{error}");
}

#[test]
fn what_makes_no_sense_here_is_declined() {
    let mut other = upgrade_to(b"x", "0.98.0");
    assert_eq!(fits(&other), Ok(()));
    other.about.build.arch = "pdp11".into();
    assert!(matches!(fits(&other), Err(Unfit::Platform { .. })));
    let mut other = upgrade_to(b"x", "0.98.0");
    other.about.build.journal = 0;
    assert!(matches!(
        fits(&other),
        Err(Unfit::State {
            what: "a journal",
            ..
        })
    ));
    let mut older = upgrade_to(b"x", "0.0.1");
    assert!(matches!(fits(&older), Err(Unfit::Downgrade { .. })));
    older.allow_downgrade = true;
    assert_eq!(fits(&older), Ok(()));
}
