//! From the arguments to the end of the input.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use muster_libvirt::message::{Failure, FailureKind};
use muster_protocol::vm::VmId;
use virt::connect::Connect;
use virt::{error, event};

use crate::host::Host;
use crate::input::{self, Line};
use crate::{out, sys};

/// How often libvirt is asked whether it is there, and how often it may keep
/// silent: 15 seconds.
const KEEPALIVE: (i32, u32) = (5, 3);

/// The whole program.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(uri) = uri(arguments) else {
        out::complain("started by the agent as: muster-libvirt --connect URI");
        return ExitCode::from(2);
    };
    let host = Host::new(connect(&uri).unwrap_or_else(|error| out::lost(error.message())));
    out::ready();
    let mut lines = io::stdin().lock();
    loop {
        match input::next(&mut lines) {
            Ok(Line::Whole(line)) => answer(&host, &line),
            Ok(Line::TooLong) => {
                let most = input::MAX_LINE;
                out::complain(&format!("a line of more than {most} bytes is not read"));
            }
            Ok(Line::End) | Err(_) => return ExitCode::SUCCESS,
        }
    }
}

fn uri(mut arguments: impl Iterator<Item = OsString>) -> Option<String> {
    let connect = arguments.next()? == "--connect";
    let uri = arguments.next()?.into_string().ok()?;
    (connect && arguments.next().is_none()).then_some(uri)
}

fn connect(uri: &str) -> Result<Connect, error::Error> {
    // libvirt prints every error to stderr unless it is told where to go.
    error::clear_error_callback();
    // Before the connection: it is part of the loop.
    event::event_register_default_impl()?;
    std::thread::spawn(|| {
        loop {
            if let Err(error) = event::event_run_default_impl() {
                out::lost(error.message());
            }
        }
    });
    let connection = Connect::open(Some(uri))?;
    sys::follow::<Agent>(&connection)?;
    // Where there is no daemon there is nothing to ask.
    let _ = connection.set_keep_alive(KEEPALIVE.0, KEEPALIVE.1);
    Ok(connection)
}

/// The agent is told what happens.
struct Agent;

impl sys::Told for Agent {
    fn event(uuid: VmId, what: &'static str) {
        out::event(uuid, what);
    }

    fn closed(why: &'static str) {
        out::lost(why);
    }
}

fn answer(host: &Host, line: &[u8]) {
    let asked = match input::parse(line) {
        Ok(asked) => asked,
        Err(error) => {
            let message = error.to_string();
            let Some(id) = error.id else {
                return out::complain(&message);
            };
            let kind = FailureKind::Other;
            return out::answer(id, Err(Failure { kind, message }));
        }
    };
    let result = host.call(asked.call);
    let lost = match &result {
        Err(failure) if failure.kind == FailureKind::Lost => Some(failure.message.clone()),
        _ => None,
    };
    out::answer(asked.id, result);
    if let Some(why) = lost {
        out::lost(&why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_starts_it_with_an_address() {
        let uri = |arguments: &[&str]| uri(arguments.iter().map(OsString::from));
        let good = Some("test:///default".to_owned());
        assert_eq!(uri(&["--connect", "test:///default"]), good);
        assert_eq!(uri(&["--connect"]), None);
        assert_eq!(uri(&["test:///default"]), None);
        assert_eq!(uri(&["--connect", "a", "b"]), None);
        assert_eq!(uri(&[]), None);
    }
}
