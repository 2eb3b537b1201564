//! Nodes with an apt and a dpkg of their own, a service manager that writes
//! down what it is told, and an application that answers on a port: as many
//! machines as a rolling upgrade needs, on one.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use muster_tests::Up;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why this machine cannot do it; `None` where it can.
pub(super) fn lacks() -> Option<&'static str> {
    let has = |program: &str| {
        let mut dirs = PATH.split(':').map(Path::new);
        dirs.any(|dir| dir.join(program).exists())
    };
    if !rustix::process::geteuid().is_root() {
        return Some("apt and dpkg want root");
    }
    if !has("apt-get") || !has("dpkg-deb") {
        return Some("apt and dpkg are not here");
    }
    None
}

/// A place with a package repository and machines.
pub(super) struct Plant {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Plant {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("repo")).expect("made");
        Self {
            dir,
            stop: Arc::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(&path, text).expect("written");
        path
    }

    /// What the machines were told, in order: `web-01 systemctl restart …`.
    pub(super) fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(super) fn forget(&self) {
        let _ = fs::remove_file(self.path("log"));
    }

    /// The version of the application on that machine.
    pub(super) fn version(&self, node: &str) -> String {
        let file = self.path(node).join("root/usr/share/webapp");
        fs::read_to_string(file).unwrap_or_default()
    }

    /// A version of the application that does not come up well on one machine.
    pub(super) fn breaks(&self, node: &str, version: &str) {
        self.write(&format!("{node}/breaks"), version);
    }

    /// Puts a version of the application into the repository.
    pub(super) fn publish(&self, version: &str) {
        self.write(
            "tree/DEBIAN/control",
            &format!(
                "Package: webapp\nVersion: {version}\nArchitecture: all\n\
                 Maintainer: A <a@example.org>\nDescription: answers\n"
            ),
        );
        self.write("tree/usr/share/webapp", version);
        let repo = self.path("repo");
        must(
            "dpkg-deb",
            &["--build", "--root-owner-group", "../tree", "."],
            &repo,
        );
        let mut index = String::new();
        for file in fs::read_dir(&repo).expect("read").flatten() {
            let file = file.file_name().to_string_lossy().into_owned();
            if !file.ends_with(".deb") {
                continue;
            }
            let fields = must("dpkg-deb", &["-f", &file], &repo);
            let sum = must("sha256sum", &[&file], &repo);
            let size = fs::metadata(repo.join(&file)).expect("there").len();
            index.push_str(&format!(
                "{fields}Filename: ./{file}\nSize: {size}\nSHA256: {}\n\n",
                &sum[..64]
            ));
        }
        fs::write(repo.join("Packages"), index).expect("written");
    }

    /// Makes a machine and gives its agent the configuration for it; the port
    /// that its application answers on.
    pub(super) fn machine(&self, up: &Up, node: &str) -> u16 {
        for dir in [
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/sources.list.d",
            "etc/apt/trusted.gpg.d",
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives/partial",
            "var/log/apt",
            "var/lib/dpkg/updates",
            "var/lib/dpkg/info",
        ] {
            fs::create_dir_all(self.path(node).join("root").join(dir)).expect("made");
        }
        self.write(
            &format!("{node}/root/var/lib/dpkg/status"),
            "Package: dpkg\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\
             Maintainer: A <a@example.org>\nDescription: itself\n\n",
        );
        let root = self.path(node).join("root").display().to_string();
        self.write(
            &format!("{node}/root/etc/apt/sources.list"),
            &format!(
                "deb [trusted=yes] copy:{} ./\n",
                self.path("repo").display()
            ),
        );
        let apt = self.write(
            &format!("{node}/apt.conf"),
            &format!(
                "Dir \"{root}\";\nDir::State::status \"{root}/var/lib/dpkg/status\";\n\
                 Dir::Log \"{root}/var/log/apt\";\nAPT::Architecture \"all\";\n\
                 APT::Architectures {{ \"all\"; }};\nAPT::Sandbox::User \"root\";\n\
                 Acquire::Languages \"none\";\n\
                 DPkg::Options {{ \"--root={root}\"; \"--log=/dev/null\"; }};\n"
            ),
        );
        let log = self.path("log").display().to_string();
        self.program(
            node,
            "systemctl",
            &format!(
                "shift 2\nif [ \"$1\" = show ]; then\n\
                 printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\nResult=success\\n\
                 UnitFileState=enabled\\nCanReload=yes\\nNeedDaemonReload=no\\n'\n\
                 else echo \"{node} $1 $3\" >> {log}; fi"
            ),
        );
        for verb in ["drain", "restore"] {
            self.program(node, verb, &format!("echo \"{node} {verb} $*\" >> {log}"));
        }
        let mut environment = toml_table([
            ("APT_CONFIG", apt.display().to_string()),
            ("DPKG_ADMINDIR", format!("{root}/var/lib/dpkg")),
        ]);
        environment.push_str(&format!(
            "PATH = '{}:{PATH}'\n",
            self.path(node).join("bin").display()
        ));
        let config = up.state().join("agents").join(format!("{node}.toml"));
        let mut text = fs::read_to_string(&config).expect("the agent's configuration");
        text.push_str(&format!("\n[command.environment]\n{environment}"));
        fs::write(&config, text).expect("written");
        self.serve(node)
    }

    fn program(&self, node: &str, name: &str, script: &str) {
        let path = self.write(
            &format!("{node}/bin/{name}"),
            &format!("#!/bin/sh\n{script}\n"),
        );
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    /// The application: it is well when there is a version of it that does
    /// not break here.
    fn serve(&self, node: &str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (version, breaks) = (
            self.path(node).join("root/usr/share/webapp"),
            self.path(node).join("breaks"),
        );
        let stop = Arc::clone(&self.stop);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
                while lines.next().is_some_and(|l| l.is_ok_and(|l| !l.is_empty())) {}
                let runs = fs::read_to_string(&version).unwrap_or_default();
                let broken = fs::read_to_string(&breaks).is_ok_and(|b| b == runs);
                let status = if runs.is_empty() || broken {
                    "503 Service Unavailable"
                } else {
                    "200 OK"
                };
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{runs}",
                    runs.len()
                );
            }
        });
        port
    }
}

fn toml_table<const N: usize>(pairs: [(&str, String); N]) -> String {
    pairs
        .map(|(key, value)| format!("{key} = '{value}'\n"))
        .concat()
}

fn must(program: &str, arguments: &[&str], dir: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .output()
        .expect("it starts");
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}
