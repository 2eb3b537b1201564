//! Keys of a bucket as parts of a NATS subject.

use std::fmt::Write as _;

use super::KvError;

/// Longest key in bytes, before encoding.
pub(super) const MAX_KEY: usize = 512;

/// A key as one subject token: `[A-Za-z0-9_-]` as they are, every other byte
/// as `=XX`.
pub(super) fn encode(key: &str) -> Result<String, KvError> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(KvError::BadKey(key.len()));
    }
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            out.push(char::from(byte));
        } else {
            write!(out, "={byte:02X}").expect("writing to a String cannot fail");
        }
    }
    Ok(out)
}

/// The inverse of [`encode`]; `None` for a text that it never makes.
pub(super) fn decode(token: &str) -> Option<String> {
    let mut out = Vec::with_capacity(token.len());
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'=' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    let key = String::from_utf8(out).ok()?;
    // One text for each key: no lower-case digits, no needless escapes.
    (encode(&key).ok()? == token).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_comes_back(key in "\\PC{1,40}") {
            let token = encode(&key).unwrap();
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-=".contains(&b)));
            let back = decode(&token);
            prop_assert_eq!(back.as_deref(), Some(key.as_str()));
        }

        #[test]
        fn decoding_never_panics_and_is_strict(token in "[=0-9A-Fa-f.é]{0,12}") {
            if let Some(key) = decode(&token) {
                prop_assert_eq!(encode(&key).unwrap(), token);
            }
        }
    }

    #[test]
    fn keys_have_a_size() {
        assert!(matches!(encode(""), Err(KvError::BadKey(0))));
        assert!(encode(&"k".repeat(MAX_KEY)).is_ok());
        assert!(matches!(
            encode(&"k".repeat(MAX_KEY + 1)),
            Err(KvError::BadKey(_))
        ));
    }
}
