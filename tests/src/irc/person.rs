//! Somebody on an IRC network.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use data_encoding::BASE64;

use crate::PATIENCE;

/// A connection of a person: blocking, each wait bounded.
#[derive(Debug)]
pub struct Person {
    stream: TcpStream,
    nick: String,
    bytes: Vec<u8>,
    /// What was read and is not waited for yet.
    lines: VecDeque<String>,
    /// What was passed over, for messages.
    passed: VecDeque<String>,
}

impl Person {
    fn open(port: u16, nick: &str) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            nick: nick.to_owned(),
            bytes: Vec::new(),
            lines: VecDeque::new(),
            passed: VecDeque::new(),
        })
    }

    /// The capabilities that a server offers now.
    pub(super) fn offers(port: u16) -> Result<String> {
        let mut person = Self::open(port, "nobody")?;
        person.send("CAP LS 302")?;
        person.waits("capabilities", |line| line.contains(" LS "))
    }

    /// Connects, logs in where that is asked for, and waits until the server
    /// has greeted.
    ///
    /// # Errors
    /// When the server refuses, or does not answer.
    pub fn connect(port: u16, nick: &str, login: Option<(&str, &str)>) -> Result<Self> {
        let mut person = Self::open(port, nick)?;
        if let Some((account, password)) = login {
            person.send("CAP REQ :sasl")?;
            person.send(&format!("NICK {nick}\r\nUSER {nick} 0 * :{nick}"))?;
            person.waits("sasl", |line| line.contains(" ACK "))?;
            person.send("AUTHENTICATE PLAIN")?;
            person.waits("AUTHENTICATE", |line| line.starts_with("AUTHENTICATE"))?;
            let answer = BASE64.encode(format!("\0{account}\0{password}").as_bytes());
            person.send(&format!("AUTHENTICATE {answer}"))?;
            let end = person.waits("a login", |line| {
                [" 903 ", " 904 ", " 905 "]
                    .iter()
                    .any(|code| line.contains(code))
            })?;
            ensure!(end.contains(" 903 "), "{account} is not logged in: {end}");
            person.send("CAP END")?;
        } else {
            person.send(&format!("NICK {nick}\r\nUSER {nick} 0 * :{nick}"))?;
        }
        person.waits("a greeting", |line| {
            line.contains(" 376 ") || line.contains(" 422 ")
        })?;
        Ok(person)
    }

    /// What they are called.
    #[must_use]
    pub fn nick(&self) -> &str {
        &self.nick
    }

    /// Sends a line as it is.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, line: &str) -> Result<()> {
        self.stream.write_all(format!("{line}\r\n").as_bytes())?;
        Ok(())
    }

    /// Writes something to a channel or person.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn say(&mut self, target: &str, text: &str) -> Result<()> {
        self.send(&format!("PRIVMSG {target} :{text}"))
    }

    /// Goes into a channel.
    ///
    /// # Errors
    /// When the server does not let them in.
    pub fn join(&mut self, channel: &str) -> Result<()> {
        self.send(&format!("JOIN {channel}"))?;
        self.waits("to join", |line| line.contains(" 366 "))
            .map(drop)
    }

    /// Takes another name.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn rename(&mut self, nick: &str) -> Result<()> {
        self.send(&format!("NICK {nick}"))?;
        let line = self.waits("another name", |line| {
            line.contains(" 433 ") || line.split(' ').nth(1) == Some("NICK")
        })?;
        ensure!(!line.contains(" 433 "), "{line}");
        self.nick = nick.to_owned();
        Ok(())
    }

    /// Logs out of services, and stays.
    ///
    /// # Errors
    /// When services do not answer.
    pub fn logout(&mut self) -> Result<()> {
        self.say("NickServ", "LOGOUT")?;
        self.waits("a logout", |line| line.contains(" 901 "))
            .map(drop)
    }

    /// Logs in to services while connected.
    ///
    /// # Errors
    /// When services refuse.
    pub fn login(&mut self, account: &str, password: &str) -> Result<()> {
        self.say("NickServ", &format!("IDENTIFY {account} {password}"))?;
        self.waits("a login", |line| line.contains(" 900 "))
            .map(drop)
    }

    /// Leaves, and waits until the server has seen that.
    ///
    /// # Errors
    /// When the server does not close the connection.
    pub fn quit(mut self) -> Result<()> {
        self.send("QUIT :bye")?;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.read() {
                Ok(()) => {}
                Err(_) => return Ok(()),
            }
        }
        bail!("the server does not let {} go", self.nick)
    }

    /// Waits for the first line that has all of these in it; what comes before
    /// it is passed over.
    ///
    /// # Errors
    /// When there is none in time: with all that came.
    pub fn hears(&mut self, parts: &[&str]) -> Result<String> {
        let what = format!("{parts:?}");
        self.waits(&what, |line| parts.iter().all(|part| line.contains(part)))
    }

    /// Waits for a line; what comes before it is passed over.
    ///
    /// # Errors
    /// When there is none in time: with all that came.
    pub fn waits(&mut self, what: &str, want: impl Fn(&str) -> bool) -> Result<String> {
        let start = Instant::now();
        loop {
            while let Some(line) = self.lines.pop_front() {
                if want(&line) {
                    return Ok(line);
                }
                if self.passed.len() >= 200 {
                    self.passed.pop_front();
                }
                self.passed.push_back(line);
            }
            let read = self.read();
            if self.lines.is_empty() {
                let left = start.elapsed() < PATIENCE;
                ensure!(
                    left && read.is_ok(),
                    "{} waited for {what} ({read:?}): {:#?}",
                    self.nick,
                    self.passed
                );
            }
        }
    }

    /// All that came by the time the server answers to something that is sent
    /// now: what is not in it was not sent to this person before.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn heard_by_now(&mut self) -> Result<Vec<String>> {
        self.send("PING :by-now")?;
        let mut all = Vec::new();
        loop {
            let line = self.waits("an answer", |_| true)?;
            if line.contains(" PONG ") && line.ends_with("by-now") {
                return Ok(all);
            }
            all.push(line);
        }
    }

    fn read(&mut self) -> Result<()> {
        let mut bytes = [0; 8_192];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(n) => self.bytes.extend_from_slice(&bytes[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(e.into()),
        }
        while let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            match line.strip_prefix("PING ") {
                Some(text) => self.send(&format!("PONG {text}"))?,
                None => self.lines.push_back(line),
            }
        }
        Ok(())
    }
}
