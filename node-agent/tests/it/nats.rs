//! A nats-server without authentication: what its users may do is tested
//! elsewhere.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Nats {
    dir: tempfile::TempDir,
    child: Child,
    pub port: u16,
}

impl Nats {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (child, port) = spawn(dir.path(), None).await;
        Self { dir, child, port }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub async fn restart(&mut self) {
        self.kill();
        let (child, _) = spawn(self.dir.path(), Some(self.port)).await;
        self.child = child;
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn spawn(dir: &Path, port: Option<u16>) -> (Child, u16) {
    let child = Command::new("nats-server")
        .args([
            "-a",
            "127.0.0.1",
            "-p",
            &port.map_or("-1".to_owned(), |p| p.to_string()),
        ])
        .arg("--ports_file_dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join("log")).unwrap())
        .spawn()
        .expect("nats-server is installed (make test does it)");
    let file = dir.join(format!("nats-server_{}.ports", child.id()));
    let end = Instant::now() + PATIENCE;
    loop {
        let told = std::fs::read_to_string(&file).ok().and_then(|text| {
            let ports: serde_json::Value = serde_json::from_str(&text).ok()?;
            ports["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
        });
        if let Some(port) = told {
            return (child, port);
        }
        assert!(
            Instant::now() < end,
            "nats-server did not start: {}",
            std::fs::read_to_string(dir.join("log")).unwrap_or_default()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
