use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use super::*;

#[test]
fn a_node_hears_what_its_credentials_allow_and_no_more() {
    let assignment: Assignment = serde_json::from_value(json!({
        "revision": 1, "name": "web-01", "roles": ["lb", "web"], "labels": {"zone": "gva2", "os.x": "1.2"},
    }))
    .expect("reads");
    assert_eq!(
        subjects(Serial(17), &assignment),
        [
            "m1.do.all",
            "m1.do.node.17",
            "m1.do.role.lb",
            "m1.do.role.web",
            "m1.do.label.os=2Ex.1=2E2",
            "m1.do.label.zone.gva2",
        ]
    );
}

const INFO: &[u8] = b"INFO {\"server_id\":\"S\",\"server_name\":\"s\",\"version\":\"2.9.10\",\"proto\":1,\
    \"go\":\"go1.19\",\"host\":\"127.0.0.1\",\"port\":4222,\"headers\":true,\"max_payload\":1048576,\
    \"client_id\":1,\"client_ip\":\"127.0.0.1\",\"auth_required\":true,\"nonce\":\"bm9uY2U\"}\r\n";

/// A server that greets, and hangs up when it is told to; it counts who came.
struct Rude {
    at: SocketAddr,
    came: Arc<AtomicUsize>,
    hang_up: Arc<tokio::sync::Notify>,
}

impl Rude {
    async fn start(last_words: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let rude = Self {
            at: listener.local_addr().expect("a port"),
            came: Arc::default(),
            hang_up: Arc::default(),
        };
        let (came, hang_up) = (rude.came.clone(), rude.hang_up.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                came.fetch_add(1, Ordering::SeqCst);
                let hang_up = hang_up.clone();
                tokio::spawn(async move {
                    let (read, mut write) = stream.into_split();
                    write.write_all(INFO).await?;
                    let mut lines = BufReader::new(read).lines();
                    loop {
                        tokio::select! {
                            () = hang_up.notified() => break,
                            line = lines.next_line() => match line? {
                                Some(line) if line.starts_with("PING") => write.write_all(b"PONG\r\n").await?,
                                Some(_) => {}
                                None => break,
                            }
                        }
                    }
                    write.write_all(last_words).await?;
                    std::io::Result::Ok(())
                });
            }
        });
        rude
    }

    async fn connect(&self, key: &Arc<nkeys::KeyPair>) -> Connection {
        let ticket = Ticket {
            client: "test".into(),
            serial: Serial(1),
            jwt: "none",
            key,
            trust: Trust::Address,
            size: Size {
                connect_within: Duration::from_secs(5),
                ping_every: Duration::from_secs(20),
                outgoing: 8,
                incoming: 8,
                read_buffer: None,
            },
        };
        connect(&[format!("nats://{}", self.at)], &ticket)
            .await
            .expect("connects")
    }
}

async fn news(connection: &mut Connection) -> Option<Happened> {
    tokio::time::timeout(Duration::from_secs(10), connection.events.recv())
        .await
        .expect("in time")
}

#[tokio::test]
async fn a_connection_that_ends_is_not_made_again_by_itself() {
    let server = Rude::start(b"").await;
    let key = Arc::new(nkeys::KeyPair::new_user());
    let mut connection = server.connect(&key).await;
    server.hang_up.notify_one();
    assert_eq!(news(&mut connection).await, Some(Happened::Ended));
    // The client ends, though somebody holds it still: then nobody can tell
    // news any more.
    while news(&mut connection).await.is_some() {}
    assert_eq!(server.came.load(Ordering::SeqCst), 1);
    // The next one is a new one.
    let _again = server.connect(&key).await;
    assert_eq!(server.came.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_server_that_says_no_is_told_from_one_that_goes() {
    let server = Rude::start(b"-ERR 'User Authentication Revoked'\r\n").await;
    let key = Arc::new(nkeys::KeyPair::new_user());
    let mut connection = server.connect(&key).await;
    server.hang_up.notify_one();
    let said = news(&mut connection).await;
    assert!(matches!(said, Some(Happened::Unauthorized(_))), "{said:?}");
}
