//! A hypervisor as a node of a cluster: its agent runs where its libvirt is.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::hypervisor::{Hypervisor, Inside};
use crate::{Up, bin, finish};

/// An invite's token, for a node of that name.
///
/// # Errors
/// When the broker gives none.
pub fn invite(up: &Up, name: &str, args: &[&str]) -> Result<String> {
    let ask = ["node", "invite", "--json", "--name", name];
    let said = up.muster(&[&ask[..], args].concat());
    ensure!(said.code == 0, "no invite: {}", said.err);
    let lines = said.json_lines();
    let token = lines.first().map(|line| &line["invites"][0]["token"]);
    let token = token.and_then(|token| token.as_str());
    Ok(token.context("no token in the answer")?.to_owned())
}

impl Hypervisor {
    /// Enrols its agent under its name, with the role `hypervisor` and these
    /// labels (`zone=gva2`).
    ///
    /// # Errors
    /// When it does not get in.
    pub fn enrol(&self, up: &Up, labels: &[&str]) -> Result<()> {
        let mut args = vec!["--role", "hypervisor"];
        args.extend(labels.iter().flat_map(|label| ["--label", label]));
        let token = invite(up, self.name(), &args)?;
        let mut command = self.command(bin("muster-agent"));
        command
            .args(["enroll", "--url", &up.url(), "--state"])
            .arg(self.dir().join("agent/state"))
            .env("MUSTER_ENROLL_TOKEN", token);
        let said = finish(command);
        ensure!(
            said.code == 0,
            "{} does not enrol: {}",
            self.name(),
            said.err
        );
        Ok(())
    }

    /// Starts its agent, which is enrolled, with that configuration (TOML) and
    /// those variables of the environment.
    ///
    /// # Errors
    /// When it does not start.
    pub fn run_agent(&self, config: &str, env: &[(&str, &str)]) -> Result<Inside> {
        let file = self.dir().join("agent/agent.toml");
        fs::write(&file, config)?;
        let state = self.dir().join("agent/state");
        let args = [
            "run".as_ref(),
            "--state".as_ref(),
            state.as_os_str(),
            "--config".as_ref(),
            file.as_os_str(),
        ];
        self.spawn(&bin("muster-agent"), &args, env)
    }
}
