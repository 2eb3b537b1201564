//! Services, by systemd's `systemctl`.

use std::collections::BTreeMap;

use muster_protocol::envelope::Mode;
use muster_protocol::text::printable;
use muster_scenarios::node::{Change, HostError, Performed, ServiceWish};
use serde_json::Value;

use super::tools::{Tool, ToolError, Tools};

const SYSTEMCTL: &str = "systemctl";
/// What is asked about a unit.
const PROPERTIES: &str =
    "LoadState,ActiveState,SubState,UnitFileState,CanReload,NeedDaemonReload,Result";

/// Why a service is not as it is wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// It can be no unit's name.
    #[error("`{0}` is not the name of a service")]
    Name(String),
    /// There is none.
    #[error("this node has no service `{0}`")]
    Unknown(String),
    /// Somebody has forbidden that it runs.
    #[error("the service is masked, so it cannot be started; `systemctl unmask {0}` allows it")]
    Masked(String),
    /// It cannot reload.
    #[error("the service cannot reload its configuration; use `restarted()`")]
    NoReload,
    /// systemctl failed.
    #[error("systemctl {what}: {complaint}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// What it said.
        complaint: String,
    },
    /// It was started and does not run.
    #[error("it was started but is {state} now ({result}); its log says why")]
    NotRunning {
        /// What it is instead.
        state: String,
        /// How its last run ended.
        result: String,
    },
    /// systemctl did not run to its end.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl From<ServiceError> for HostError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Tool(ToolError::Stopped) => Self::Stopped,
            other => Self::Failed(other.to_string()),
        }
    }
}

struct Unit(BTreeMap<String, String>);

impl Unit {
    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn is_known(&self) -> bool {
        !matches!(self.get("LoadState"), "not-found" | "")
    }

    fn is_active(&self) -> bool {
        matches!(
            self.get("ActiveState"),
            "active" | "activating" | "reloading" | "refreshing"
        )
    }

    fn is_enabled(&self) -> bool {
        // One that others start cannot be enabled, and need not be.
        matches!(
            self.get("UnitFileState"),
            "enabled" | "static" | "indirect" | "generated" | "alias"
        )
    }

    /// `active (running)`.
    fn state(&self) -> String {
        format!("{} ({})", self.get("ActiveState"), self.get("SubState"))
    }
}

/// Has a service so, or says what it would do.
///
/// # Errors
/// [`ServiceError`].
pub fn perform(
    tools: &Tools,
    name: &str,
    wish: ServiceWish,
    mode: Mode,
) -> Result<Performed, ServiceError> {
    let service = Service { tools, name };
    let change = service.ensure(wish, mode)?;
    Ok(Performed {
        change: Some(change),
        value: Value::Null,
    })
}

struct Service<'a> {
    tools: &'a Tools,
    name: &'a str,
}

impl Service<'_> {
    fn ensure(&self, wish: ServiceWish, mode: Mode) -> Result<Change, ServiceError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "@._:\\-".contains(c);
        if self.name.is_empty()
            || self.name.len() > 256
            || self.name.starts_with('-')
            || !self.name.chars().all(plain)
        {
            return Err(ServiceError::Name(printable(self.name, 60)));
        }
        let unit = self.look()?;
        if !unit.is_known() {
            return match (wish, mode) {
                // What is not there neither runs nor starts.
                (ServiceWish::Stopped | ServiceWish::Disabled, _) => Ok(Change::Unchanged),
                // A package that an earlier call would have installed.
                (_, Mode::Check) => Ok(changed(mode, "the service is not there yet")),
                (_, Mode::Apply) => Err(ServiceError::Unknown(printable(self.name, 60))),
            };
        }
        let masked = unit.get("LoadState") == "masked";
        let (verb, summary) = match wish {
            ServiceWish::Running if unit.is_active() => return Ok(Change::Unchanged),
            ServiceWish::Running => ("start", format!("{} → started", unit.get("ActiveState"))),
            ServiceWish::Stopped if matches!(unit.get("ActiveState"), "inactive" | "failed") => {
                return Ok(Change::Unchanged);
            }
            ServiceWish::Stopped => ("stop", format!("{} → stopped", unit.get("ActiveState"))),
            ServiceWish::Restarted => ("restart", "restarted".to_owned()),
            ServiceWish::Reloaded if !unit.is_active() => {
                ("start", format!("{} → started", unit.get("ActiveState")))
            }
            ServiceWish::Reloaded if unit.get("CanReload") != "yes" => {
                return Err(ServiceError::NoReload);
            }
            ServiceWish::Reloaded => ("reload", "reloaded".to_owned()),
            ServiceWish::Enabled if unit.is_enabled() => return Ok(Change::Unchanged),
            ServiceWish::Enabled => ("enable", format!("{} → enabled", unit.get("UnitFileState"))),
            ServiceWish::Disabled
                if !matches!(unit.get("UnitFileState"), "enabled" | "enabled-runtime") =>
            {
                return Ok(Change::Unchanged);
            }
            ServiceWish::Disabled => ("disable", "enabled → disabled".to_owned()),
        };
        if masked && !matches!(verb, "stop" | "disable") {
            return Err(ServiceError::Masked(self.name.to_owned()));
        }
        if mode == Mode::Check {
            return Ok(changed(mode, &summary));
        }
        if unit.get("NeedDaemonReload") == "yes" {
            // Else systemd would start what the file said before.
            self.control("daemon-reload", false)?;
        }
        self.control(verb, true)?;
        if matches!(verb, "start" | "restart") {
            let now = self.look()?;
            // One that does its work and ends is well when it has ended so.
            if !now.is_active() && now.get("Result") != "success" {
                return Err(ServiceError::NotRunning {
                    state: printable(&now.state(), 80),
                    result: printable(now.get("Result"), 80),
                });
            }
        }
        Ok(changed(mode, &summary))
    }

    fn look(&self) -> Result<Unit, ServiceError> {
        let tool = systemctl("show").args([&format!("--property={PROPERTIES}"), "--", self.name]);
        let answer = self.tools.run(tool)?;
        if !answer.is_well() {
            return Err(ServiceError::Failed {
                what: "show",
                complaint: answer.complaint(),
            });
        }
        let all = answer.text();
        let pairs = all.lines().filter_map(|line| line.split_once('='));
        Ok(Unit(
            pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        ))
    }

    fn control(&self, verb: &'static str, named: bool) -> Result<(), ServiceError> {
        let mut tool = systemctl(verb).shown();
        if named {
            tool = tool.args(["--", self.name]);
        }
        let answer = self.tools.run(tool)?;
        if answer.is_well() {
            return Ok(());
        }
        Err(ServiceError::Failed {
            what: verb,
            complaint: answer.complaint(),
        })
    }
}

fn systemctl(verb: &str) -> Tool {
    Tool::new(SYSTEMCTL)
        .args(["--no-pager", "--no-ask-password", verb])
        .env("LC_ALL", "C")
        .env("SYSTEMD_COLORS", "0")
}

fn changed(mode: Mode, summary: &str) -> Change {
    let (summary, diff) = (summary.to_owned(), Vec::new());
    match mode {
        Mode::Apply => Change::Changed { summary, diff },
        Mode::Check => Change::WouldChange { summary, diff },
    }
}

#[cfg(test)]
mod tests;
