//! Real IRC networks on this machine: a server, services where it has them,
//! in a directory of their own, ended when dropped.

mod bot;
mod conf;
mod person;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use sha2::{Digest as _, Sha256};

pub use bot::{Bot, private};
pub use person::Person;

use crate::{free_port, wait_for};

/// How often a server is started with other ports, when somebody was quicker
/// to take one.
const STARTS: usize = 5;

/// Says that a test did not test anything here, past the test runner's
/// capture of what tests print, with how many there were.
pub fn skipped(what: &str, why: &str) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let _ = writeln!(std::io::stderr(), "SKIPPED ({n}): {what}: {why}");
}

/// Where a program of the system is; servers are often not on a person's PATH.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([
            "/usr/sbin".into(),
            "/usr/bin".into(),
            "/usr/local/sbin".into(),
        ])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A program that is ended with this.
#[derive(Debug)]
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let out = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .spawn()
            .with_context(|| format!("{command:?} does not start"))?;
        Ok(Self { child, log })
    }

    fn is_over(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What runs the network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// InspIRCd with Atheme: accounts, tags, labels.
    Inspircd,
    /// ngIRCd: none of that.
    Ngircd,
}

/// A network that runs.
#[derive(Debug)]
pub struct IrcNetwork {
    kind: Kind,
    dir: PathBuf,
    port: u16,
    tls_port: u16,
    link_port: u16,
    server: Option<Server>,
    services: Option<Server>,
}

impl IrcNetwork {
    /// InspIRCd with the services Atheme, in that directory. `None`, said as
    /// skipped, where they are not installed.
    ///
    /// # Errors
    /// When they do not start; what they said is in the error.
    pub fn inspircd(dir: &Path, what: &str) -> Result<Option<Self>> {
        for name in ["inspircd", "atheme-services"] {
            if program(name).is_none() {
                let why = format!("{name} is not installed (apt-get install {name})");
                skipped(what, &why);
                return Ok(None);
            }
        }
        certificates(dir)?;
        Self::start(Kind::Inspircd, dir).map(Some)
    }

    /// ngIRCd, in that directory. `None`, said as skipped, where it is not
    /// installed.
    ///
    /// # Errors
    /// When it does not start; what it said is in the error.
    pub fn ngircd(dir: &Path, what: &str) -> Result<Option<Self>> {
        if program("ngircd").is_none() {
            skipped(what, "ngircd is not installed (apt-get install ngircd)");
            return Ok(None);
        }
        Self::start(Kind::Ngircd, dir).map(Some)
    }

    fn start(kind: Kind, dir: &Path) -> Result<Self> {
        let mut last = String::new();
        for _ in 0..STARTS {
            let mut network = Self {
                kind,
                dir: dir.to_owned(),
                port: free_port()?,
                tls_port: free_port()?,
                link_port: free_port()?,
                server: None,
                services: None,
            };
            match network.start_server() {
                Ok(()) => {
                    if kind == Kind::Inspircd {
                        network.start_services()?;
                    }
                    return Ok(network);
                }
                Err(error) => last = format!("{error:#}"),
            }
        }
        bail!("{last}")
    }

    /// The port of the server, on 127.0.0.1, without TLS.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port with TLS, and the file of the authority that signed the
    /// server's certificate, which is for `irc.test` and 127.0.0.1. Not on
    /// ngIRCd.
    #[must_use]
    pub fn tls(&self) -> Option<(u16, PathBuf)> {
        (self.kind == Kind::Inspircd).then(|| (self.tls_port, self.dir.join("ca.pem")))
    }

    /// Starts the server, after [`IrcNetwork::stop_server`] on the same ports.
    ///
    /// # Errors
    /// When it does not start; what it said is in the error.
    pub fn start_server(&mut self) -> Result<()> {
        let mut command = match self.kind {
            Kind::Inspircd => {
                let file = self.dir.join("inspircd.conf");
                std::fs::create_dir_all(self.dir.join("data"))?;
                let conf = conf::inspircd(&self.dir, self.port, self.tls_port, self.link_port);
                std::fs::write(&file, conf)?;
                let mut command = Command::new(program("inspircd").context("it was there")?);
                command
                    .arg("--config")
                    .arg(file)
                    .args(["--nofork", "--nopid"]);
                if rustix::process::geteuid().is_root() {
                    command.arg("--runasroot");
                }
                command
            }
            Kind::Ngircd => {
                let file = self.dir.join("ngircd.conf");
                std::fs::write(&file, conf::ngircd(self.port))?;
                let mut command = Command::new(program("ngircd").context("it was there")?);
                command.arg("-n").arg("-f").arg(file);
                command
            }
        };
        let mut server = Server::start(&mut command, self.dir.join("server.log"))?;
        let port = self.port;
        let up = wait_for("an IRC server", || {
            if server.is_over() {
                return Some(false);
            }
            std::net::TcpStream::connect(("127.0.0.1", port))
                .ok()
                .map(|_| true)
        });
        ensure!(
            matches!(up, Ok(true)),
            "the IRC server: {up:?}: {}",
            server.log()
        );
        self.server = Some(server);
        Ok(())
    }

    /// Kills the server.
    pub fn stop_server(&mut self) {
        self.server = None;
    }

    /// Starts the services, and waits until one can log in.
    ///
    /// # Errors
    /// When they do not start; what they said is in the error.
    pub fn start_services(&mut self) -> Result<()> {
        let dir = self.dir.join("services");
        std::fs::create_dir_all(&dir)?;
        let file = dir.join("atheme.conf");
        std::fs::write(&file, conf::atheme(self.link_port))?;
        let mut command = Command::new(program("atheme-services").context("it was there")?);
        command.arg("-n").arg("-c").arg(file).arg("-D").arg(&dir);
        command
            .arg("-l")
            .arg(dir.join("log"))
            .arg("-p")
            .arg(dir.join("pid"));
        let mut services = Server::start(&mut command, self.dir.join("services.log"))?;
        let port = self.port;
        let up = wait_for("IRC services", || {
            if services.is_over() {
                return Some(false);
            }
            let offers = Person::offers(port).unwrap_or_default();
            offers.contains("sasl=").then_some(true)
        });
        ensure!(
            matches!(up, Ok(true)),
            "IRC services: {up:?}: {}",
            services.log()
        );
        self.services = Some(services);
        Ok(())
    }

    /// Kills the services, and waits until nobody can log in. They forget all
    /// accounts: they write them down once an hour.
    ///
    /// # Errors
    /// When the server does not see it.
    pub fn stop_services(&mut self) -> Result<()> {
        self.services = None;
        let port = self.port;
        wait_for("the server to see that services are gone", || {
            let offers = Person::offers(port).ok()?;
            (!offers.contains("sasl=")).then_some(())
        })
    }

    /// Registers an account with services, by somebody of that name.
    ///
    /// # Errors
    /// When services refuse it.
    pub fn account(&self, name: &str, password: &str) -> Result<()> {
        let mut person = self.person(name)?;
        person.say(
            "NickServ",
            &format!("REGISTER {password} {name}@example.com"),
        )?;
        person.waits("an account", |line| line.contains("is now registered"))?;
        person.quit()
    }

    /// A new certificate that logs in to that account without a password: the
    /// names of its file and of the file of its key, in that directory.
    ///
    /// # Errors
    /// When services refuse it.
    pub fn certificate(
        &self,
        dir: &Path,
        account: &str,
        password: &str,
    ) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let cert = CertificateParams::new([account.to_owned()])?.self_signed(&key)?;
        let files = (dir.join("client.pem"), dir.join("client-key.pem"));
        std::fs::write(&files.0, cert.pem())?;
        std::fs::write(&files.1, key.serialize_pem())?;
        std::fs::set_permissions(&files.1, std::fs::Permissions::from_mode(0o600))?;
        let print = data_encoding::HEXLOWER.encode(&Sha256::digest(cert.der()));
        let mut person = self.person_as("certificates", account, password)?;
        person.say("NickServ", &format!("CERT ADD {print}"))?;
        person.hears(&["Added fingerprint"])?;
        person.quit()?;
        Ok(files)
    }

    /// Somebody who is not logged in.
    ///
    /// # Errors
    /// When the server does not take them.
    pub fn person(&self, nick: &str) -> Result<Person> {
        Person::connect(self.port, nick, None)
    }

    /// Somebody who is logged in to that account, by SASL.
    ///
    /// # Errors
    /// When the server or services do not take them.
    pub fn person_as(&self, nick: &str, account: &str, password: &str) -> Result<Person> {
        Person::connect(self.port, nick, Some((account, password)))
    }

    /// What the programs said, for the message of a failed test.
    #[must_use]
    pub fn logs(&self) -> String {
        let all = [&self.server, &self.services];
        all.into_iter().flatten().map(Server::log).collect()
    }
}

/// An authority (`ca.pem`) and a certificate of it for the server.
fn certificates(dir: &Path) -> Result<()> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let names = ["irc.test", "127.0.0.1"].map(str::to_owned);
    let cert = CertificateParams::new(names)?.signed_by(&key, &ca)?;
    std::fs::write(dir.join("ca.pem"), ca.pem())?;
    std::fs::write(dir.join("cert.pem"), cert.pem())?;
    std::fs::write(dir.join("key.pem"), key.serialize_pem())?;
    Ok(())
}
