//! Public keys for `ssh`, as a line of `id_ed25519.pub` has them.

use std::fmt;
use std::str::FromStr;

use crate::text_form::text_form;

/// Longest line.
pub const MAX_SSH_KEY: usize = 4 * 1024;
/// Longest line of a key whose kind nobody here reads.
const MAX_LINE: usize = 16 * 1024;
/// Longest comment.
const MAX_COMMENT: usize = 200;

/// Kinds of keys that are taken.
const KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Why a text is no public key. What the text is, is never said: it may be a
/// secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SshKeyError {
    /// The other half of it.
    #[error("this is a private key; give the public one, the file that ends in .pub")]
    Private,
    /// More than a line.
    #[error("a public key is one line; give one key")]
    Lines,
    /// Too long.
    #[error("a public key has at most {MAX_SSH_KEY} bytes")]
    Long,
    /// Something else.
    #[error("this is no public key for ssh; give a line of a file like id_ed25519.pub")]
    Shape,
    /// A kind that is not taken.
    #[error("keys of this kind are not taken; there are: {}", KINDS.join(", "))]
    Kind,
}

/// What the bytes of every private key of OpenSSH begin with.
const OPENSSH: &str = "b3BlbnNzaC1rZXktdjE";

/// Whether a text is, or holds, a private key, or its bytes alone.
#[must_use]
pub fn is_private_key(text: &str) -> bool {
    text.contains("PRIVATE KEY")
        || text.contains(OPENSSH)
        || text.trim_start().starts_with("PuTTY-User-Key-File")
}

/// Whether a line can be a public key for a machine: also one of a kind that
/// is not read here, such as a certificate.
///
/// # Errors
/// [`SshKeyError`].
pub fn check_key_line(line: &str) -> Result<(), SshKeyError> {
    if is_private_key(line) {
        return Err(SshKeyError::Private);
    }
    if line.lines().count() > 1 {
        return Err(SshKeyError::Lines);
    }
    let mut words = line.split(' ');
    let kind = words.next().unwrap_or_default();
    let known = ["ssh-", "ecdsa-", "sk-"];
    let known = known.iter().any(|known| kind.starts_with(known));
    let plain = line.len() <= MAX_LINE && !line.chars().any(char::is_control);
    if known && plain && words.next().is_some_and(|bytes| !bytes.is_empty()) {
        Ok(())
    } else {
        Err(SshKeyError::Shape)
    }
}

/// A public key for `ssh`.
#[derive(Clone, Eq, PartialEq)]
pub struct SshKey {
    kind: &'static str,
    bytes: Vec<u8>,
    comment: String,
}

impl SshKey {
    /// What kind of key it is: `ssh-ed25519`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Whose it is, as the line says; may be empty.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// As `ssh-keygen -l` shows it: `SHA256:…`.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = super::Sha256::of(&self.bytes);
        let digest = data_encoding::BASE64_NOPAD.encode(digest.as_bytes());
        format!("SHA256:{digest}")
    }
}

impl fmt::Display for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = data_encoding::BASE64.encode(&self.bytes);
        write!(f, "{} {bytes}", self.kind)?;
        if !self.comment.is_empty() {
            write!(f, " {}", self.comment)?;
        }
        Ok(())
    }
}

impl fmt::Debug for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshKey({})", self.fingerprint())
    }
}

/// The string that a key's bytes begin with, and what is behind it.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    rest.split_at_checked(length)
}

impl FromStr for SshKey {
    type Err = SshKeyError;

    fn from_str(text: &str) -> Result<Self, SshKeyError> {
        if is_private_key(text) {
            return Err(SshKeyError::Private);
        }
        let text = text.trim();
        if text.len() > MAX_SSH_KEY {
            return Err(SshKeyError::Long);
        }
        if text.lines().count() > 1 {
            return Err(SshKeyError::Lines);
        }
        if text.chars().any(char::is_control) {
            return Err(SshKeyError::Shape);
        }
        let mut words = text.splitn(3, ' ');
        let (Some(kind), Some(bytes)) = (words.next(), words.next()) else {
            return Err(SshKeyError::Shape);
        };
        let bytes = data_encoding::BASE64
            .decode(bytes.as_bytes())
            .map_err(|_| SshKeyError::Shape)?;
        // The kind is in the bytes, too: who changes one of them makes no key.
        let (named, mut rest) = string(&bytes).ok_or(SshKeyError::Shape)?;
        if named != kind.as_bytes() {
            return Err(SshKeyError::Shape);
        }
        let known = KINDS.iter().find(|known| **known == kind);
        let kind = *known.ok_or(SshKeyError::Kind)?;
        let mut parts = 0;
        while !rest.is_empty() {
            let (part, behind) = string(rest).ok_or(SshKeyError::Shape)?;
            if part.is_empty() {
                return Err(SshKeyError::Shape);
            }
            parts += 1;
            rest = behind;
        }
        if parts == 0 {
            return Err(SshKeyError::Shape);
        }
        let comment = words.next().unwrap_or_default().trim();
        let comment = comment.chars().take(MAX_COMMENT).collect();
        Ok(Self {
            kind,
            bytes,
            comment,
        })
    }
}

text_form!(SshKey, "^[a-z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?$", MAX_SSH_KEY);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Made by `ssh-keygen -t ed25519`, and its fingerprint by `ssh-keygen -l`.
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPFaC/9yS6fY19YIhsnforpeA/kcv2cbO3fsgdOlwEne ana@example.org";
    const FINGERPRINT: &str = "SHA256:MKGJbuMHtJXW+8GBqGcE1i6GGpHYjP98279dOO4oYNI";

    #[test]
    fn a_key_has_the_fingerprint_that_ssh_shows() {
        let key: SshKey = KEY.parse().expect("a key");
        assert_eq!(key.fingerprint(), FINGERPRINT);
        assert_eq!(
            (key.kind(), key.comment()),
            ("ssh-ed25519", "ana@example.org")
        );
        assert_eq!(key.to_string(), KEY);
        let json = serde_json::to_string(&key).expect("JSON");
        assert_eq!(serde_json::from_str::<SshKey>(&json).expect("a key"), key);
        let bare = KEY.rsplit_once(' ').expect("a comment").0;
        assert_eq!(bare.parse::<SshKey>().expect("a key").comment(), "");
    }

    #[test]
    fn what_is_no_public_key_is_refused_and_never_repeated() {
        let secret = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n";
        let error = secret.parse::<SshKey>().expect_err("no key");
        assert_eq!(error, SshKeyError::Private);
        let json = serde_json::to_string(secret).expect("JSON");
        let said = serde_json::from_str::<SshKey>(&json).expect_err("no key");
        assert!(!said.to_string().contains("b3Blbn"), "{said}");
        let (kind, rest) = KEY.split_once(' ').expect("two words");
        for bad in [
            String::new(),
            kind.to_owned(),
            format!("{kind} AAAA"),
            format!("ssh-rsa {rest}"),
            format!("no-pty {KEY}"),
            format!("{KEY}\n{KEY}"),
            format!("{kind} {}", &rest[4..]),
            format!("{KEY}\u{7}"),
            format!("{kind} {}", "A".repeat(MAX_SSH_KEY)),
            "ssh-dss AAAAB3NzaC1kc3MAAAABAQ==".to_owned(),
        ] {
            assert!(bad.parse::<SshKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_for_a_machine_is_checked_and_never_repeated() {
        for good in [
            KEY,
            "ssh-rsa BBBB bob",
            "ssh-ed25519-cert-v01@openssh.com AAAA",
        ] {
            assert_eq!(check_key_line(good), Ok(()), "{good}");
        }
        let bytes = format!("{OPENSSH}AAAAABG5vbmUAAAAEbm9uZQ");
        for (bad, why) in [
            ("-----BEGIN RSA PRIVATE KEY-----", SshKeyError::Private),
            (bytes.as_str(), SshKeyError::Private),
            ("ssh-rsa AAAA\nssh-rsa BBBB", SshKeyError::Lines),
            ("hello there", SshKeyError::Shape),
            ("ssh-rsa ", SshKeyError::Shape),
            ("ssh-rsa AAAA\u{7}", SshKeyError::Shape),
        ] {
            assert_eq!(check_key_line(bad), Err(why), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_key_or_none(bytes: Vec<u8>, word in "\\PC{0,40}") {
            let text = format!("ssh-ed25519 {} {word}", data_encoding::BASE64.encode(&bytes));
            if let Ok(key) = text.parse::<SshKey>() {
                prop_assert_eq!(key.to_string().parse::<SshKey>(), Ok(key));
            }
        }
    }
}
