//! A syslog, as RFC 5424 has it.

use std::path::Path;
use std::time::Duration;

use muster_protocol::units::Timestamp;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket, UnixDatagram, lookup_host};
use tokio::time::timeout;

use super::super::settings::SyslogTo;
use super::{Out, short_form};

/// Security messages, as a notice: `10 * 8 + 5`.
const PRIORITY: u32 = 85;
/// How long one delivery may take.
const WITHIN: Duration = Duration::from_secs(10);
/// Most bytes of a datagram; what is longer is named by its hash alone.
const MOST_UDP: usize = 8 * 1024;
const MOST_LOCAL: usize = 60 * 1024;

/// See the module.
pub(super) struct SyslogSink {
    to: SyslogTo,
    records: bool,
    host: String,
}

impl SyslogSink {
    pub(super) fn new(to: SyslogTo, records: bool) -> Self {
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let host: String = name
            .chars()
            .filter(char::is_ascii_graphic)
            .take(255)
            .collect();
        Self {
            to,
            records,
            host: if host.is_empty() { "-".into() } else { host },
        }
    }

    pub(super) async fn deliver(&mut self, lines: Vec<Out>) -> Result<(), String> {
        let lines = lines
            .iter()
            .filter(|line| self.records || line.is_checkpoint);
        let most = match self.to {
            SyslogTo::Local(_) => MOST_LOCAL,
            SyslogTo::Udp(_) => MOST_UDP,
            SyslogTo::Tcp(_) => usize::MAX,
        };
        let messages: Vec<String> = lines.map(|line| self.message(line, most)).collect();
        if messages.is_empty() {
            return Ok(());
        }
        match timeout(WITHIN, send(&self.to, &messages)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it took too long".to_owned()),
        }
    }

    fn message(&self, line: &Out, most: usize) -> String {
        let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ");
        let what = if line.is_checkpoint {
            "checkpoint"
        } else {
            "record"
        };
        let mut text = format!(
            "<{PRIORITY}>1 {at} {} muster {} {what} - ",
            self.host,
            std::process::id()
        );
        if text.len() + line.text.len() > most {
            text.push_str(&short_form(line));
        } else {
            text.push_str(&line.text);
        }
        text
    }
}

async fn send(to: &SyslogTo, messages: &[String]) -> std::io::Result<()> {
    match to {
        SyslogTo::Local(path) => local(path, messages).await,
        SyslogTo::Udp(place) => {
            let nobody = || std::io::Error::other("its name has no address");
            let address = lookup_host(place).await?.next().ok_or_else(nobody)?;
            let own = if address.is_ipv6() {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let socket = UdpSocket::bind(own).await?;
            socket.connect(address).await?;
            for message in messages {
                socket.send(message.as_bytes()).await?;
            }
            Ok(())
        }
        SyslogTo::Tcp(place) => {
            let mut stream = TcpStream::connect(place).await?;
            let mut frames = String::new();
            for message in messages {
                frames += &format!("{} {message}", message.len());
            }
            stream.write_all(frames.as_bytes()).await?;
            // Whoever takes nothing any more shows it now, if ever.
            stream.shutdown().await
        }
    }
}

async fn local(path: &Path, messages: &[String]) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    for message in messages {
        socket.send(message.as_bytes()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    fn line(text: &str, is_checkpoint: bool) -> Out {
        Out {
            text: text.to_owned(),
            is_checkpoint,
            count: 7,
        }
    }

    #[tokio::test]
    async fn messages_arrive_whole_by_each_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = UnixDatagram::bind(&path).unwrap();
        let mut sink = SyslogSink::new(SyslogTo::Local(path), true);
        sink.deliver(vec![line("{\"n\":7}", false)]).await.unwrap();
        let mut bytes = vec![0; 70_000];
        let n = log.recv(&mut bytes).await.unwrap();
        let text = std::str::from_utf8(&bytes[..n]).unwrap();
        assert!(
            text.starts_with("<85>1 2") && text.contains(" muster "),
            "{text}"
        );
        assert!(text.ends_with(" record - {\"n\":7}"), "{text}");

        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = SyslogTo::Udp(udp.local_addr().unwrap().to_string());
        let mut sink = SyslogSink::new(to, false);
        let long = "x".repeat(MOST_UDP);
        let lines = vec![line("left out", false), line(&long, true)];
        sink.deliver(lines).await.unwrap();
        let n = udp.recv(&mut bytes).await.unwrap();
        let text = std::str::from_utf8(&bytes[..n]).unwrap();
        assert!(
            text.contains(" checkpoint - {") && text.contains("too_long"),
            "{text}"
        );

        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = SyslogTo::Tcp(tcp.local_addr().unwrap().to_string());
        let mut sink = SyslogSink::new(to, true);
        let (sent, taken) = tokio::join!(
            sink.deliver(vec![line("a", false), line("b", true)]),
            async {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                text
            }
        );
        sent.unwrap();
        let (length, rest) = taken.split_once(' ').unwrap();
        assert!(
            rest[..length.parse().unwrap()].ends_with("record - a"),
            "{taken}"
        );
        drop(tcp);
        assert!(sink.deliver(vec![line("c", true)]).await.is_err());
    }
}
