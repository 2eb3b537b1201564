//! The bot logs in to services while it registers.

use data_encoding::BASE64;
use muster_protocol::api::Secret;

use super::Sasl;

/// Bytes of base64 on a line; a line of exactly that many says that more come.
const CHUNK: usize = 400;

/// The lines that say who the bot is.
pub(super) fn answer(sasl: &Sasl) -> Vec<Secret> {
    let plain = match sasl {
        Sasl::Plain { account, password } => {
            Secret::new(format!("{account}\0{account}\0{}", password.expose()))
        }
        Sasl::External { account } => Secret::new(account.clone().unwrap_or_default()),
    };
    let text = Secret::new(BASE64.encode(plain.expose().as_bytes()));
    let mut lines: Vec<Secret> = text
        .expose()
        .as_bytes()
        .chunks(CHUNK)
        .map(|chunk| Secret::new(format!("AUTHENTICATE {}", String::from_utf8_lossy(chunk))))
        .collect();
    // Nothing, and nothing more, are said by a plus.
    if text.expose().len().is_multiple_of(CHUNK) {
        lines.push(Secret::new("AUTHENTICATE +"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(password: usize) -> Vec<String> {
        let sasl = Sasl::Plain {
            account: "a".into(),
            password: Secret::new("p".repeat(password)),
        };
        answer(&sasl)
            .iter()
            .map(|s| s.expose().to_owned())
            .collect()
    }

    #[test]
    fn answers_are_cut_into_lines_of_400() {
        assert_eq!(plain(1), ["AUTHENTICATE YQBhAHA="]);
        // 300 bytes are 400 of base64.
        let exact = plain(296);
        assert_eq!(
            (exact.len(), exact[0].len(), exact[1].as_str()),
            (2, 413, "AUTHENTICATE +")
        );
        let more = plain(297);
        assert_eq!((more.len(), more[1].as_str()), (2, "AUTHENTICATE cA=="));
        assert_eq!(plain(293).len(), 1);
        let external = Sasl::External { account: None };
        assert_eq!(answer(&external)[0].expose(), "AUTHENTICATE +");
        let named = Sasl::External {
            account: Some("muster".into()),
        };
        assert_eq!(answer(&named)[0].expose(), "AUTHENTICATE bXVzdGVy");
    }
}
