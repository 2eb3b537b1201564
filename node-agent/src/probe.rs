//! Whether another node can be reached: what the broker asks of the nodes that
//! a change of a firewall must not shut out.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::firewall::{ProbeAsk, ProbeResult};
use muster_protocol::text::printable;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Probes that are made at once; those beyond are not made, and say so.
const AT_ONCE: usize = 32;
/// Longest time that one takes, whatever is asked.
const LONGEST: Duration = Duration::from_secs(10);

/// Makes probes, not too many at once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Probes(Arc<Semaphore>);

impl Default for Probes {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Probes {
    /// Connects to there, and hangs up. Nothing is sent.
    pub async fn make(&self, ask: &ProbeAsk) -> ProbeResult {
        let failed = |why: String| ProbeResult::Failed {
            why: printable(&why, 200),
        };
        let Ok(_room) = self.0.try_acquire() else {
            return failed(format!("{AT_ONCE} probes are being made here already"));
        };
        if ask.tcp == 0 {
            return failed("0 is no port".to_owned());
        }
        let within = ask.within.get().min(LONGEST);
        let to = SocketAddr::new(ask.address, ask.tcp);
        match timeout(within, TcpStream::connect(to)).await {
            Ok(Ok(_)) => ProbeResult::Open,
            Err(_) => ProbeResult::Silent,
            Ok(Err(error)) => match error.kind() {
                ErrorKind::ConnectionRefused => ProbeResult::Refused,
                ErrorKind::TimedOut => ProbeResult::Silent,
                _ => failed(error.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::units::Span;

    #[tokio::test]
    async fn an_open_port_is_told_from_a_closed_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let ask = |tcp| ProbeAsk {
            address: at.ip(),
            tcp,
            within: Span::from_secs(5),
        };
        let probes = Probes::default();
        assert_eq!(probes.make(&ask(at.port())).await, ProbeResult::Open);
        drop(listener);
        assert_eq!(probes.make(&ask(at.port())).await, ProbeResult::Refused);
        let no_port = probes.make(&ask(0)).await;
        assert!(matches!(no_port, ProbeResult::Failed { .. }), "{no_port:?}");
        let _all = probes.0.clone().try_acquire_many_owned(32).unwrap();
        let busy = probes.make(&ask(at.port())).await;
        assert!(matches!(busy, ProbeResult::Failed { .. }), "{busy:?}");
    }
}
