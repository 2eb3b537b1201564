//! With the feature.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// Where who holds this process listens, if anybody does.
pub(crate) fn socket() -> Option<&'static Path> {
    static SOCKET: OnceLock<Option<PathBuf>> = OnceLock::new();
    SOCKET
        .get_or_init(|| {
            let named = std::env::var_os(crate::VARIABLE)?;
            (!named.is_empty()).then(|| named.into())
        })
        .as_deref()
}

/// Says where this process is, and waits until it may go on. When nobody
/// listens any more, it may.
pub(crate) async fn report(socket: &Path, point: &str, detail: &str) {
    let Ok(mut stream) = UnixStream::connect(socket).await else {
        return;
    };
    let line = format!("{}\t{point}\t{detail}\n", std::process::id());
    if stream.write_all(line.as_bytes()).await.is_ok() {
        let mut answer = String::new();
        let _ = BufReader::new(stream).read_line(&mut answer).await;
    }
}
