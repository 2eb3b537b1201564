use super::*;
use crate::nats::keys::NatsKeys;
use crate::nats::permissions::node_permissions;
use proptest::prelude::*;

fn pair(kind: KeyPairType, fill: u8) -> KeyPair {
    KeyPair::new_from_raw(kind, [fill; 32]).unwrap()
}

fn payload(jwt: &str) -> String {
    let part = jwt.split('.').nth(1).unwrap();
    let mut value: serde_json::Value =
        serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap();
    value.sort_all_objects();
    serde_json::to_string_pretty(&value).unwrap()
}

#[test]
fn base32_is_that_of_rfc_4648() {
    for (plain, coded) in [
        ("", ""),
        ("f", "MY"),
        ("fo", "MZXQ"),
        ("foo", "MZXW6"),
        ("foob", "MZXW6YQ"),
        ("fooba", "MZXW6YTB"),
        ("foobar", "MZXW6YTBOI"),
    ] {
        assert_eq!(base32(plain.as_bytes()), coded);
    }
}

#[test]
fn claims_look_as_nats_writes_them() {
    let operator = pair(KeyPairType::Operator, 1);
    let account = pair(KeyPairType::Account, 2);
    let user = UserKey::of(&pair(KeyPairType::User, 3)).unwrap();
    let account_key: AccountKey = account.public_key().parse().unwrap();
    let mut revocations = Revocations::default();
    revocations.revoke(user.clone(), 1_700_000_000);
    let jwts = [
        OperatorClaims {
            name: "muster".into(),
            system_account: account_key.clone(),
            issued_at: 1_700_000_001,
        }
        .sign(&operator)
        .unwrap(),
        AccountClaims {
            name: "muster".into(),
            account: account_key,
            issued_at: 1_700_000_002,
            jetstream: Some(JetStreamLimits {
                memory_bytes: Some(0),
                disk_bytes: None,
            }),
            revocations,
        }
        .sign(&operator)
        .unwrap(),
        UserClaims {
            name: "web-01".into(),
            user,
            issued_at: 1_700_000_003,
            expires_at: Some(1_700_003_600),
            permissions: node_permissions(7, &["web"], &[("zone", "gva2")]),
            max_subscriptions: Some(64),
            max_payload: None,
        }
        .sign(&account)
        .unwrap(),
    ];
    let header = jwts[0].split('.').next().unwrap();
    assert_eq!(
        BASE64URL_NOPAD.decode(header.as_bytes()).unwrap(),
        br#"{"typ":"JWT","alg":"ed25519-nkey"}"#
    );
    for jwt in &jwts {
        verify(jwt).unwrap();
    }
    insta::assert_snapshot!(jwts.map(|j| payload(&j)).join("\n"));
}

#[test]
fn only_the_right_kind_of_key_signs() {
    let keys = NatsKeys::generate();
    let claims = UserClaims {
        name: "x".into(),
        user: UserKey::of(&KeyPair::new_user()).unwrap(),
        issued_at: 1,
        expires_at: None,
        permissions: node_permissions(1, &[], &[]),
        max_subscriptions: None,
        max_payload: None,
    };
    assert!(claims.sign(keys.account()).is_ok());
    assert!(matches!(
        claims.sign(keys.operator()),
        Err(JwtError::WrongSigner { .. })
    ));
    let public_only = KeyPair::from_public_key(keys.account_key().as_str()).unwrap();
    assert!(matches!(
        claims.sign(&public_only),
        Err(JwtError::CannotSign { .. })
    ));
}

#[test]
fn a_changed_jwt_is_refused() {
    let keys = NatsKeys::generate();
    let jwt = OperatorClaims {
        name: "muster".into(),
        system_account: keys.system_key(),
        issued_at: 5,
    }
    .sign(keys.operator())
    .unwrap();
    assert_eq!(verify(&jwt).unwrap().issued_at, 5);
    let parts: Vec<&str> = jwt.split('.').collect();
    let changed = payload(&jwt).replace("muster", "mustar");
    let forged = format!(
        "{}.{}.{}",
        parts[0],
        BASE64URL_NOPAD.encode(changed.as_ref()),
        parts[2]
    );
    assert!(matches!(
        verify(&forged),
        Err(JwtError::Invalid("the signature is wrong"))
    ));
    for bad in ["", "a", "a.b", "a.b.c", "....", "\u{0}.\u{0}.\u{0}"] {
        assert!(verify(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn more_revocations_than_servers_take_are_refused_and_compacting_helps() {
    let keys = NatsKeys::generate();
    let mut claims = AccountClaims {
        name: "muster".into(),
        account: keys.account_key(),
        issued_at: 100,
        jetstream: None,
        revocations: Revocations::default(),
    };
    for n in 0..12_000u32 {
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&n.to_le_bytes());
        let key = KeyPair::new_from_raw(KeyPairType::User, seed).unwrap();
        claims
            .revocations
            .revoke(UserKey::of(&key).unwrap(), 1_700_000_000);
    }
    let refused = claims.sign(keys.operator()).unwrap_err();
    assert!(matches!(
        refused,
        JwtError::TooLarge {
            revocations: 12_000,
            ..
        }
    ));
    claims.revocations.compact(1_700_000_001);
    assert!(claims.sign(keys.operator()).unwrap().len() < 2000);
}

proptest! {
    #[test]
    fn a_replacement_always_survives_the_revocation_of_what_it_replaces(
        times in prop::collection::vec(0u64..5, 1..30)
    ) {
        // A clock that stands still, steps forward and steps back.
        let user = UserKey::of(&pair(KeyPairType::User, 9)).unwrap();
        let mut revoked = Revocations::default();
        let mut issued: Vec<u64> = Vec::new();
        for now in times {
            let at = next_issued_at(1_000 + now, issued.last().copied());
            revoked.revoke(user.clone(), at - 1);
            prop_assert!(!revoked.revokes(&user, at));
            prop_assert!(issued.iter().all(|&old| revoked.revokes(&user, old)));
            issued.push(at);
        }
    }
}
