//! A cable between a broker and NATS that can be pulled out: connections stay
//! open, and nothing gets through.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Between two looks whether it is in again.
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct Cable {
    pub(super) port: u16,
    out: Arc<AtomicBool>,
}

impl Cable {
    pub(super) fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let own = listener.local_addr().expect("an address").port();
        let out = Arc::new(AtomicBool::new(false));
        let pulled = Arc::clone(&out);
        // They end with the process of the test.
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                let (Ok(near2), Ok(far2)) = (near.try_clone(), far.try_clone()) else {
                    continue;
                };
                let (one, two) = (Arc::clone(&pulled), Arc::clone(&pulled));
                std::thread::spawn(move || pass(near, far, &one));
                std::thread::spawn(move || pass(far2, near2, &two));
            }
        });
        Self { port: own, out }
    }

    pub(super) fn pull(&self) {
        self.out.store(true, Ordering::Relaxed);
    }

    pub(super) fn plug(&self) {
        self.out.store(false, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, out: &AtomicBool) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(n) = from.read(&mut bytes) {
        while out.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
        }
        if n == 0 || to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}
