//! Scenarios that run for a machine's record and for nobody else: by hand they
//! would make, change or take away a machine behind its record's back.

use muster_protocol::envelope::Mode;
use muster_protocol::ids::RunId;
use muster_protocol::names::ScenarioName;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::RunSpec;

use super::keep::Records;

/// Which runs records of machines want now.
pub trait Wanted: Send + Sync {
    /// Whether a machine's record wants a run of that scenario under that id.
    fn wants(&self, run: RunId, scenario: &ScenarioName) -> bool;
}

impl Wanted for Records {
    fn wants(&self, run: RunId, scenario: &ScenarioName) -> bool {
        let held = self.by_run(run);
        let wanted = held.and_then(|held| held.vm.wanted());
        wanted.is_some_and(|(id, request)| id == run && request.scenario == *scenario)
    }
}

/// What a person types in place of a scenario that is a record's alone. Those
/// that only look at a machine, or do something in it, are anybody's.
#[must_use]
pub fn instead(scenario: &ScenarioName) -> Option<&'static str> {
    Some(match scenario.as_str() {
        "vm-create" => "muster vm create NAME",
        "vm-destroy" => "muster vm destroy NAME",
        "vm-undelete" => "muster vm undelete NAME",
        "vm-power" => "muster vm start, stop or reboot NAME",
        "vm-resize" => "muster vm resize NAME",
        "vm-snapshot" => "muster vm snapshot or restore NAME",
        _ => return None,
    })
}

/// Refuses a run that no record wants. A dry run does nothing, whoever asks.
///
/// # Errors
/// [`Problem`]: what to type in its place.
pub fn judge(spec: &RunSpec, records: &dyn Wanted) -> Result<(), Box<Problem>> {
    let Some(verb) = instead(&spec.scenario) else {
        return Ok(());
    };
    if spec.mode == Mode::Check || records.wants(spec.id, &spec.scenario) {
        return Ok(());
    }
    let title = format!(
        "`{}` runs for the record of a machine alone: by hand it would change the machine behind its record's back; nothing was run",
        spec.scenario
    );
    let hint = format!("type {verb}");
    Err(Box::new(
        Problem::new(Kind::InvalidRequest, title).hint(hint),
    ))
}
