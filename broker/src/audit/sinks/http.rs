//! An HTTP server that takes JSON lines.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};

use super::Out;
use crate::state_dir::read_private;

/// How long one delivery may take.
const WITHIN: Duration = Duration::from_secs(20);

/// See the module. What is not answered by a 2xx is sent again, so a line may
/// come more than once: its number says so.
pub(super) struct HttpSink {
    url: String,
    token_file: Option<PathBuf>,
    client: Option<reqwest::Client>,
}

impl HttpSink {
    pub(super) fn new(url: String, token_file: Option<PathBuf>) -> Self {
        Self {
            url,
            token_file,
            client: None,
        }
    }

    pub(super) async fn deliver(&mut self, lines: Vec<Out>) -> Result<(), String> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                // Set already by every program of muster; tests have none.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let client = reqwest::Client::builder()
                    .timeout(WITHIN)
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .map_err(|e| e.to_string())?;
                self.client.insert(client).clone()
            }
        };
        let mut body = String::new();
        for line in &lines {
            body.push_str(&line.text);
            body.push('\n');
        }
        let mut request = client
            .post(&self.url)
            .header(CONTENT_TYPE, "application/x-ndjson");
        if let Some(path) = &self.token_file {
            // Read each time: it may be changed while the broker runs.
            let token = read_private(path).map_err(|e| e.to_string())?;
            let token = token.ok_or_else(|| format!("there is no {}", path.display()))?;
            let bearer = zeroize::Zeroizing::new(format!("Bearer {}", token.trim()));
            let mut value = HeaderValue::from_str(&bearer)
                .map_err(|_| format!("{} holds no token", path.display()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let answer = request.body(body).send().await;
        let answer = answer.map_err(|e| reason(&e))?;
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(format!("it answered {}", answer.status()))
        }
    }
}

/// The error with its causes, without the URL, which may hold a secret.
fn reason(error: &reqwest::Error) -> String {
    let mut next = std::error::Error::source(error);
    let mut text = if error.is_timeout() {
        "it took too long".to_owned()
    } else {
        "it cannot be reached".to_owned()
    };
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
