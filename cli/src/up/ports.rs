//! Whether a port is free, and who has it.

use std::net::{SocketAddr, TcpListener};

use crate::failure::{Failure, NOT_ALL};

/// A free port of that address's host, when the address asks for any.
///
/// # Errors
/// As [`require_free`].
pub fn choose(address: SocketAddr) -> Result<SocketAddr, Failure> {
    if address.port() != 0 {
        return Ok(address);
    }
    let listener = TcpListener::bind(address).map_err(|e| refused(address, &e))?;
    listener.local_addr().map_err(Failure::from)
}

/// Refuses an address that another process listens on.
///
/// # Errors
/// Says which port, and whose it is if that can be seen.
pub fn require_free(address: SocketAddr, option: &str) -> Result<(), Failure> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(e) => Err(refused(address, &e).hint(format!(
            "end it, or choose another address with {option}; `ss -ltnp 'sport = :{}'` shows more",
            address.port()
        ))),
    }
}

fn refused(address: SocketAddr, error: &std::io::Error) -> Failure {
    if error.kind() != std::io::ErrorKind::AddrInUse {
        return Failure::new(NOT_ALL, format!("cannot listen on {address}: {error}"));
    }
    let whose = owner(address.port()).map_or_else(
        || "another process has it (of another user, or it cannot be seen from here)".to_owned(),
        |(pid, name)| format!("process {pid} ({name}) has it"),
    );
    Failure::new(
        NOT_ALL,
        format!("port {} of {} is in use", address.port(), address.ip()),
    )
    .detail(whose)
}

/// The process that listens on a port of any address, if it can be seen.
fn owner(port: u16) -> Option<(u32, String)> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|table| listening(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        for file in files.flatten() {
            let target = std::fs::read_link(file.path()).unwrap_or_default();
            if inodes.iter().any(|i| target.as_os_str() == i.as_str()) {
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                return Some((pid, muster_protocol::text::printable(name.trim(), 40)));
            }
        }
    }
    None
}

/// Inodes of the sockets that listen on a port, from the kernel's table.
fn listening(table: &str, port: u16) -> Vec<String> {
    let wanted = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .filter(|fields| {
            // 0A is LISTEN.
            fields.get(1).is_some_and(|local| local.ends_with(&wanted))
                && fields.get(3) == Some(&"0A")
        })
        .filter_map(|fields| fields.get(9).map(|inode| (*inode).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::Paint;

    #[test]
    fn a_port_in_use_names_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = listener.local_addr().expect("address");
        let error = require_free(address, "--listen").expect_err("in use");
        let text = error.render(Paint::plain());
        assert!(
            text.contains(&format!("port {} of 127.0.0.1 is in use", address.port())),
            "{text}"
        );
        assert!(
            text.contains(&format!("process {}", std::process::id())),
            "{text}"
        );
        drop(listener);
        // Between fork and exec, a process that another test starts has it too.
        let free = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            require_free(address, "--listen").is_ok()
        });
        assert!(free);
        assert_ne!(
            choose("127.0.0.1:0".parse().expect("address"))
                .expect("free")
                .port(),
            0
        );
    }
}
