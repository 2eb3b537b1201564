//! The agent's side of the conversation.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use muster_libvirt::message::{Asked, Call, Failure, FailureKind, Reply, Said};
use muster_protocol::vm::VmId;

/// Longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Said>,
    events: Vec<(VmId, String)>,
    next: u64,
}

impl Program {
    /// Starts it, without waiting for anything.
    pub(crate) fn spawn(uri: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_muster-libvirt"))
            .args(["--connect", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let said = serde_json::from_str(&line).expect("what a program says");
                if sender.send(said).is_err() {
                    return;
                }
            }
        });
        Self {
            input: child.stdin.take(),
            child,
            output,
            events: Vec::new(),
            next: 1,
        }
    }

    /// Starts it, and waits until it is connected.
    pub(crate) fn start(uri: &str) -> Self {
        let mut program = Self::spawn(uri);
        assert_eq!(program.said(), Some(Said::Ready));
        program
    }

    /// The next thing it says; none when it says nothing more.
    pub(crate) fn said(&mut self) -> Option<Said> {
        use std::sync::mpsc::RecvTimeoutError as Why;
        match self.output.recv_timeout(PATIENCE) {
            Ok(said) => Some(said),
            Err(Why::Disconnected) => None,
            Err(Why::Timeout) => panic!("the program says nothing"),
        }
    }

    pub(crate) fn write(&mut self, line: &[u8]) {
        let input = self.input.as_mut().expect("open");
        input.write_all(line).expect("it reads");
        input.write_all(b"\n").expect("it reads");
        input.flush().expect("it reads");
    }

    pub(crate) fn ask(&mut self, call: Call) -> u64 {
        let id = self.next;
        self.next += 1;
        let line = serde_json::to_vec(&Asked { id, call }).expect("JSON");
        self.write(&line);
        id
    }

    pub(crate) fn answer(&mut self, id: u64) -> Result<Reply, Failure> {
        loop {
            match self.said().expect("an answer") {
                Said::Answer { id: of, result } => {
                    assert_eq!(of, id);
                    return result;
                }
                Said::Event { uuid, what } => self.events.push((uuid, what)),
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn call(&mut self, call: Call) -> Result<Reply, Failure> {
        let id = self.ask(call);
        self.answer(id)
    }

    /// What must be well.
    #[track_caller]
    pub(crate) fn get(&mut self, call: Call) -> Reply {
        let said = format!("{call:?}");
        self.call(call)
            .unwrap_or_else(|failure| panic!("{said}: {failure:?}"))
    }

    #[track_caller]
    pub(crate) fn done(&mut self, call: Call) {
        assert_eq!(self.get(call), Reply::Done);
    }

    /// What must not be.
    #[track_caller]
    pub(crate) fn fails(&mut self, call: Call, kind: FailureKind) -> String {
        let said = format!("{call:?}");
        match self.call(call) {
            Ok(reply) => panic!("{said}: {reply:?}"),
            Err(failure) => {
                assert_eq!(failure.kind, kind, "{said}: {failure}");
                failure.message
            }
        }
    }

    #[track_caller]
    pub(crate) fn domain(&mut self, uuid: VmId) -> muster_libvirt::message::Domain {
        match self.get(Call::Domain { uuid }) {
            Reply::Domain(Some(domain)) => domain,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until this has happened to that one, since the last such wait.
    pub(crate) fn event(&mut self, uuid: VmId, what: &str) {
        loop {
            let wanted = |(of, is): &(VmId, String)| *of == uuid && is == what;
            if let Some(at) = self.events.iter().position(wanted) {
                self.events.drain(..=at);
                return;
            }
            match self.said().expect("an event") {
                Said::Event { uuid, what } => self.events.push((uuid, what)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Nothing more is asked.
    pub(crate) fn hang_up(&mut self) {
        self.input = None;
    }

    /// Waits until it ends.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(since.elapsed() < PATIENCE, "the program does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
