//! Whether a delivery comes from whoever knows the secret: over the bytes as
//! they came, in constant time, before anything of them is read.

use std::time::Duration;

use axum::http::HeaderMap;
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use hmac::{Hmac, KeyInit as _, Mac as _};
use muster_protocol::api::{HookKind, Secret};
use muster_protocol::units::Timestamp;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

/// What came, before anything of it is believed.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// What is behind the `?` of its URL.
    pub query: Option<&'a str>,
    /// Its body, as it came.
    pub body: &'a [u8],
}

/// Why a delivery is not taken; for whoever sets the webhook up, never for
/// whoever sends.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Nothing that proves who sends.
    #[error("it has no {0}")]
    Unsigned(&'static str),
    /// What it has proves nothing.
    #[error("its {0} is not that of the secret")]
    Wrong(&'static str),
    /// It is from another time.
    #[error(
        "it was signed {0} s from now: it is replayed, or one of the clocks is wrong (`max_skew` says how much may be)"
    )]
    Skew(i64),
}

/// HMAC with SHA-256.
#[must_use]
pub fn hmac(secret: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// The key of a secret as Standard Webhooks have it: what is behind `whsec_`
/// is base64; everything else is itself.
#[must_use]
pub fn standard_key(secret: &str) -> Vec<u8> {
    secret
        .strip_prefix("whsec_")
        .and_then(|text| BASE64.decode(text.as_bytes()).ok())
        .unwrap_or_else(|| secret.as_bytes().to_vec())
}

/// The signature of a message as Standard Webhooks have it.
#[must_use]
pub fn standard_signature(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    let key = standard_key(secret);
    let mac = hmac(
        &key,
        &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body],
    );
    format!("v1,{}", BASE64.encode(&mac))
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    // Twice the same header: nobody knows which one counts.
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::trim),
        _ => None,
    }
}

/// What proves that the sender knows the secret.
enum Proof<'a> {
    /// HMAC over these parts, this many of them possible.
    Mac {
        what: &'static str,
        parts: Vec<&'a [u8]>,
        given: Vec<Vec<u8>>,
        standard: bool,
        at: Option<&'a str>,
    },
    /// The secret itself.
    Token {
        what: &'static str,
        given: Vec<u8>,
    },
    None(&'static str),
}

fn hex(text: &str) -> Vec<Vec<u8>> {
    let text = text.strip_prefix("sha256=").unwrap_or(text);
    HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .into_iter()
        .collect()
}

/// The secret in an `Authorization` header, or in the query.
fn token(delivery: &Delivery<'_>, query: bool) -> Option<Vec<u8>> {
    if let Some(value) = header(delivery.headers, "authorization") {
        let (scheme, rest) = value.split_once(' ')?;
        return if scheme.eq_ignore_ascii_case("bearer") {
            Some(rest.trim().as_bytes().to_vec())
        } else if scheme.eq_ignore_ascii_case("basic") {
            let plain = BASE64.decode(rest.trim().as_bytes()).ok()?;
            let colon = plain.iter().position(|b| *b == b':')?;
            Some(plain[colon + 1..].to_vec())
        } else {
            None
        };
    }
    let given = delivery.query.filter(|_| query)?;
    let value = given
        .split('&')
        .find_map(|pair| pair.strip_prefix("token="))?;
    Some(value.as_bytes().to_vec())
}

fn proof<'a>(kind: HookKind, delivery: &Delivery<'a>) -> Proof<'a> {
    let get = |name| header(delivery.headers, name);
    let signed = |what, text: &str| Proof::Mac {
        what,
        parts: vec![delivery.body],
        given: hex(text),
        standard: false,
        at: None,
    };
    match kind {
        HookKind::Github => match get("x-hub-signature-256") {
            Some(text) => signed("X-Hub-Signature-256", text),
            None => Proof::None("X-Hub-Signature-256"),
        },
        HookKind::Gitea | HookKind::Forgejo => {
            match get("x-forgejo-signature").or_else(|| get("x-gitea-signature")) {
                Some(text) => signed("X-Gitea-Signature", text),
                None => match get("x-hub-signature-256") {
                    Some(text) => signed("X-Hub-Signature-256", text),
                    None => Proof::None("X-Gitea-Signature"),
                },
            }
        }
        HookKind::Gitlab => match get("x-gitlab-token") {
            Some(text) => Proof::Token {
                what: "X-Gitlab-Token",
                given: text.as_bytes().to_vec(),
            },
            None => Proof::None("X-Gitlab-Token"),
        },
        HookKind::Jenkins | HookKind::Alertmanager => {
            match token(delivery, kind == HookKind::Jenkins) {
                Some(given) => Proof::Token {
                    what: "Authorization",
                    given,
                },
                None => Proof::None("Authorization"),
            }
        }
        HookKind::Grafana => match get("x-grafana-alerting-signature") {
            Some(text) => {
                let at = get("x-grafana-alerting-timestamp");
                let parts = match at {
                    Some(at) => vec![at.as_bytes(), b":", delivery.body],
                    None => vec![delivery.body],
                };
                Proof::Mac {
                    what: "X-Grafana-Alerting-Signature",
                    parts,
                    given: hex(text),
                    standard: false,
                    at,
                }
            }
            None => match token(delivery, false) {
                Some(given) => Proof::Token {
                    what: "Authorization",
                    given,
                },
                None => Proof::None("X-Grafana-Alerting-Signature"),
            },
        },
        HookKind::Generic => generic(delivery),
    }
}

fn generic<'a>(delivery: &Delivery<'a>) -> Proof<'a> {
    let get = |name| header(delivery.headers, name);
    if let Some(text) = get("webhook-signature") {
        let (Some(id), Some(at)) = (get("webhook-id"), get("webhook-timestamp")) else {
            return Proof::None("webhook-id and webhook-timestamp");
        };
        let given = text
            .split(' ')
            .take(8)
            .filter_map(|one| BASE64.decode(one.strip_prefix("v1,")?.as_bytes()).ok())
            .collect();
        return Proof::Mac {
            what: "webhook-signature",
            parts: vec![id.as_bytes(), b".", at.as_bytes(), b".", delivery.body],
            given,
            standard: true,
            at: Some(at),
        };
    }
    match (get("x-muster-signature"), get("x-muster-timestamp")) {
        (Some(text), Some(at)) => Proof::Mac {
            what: "X-Muster-Signature",
            parts: vec![at.as_bytes(), b".", delivery.body],
            given: hex(text),
            standard: false,
            at: Some(at),
        },
        (Some(_), None) => Proof::None("X-Muster-Timestamp"),
        (None, _) => Proof::None("X-Muster-Signature"),
    }
}

/// What is compared with when there is no (second) secret: the same work is
/// done for every delivery.
const NOBODY: &str = "no secret of anybody: its owner is nobody";

/// Whether the delivery was sent by whoever knows one of the secrets. It
/// takes the same time whatever is wrong.
///
/// # Errors
/// [`Refusal`].
pub fn verify(
    kind: HookKind,
    secrets: &[Secret],
    max_skew: Duration,
    delivery: &Delivery<'_>,
    now: Timestamp,
) -> Result<(), Refusal> {
    let proof = proof(kind, delivery);
    let mut good = Choice::from(0);
    for n in 0..2 {
        let known = Choice::from(u8::from(n < secrets.len()));
        let secret = secrets.get(n).map_or(NOBODY, |secret| secret.expose());
        // The same work for a token, for nothing, and for nobody's webhook.
        let body = [delivery.body];
        let (parts, key): (&[&[u8]], Vec<u8>) = match &proof {
            Proof::Mac {
                parts,
                standard: true,
                ..
            } => (parts, standard_key(secret)),
            Proof::Mac { parts, .. } => (parts, secret.as_bytes().to_vec()),
            Proof::Token { .. } | Proof::None(_) => (&body, secret.as_bytes().to_vec()),
        };
        let mac = hmac(&key, parts);
        let fits = match &proof {
            Proof::Mac { given, .. } => given
                .iter()
                .fold(Choice::from(0), |good, given| good | given.ct_eq(&mac)),
            // Hashes have one length, whatever was sent.
            Proof::Token { given, .. } => {
                Sha256::digest(given).ct_eq(&Sha256::digest(secret.as_bytes()))
            }
            Proof::None(_) => Choice::from(0),
        };
        good |= fits & known;
    }
    let good = bool::from(good);
    match proof {
        Proof::None(what) => Err(Refusal::Unsigned(what)),
        Proof::Token { what, .. } if !good => Err(Refusal::Wrong(what)),
        Proof::Mac { what, .. } if !good => Err(Refusal::Wrong(what)),
        Proof::Mac { at: Some(at), .. } => skew(at, max_skew, now),
        Proof::Mac { at: None, .. } | Proof::Token { .. } => Ok(()),
    }
}

fn skew(at: &str, max_skew: Duration, now: Timestamp) -> Result<(), Refusal> {
    let Ok(at) = at.parse::<i64>() else {
        return Err(Refusal::Wrong("timestamp"));
    };
    let off = now.as_second().saturating_sub(at);
    if off.unsigned_abs() > max_skew.as_secs() {
        return Err(Refusal::Skew(off));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn now() -> Timestamp {
        "2026-11-21T10:00:00Z".parse().unwrap()
    }

    fn check(
        kind: HookKind,
        secrets: &[&str],
        pairs: &[(&'static str, &str)],
        query: Option<&str>,
        body: &[u8],
    ) -> Result<(), Refusal> {
        let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::new(*s)).collect();
        let headers = headers(pairs);
        let delivery = Delivery {
            headers: &headers,
            query,
            body,
        };
        verify(kind, &secrets, Duration::from_secs(300), &delivery, now())
    }

    #[test]
    fn the_mac_is_that_of_the_standards() {
        // RFC 4231, test cases 1, 2 and 6.
        let hex = |key: &[u8], text: &[u8]| HEXLOWER.encode(&hmac(key, &[text]));
        assert_eq!(
            hex(&[0x0b; 20], b"Hi There"),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            hex(b"Jefe", b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First"
            ),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn github_as_its_documentation_has_it() {
        // The values in "Validating webhook deliveries" of its documentation.
        let secret = "It's a Secret to Everybody";
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let github = |signature: &str, body: &[u8]| {
            check(
                HookKind::Github,
                &[secret],
                &[("x-hub-signature-256", signature)],
                None,
                body,
            )
        };
        assert_eq!(github(signature, b"Hello, World!"), Ok(()));
        assert_eq!(
            github(signature, b"Hello, World"),
            Err(Refusal::Wrong("X-Hub-Signature-256"))
        );
        for bad in [
            "",
            "sha256=",
            "sha256=zz",
            &signature[..70],
            "sha1=757107ea",
        ] {
            assert_eq!(
                github(bad, b"Hello, World!"),
                Err(Refusal::Wrong("X-Hub-Signature-256"))
            );
        }
        assert_eq!(
            check(HookKind::Github, &[secret], &[], None, b"x"),
            Err(Refusal::Unsigned("X-Hub-Signature-256"))
        );
        // Two of them: nobody knows which one counts.
        let twice = [
            ("x-hub-signature-256", signature),
            ("x-hub-signature-256", signature),
        ];
        assert!(check(HookKind::Github, &[secret], &twice, None, b"Hello, World!").is_err());
        // While the secret is replaced, both are taken.
        let one = [("x-hub-signature-256", signature)];
        for secrets in [&["new", secret][..], &[secret, "new"]] {
            assert_eq!(
                check(HookKind::Github, secrets, &one, None, b"Hello, World!"),
                Ok(())
            );
        }
        assert!(check(HookKind::Github, &["new"], &one, None, b"Hello, World!").is_err());
        // Nobody's webhook takes nothing, also not what nobody signs.
        let nobody = format!(
            "sha256={}",
            HEXLOWER.encode(&hmac(NOBODY.as_bytes(), &[b"x"]))
        );
        let one = [("x-hub-signature-256", nobody.as_str())];
        assert!(check(HookKind::Github, &[], &one, None, b"x").is_err());
        assert!(check(HookKind::Github, &["a"], &one, None, b"x").is_err());
    }

    #[test]
    fn the_secret_itself_as_gitlab_jenkins_alertmanager_and_grafana_send_it() {
        let gitlab = |token: &str| {
            check(
                HookKind::Gitlab,
                &["s3cret"],
                &[("x-gitlab-token", token)],
                None,
                b"{}",
            )
        };
        assert_eq!(gitlab("s3cret"), Ok(()));
        assert_eq!(gitlab("s3cre"), Err(Refusal::Wrong("X-Gitlab-Token")));
        let basic = format!("Basic {}", BASE64.encode(b"muster:s3cret"));
        for kind in [HookKind::Jenkins, HookKind::Alertmanager, HookKind::Grafana] {
            for value in ["Bearer s3cret", basic.as_str()] {
                let with = [("authorization", value)];
                assert_eq!(
                    check(kind, &["s3cret"], &with, None, b"{}"),
                    Ok(()),
                    "{kind}"
                );
            }
            let with = [("authorization", "Bearer other")];
            assert!(check(kind, &["s3cret"], &with, None, b"{}").is_err());
            assert!(check(kind, &["s3cret"], &[], None, b"{}").is_err());
        }
        // Only Jenkins cannot do better than that.
        let query = Some("a=b&token=s3cret");
        assert_eq!(
            check(HookKind::Jenkins, &["s3cret"], &[], query, b"{}"),
            Ok(())
        );
        assert!(check(HookKind::Alertmanager, &["s3cret"], &[], query, b"{}").is_err());
    }

    #[test]
    fn what_is_signed_with_its_time_is_not_taken_at_another_time() {
        let at = |secs: i64| (now().as_second() + secs).to_string();
        let muster = |secs: i64| {
            let at = at(secs);
            let mac = hmac(b"s", &[at.as_bytes(), b".", b"{}"]);
            let signature = format!("sha256={}", HEXLOWER.encode(&mac));
            let with = [
                ("x-muster-timestamp", at.as_str()),
                ("x-muster-signature", signature.as_str()),
            ];
            check(HookKind::Generic, &["s"], &with, None, b"{}")
        };
        let standard = |secs: i64, id: &str| {
            let at = at(secs);
            let signature = standard_signature("whsec_c2VjcmV0", "m1", &at, b"{}");
            let both = format!("v1,AAAA {signature}");
            let with = [
                ("webhook-id", id),
                ("webhook-timestamp", at.as_str()),
                ("webhook-signature", both.as_str()),
            ];
            check(HookKind::Generic, &["whsec_c2VjcmV0"], &with, None, b"{}")
        };
        let grafana = |secs: i64| {
            let at = at(secs);
            let mac = HEXLOWER.encode(&hmac(b"s", &[at.as_bytes(), b":", b"{}"]));
            let with = [
                ("x-grafana-alerting-timestamp", at.as_str()),
                ("x-grafana-alerting-signature", mac.as_str()),
            ];
            check(HookKind::Grafana, &["s"], &with, None, b"{}")
        };
        for secs in [0, 299, -299] {
            assert_eq!(muster(secs), Ok(()));
            assert_eq!(standard(secs, "m1"), Ok(()));
            assert_eq!(grafana(secs), Ok(()));
        }
        for secs in [301, -301] {
            assert_eq!(muster(secs), Err(Refusal::Skew(-secs)));
            assert_eq!(standard(secs, "m1"), Err(Refusal::Skew(-secs)));
            assert_eq!(grafana(secs), Err(Refusal::Skew(-secs)));
        }
        // The id is signed, too.
        assert!(standard(0, "m2").is_err());
        // Another time than the one that is signed.
        let mac = HEXLOWER.encode(&hmac(b"s", &[b"1", b".", b"{}"]));
        let other = at(0);
        let with = [
            ("x-muster-timestamp", other.as_str()),
            ("x-muster-signature", mac.as_str()),
        ];
        assert!(check(HookKind::Generic, &["s"], &with, None, b"{}").is_err());
        assert!(check(HookKind::Generic, &["s"], &with[1..], None, b"{}").is_err());
    }

    #[test]
    fn the_key_of_the_standard_is_that_of_its_specification() {
        // The example of the Standard Webhooks libraries.
        let signature = standard_signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
