//! A bad network in one process: a TCP proxy that is slow, tears what passes
//! into pieces, holds it back in either direction, and cuts.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

/// How often somebody who must wait looks again.
const LOOK: Duration = Duration::from_millis(5);
/// Pieces on their way in one direction of one connection.
const ON_THE_WAY: usize = 1024;

/// One direction, for all connections.
#[derive(Debug, Default)]
pub struct Way {
    held: AtomicBool,
    delay_ms: AtomicU64,
    piece: AtomicU64,
    per_second: AtomicU64,
}

impl Way {
    /// Holds everything back from now on, or lets it go. Connections stay.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }

    /// Everything arrives so much later.
    pub fn delay(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.delay_ms.store(ms, Ordering::SeqCst);
    }

    /// Everything is torn into pieces of at most so many bytes, each sent for
    /// itself; 0 for whole.
    pub fn pieces(&self, bytes: u64) {
        self.piece.store(bytes, Ordering::SeqCst);
    }

    /// At most so many bytes pass in a second; 0 for any number.
    pub fn throttle(&self, bytes: u64) {
        self.per_second.store(bytes, Ordering::SeqCst);
    }

    fn read(&self, mut from: TcpStream, to: &SyncSender<(Instant, Vec<u8>)>) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let due = Instant::now() + Duration::from_millis(self.delay_ms.load(Ordering::SeqCst));
            if to.send((due, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    }

    fn write(&self, what: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
        for (due, bytes) in what {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let piece = match self.piece.load(Ordering::SeqCst) {
                0 => bytes.len(),
                piece => usize::try_from(piece).unwrap_or(usize::MAX),
            };
            for piece in bytes.chunks(piece) {
                while self.held.load(Ordering::SeqCst) {
                    std::thread::sleep(LOOK);
                }
                if to.write_all(piece).is_err() {
                    return;
                }
                let per_second = self.per_second.load(Ordering::SeqCst);
                if let Some(us) = (piece.len() as u64 * 1_000_000).checked_div(per_second) {
                    std::thread::sleep(Duration::from_micros(us));
                }
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }
}

#[derive(Debug, Default)]
struct Inner {
    up: Way,
    down: Way,
    closed: AtomicBool,
    over: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    came: AtomicU64,
}

impl Inner {
    fn cut(&self) {
        let mut all = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for stream in all.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn way(&self, upward: bool) -> &Way {
        if upward { &self.up } else { &self.down }
    }

    fn carry(self: &Arc<Self>, client: TcpStream, target: SocketAddr) -> Result<()> {
        let server = TcpStream::connect(target)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend([client.try_clone()?, server.try_clone()?]);
        let pairs = [
            (true, client.try_clone()?, server.try_clone()?),
            (false, server, client),
        ];
        for (upward, from, to) in pairs {
            let (send, receive) = sync_channel(ON_THE_WAY);
            let (reader, writer) = (self.clone(), self.clone());
            std::thread::spawn(move || reader.way(upward).read(from, &send));
            std::thread::spawn(move || writer.way(upward).write(&receive, to));
        }
        Ok(())
    }
}

/// The proxy. It ends, with its connections, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    at: SocketAddr,
    inner: Arc<Inner>,
}

impl Proxy {
    /// A proxy on a free port of loopback, which changes nothing yet.
    ///
    /// # Errors
    /// When there is no port.
    pub fn before(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let proxy = Self {
            at: listener.local_addr()?,
            inner: Arc::default(),
        };
        let inner = proxy.inner.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if inner.over.load(Ordering::SeqCst) {
                    return;
                }
                if !inner.closed.load(Ordering::SeqCst) {
                    inner.came.fetch_add(1, Ordering::SeqCst);
                    let _ = inner.carry(client, target);
                }
            }
        });
        Ok(proxy)
    }

    /// Where it listens.
    #[must_use]
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// From those who connect towards the server.
    #[must_use]
    pub fn up(&self) -> &Way {
        &self.inner.up
    }

    /// From the server.
    #[must_use]
    pub fn down(&self) -> &Way {
        &self.inner.down
    }

    /// Ends all connections; new ones may come.
    pub fn cut(&self) {
        self.inner.cut();
    }

    /// Whether who comes is turned away.
    pub fn close(&self, closed: bool) {
        self.inner.closed.store(closed, Ordering::SeqCst);
    }

    /// How many connections were let in so far.
    #[must_use]
    pub fn came(&self) -> u64 {
        self.inner.came.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.inner.over.store(true, Ordering::SeqCst);
        self.inner.up.hold(false);
        self.inner.down.hold(false);
        self.inner.cut();
        // Wakes the listener, so that it sees that it is over.
        let _ = TcpStream::connect(self.at);
    }
}
