use super::*;
use crate::nats::jwt::{JetStreamLimits, Revocations, UserClaims, next_issued_at};
use crate::nats::permissions::{broker_permissions, node_permissions};
use crate::nats::testing::{PATIENCE, TestServer, now};

#[tokio::test]
async fn experiment() {
    let server = TestServer::start().await;
    let system = server.system().await;
    let mut raw = system.client().subscribe("$SYS.ACCOUNT.*.CONNECT").await.unwrap();
    let mut raw2 = system.client().subscribe("$SYS.ACCOUNT.*.DISCONNECT").await.unwrap();
    system.client().flush().await.unwrap();
    let node = server.user("web-01", node_permissions(1, &["web"], &[]));
    let c = node.connect_options().name("n").connect(server.url()).await.unwrap();
    eprintln!("C {:?}", timeout(Duration::from_secs(3), raw.next()).await);
    eprintln!("live {:?}", system.live_connections(&server.keys.account_key()).await);
    let mut r = Revocations::default();
    r.revoke(node.public_key().parse().unwrap(), now());
    eprintln!("push {:?}", system.push_account_claims(&server.account_claims(now(), r)).await);
    eprintln!("D {:?}", timeout(Duration::from_secs(3), raw2.next()).await);
    drop(c);
}
