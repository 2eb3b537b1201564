//! `muster vm provision`: a scenario configures a machine.

use std::time::Duration;

use clap::Args;
use muster_client::{Client, Reference};
use muster_protocol::api::{Configure, VmAction, VmView};
use muster_protocol::ids::RunId;
use muster_protocol::names::{ScenarioName, VmName};
use muster_protocol::run::RunPhase;
use muster_protocol::text::printable;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use super::wait::{LOOK, SETTLED_WITHIN, Steps, found, wait};
use crate::Context;
use crate::failure::{CANCELLED, Failure, NOT_ALL};

/// How long what configures a machine may take to begin: it waits while
/// everything is frozen, say.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

/// Arguments of `muster vm provision`.
#[derive(Args, Debug)]
pub struct ProvisionArgs {
    /// Its name
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// What configures it from now on [default: what is recorded]
    #[arg(value_name = "SCENARIO")]
    pub scenario: Option<ScenarioName>,
    /// A parameter of the scenario; may be repeated
    #[arg(
        short,
        long = "param",
        value_name = "NAME=VALUE",
        requires = "scenario"
    )]
    pub params: Vec<String>,
    /// Do not wait for its end
    #[arg(long)]
    pub detach: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// A scenario with its parameters, as they were typed.
///
/// # Errors
/// [`Failure`]: one of them is no parameter.
pub(super) fn configure(
    scenario: Option<&ScenarioName>,
    params: &[String],
) -> Result<Option<Configure>, Failure> {
    let Some(scenario) = scenario else {
        return Ok(None);
    };
    let mut all = Map::new();
    for param in params {
        let Some((name, value)) = param.split_once('=') else {
            let shown = printable(param, 60);
            return Err(Failure::usage(format!("`--param {shown}` names no value"))
                .hint("write it like --param version=1.4.2"));
        };
        let value = Value::String(value.to_owned());
        if all.insert(name.to_owned(), value).is_some() {
            let shown = printable(name, 60);
            return Err(Failure::usage(format!(
                "the parameter `{shown}` is given twice"
            )));
        }
    }
    Ok(Some(Configure {
        scenario: scenario.clone(),
        params: all,
    }))
}

/// Configures a machine, and waits until that has ended.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(context: &Context, args: &ProvisionArgs) -> Result<u8, Failure> {
    let action = VmAction::Provision {
        configure: configure(args.scenario.as_ref(), &args.params)?,
    };
    let client = context.client()?;
    let changed = client.act_on_vm(&args.name, &action).await?;
    if args.detach {
        if args.json {
            context.term.json(&changed)?;
        } else {
            let run = changed.run.map(|run| run.prefix(8).to_owned());
            let run = run.unwrap_or_default();
            context.term.line(&format!("{}  run {run}", args.name))?;
        }
        return Ok(0);
    }
    let (vm, failure) = configured(context, &client, changed.vm, args.json).await?;
    if args.json {
        context.term.json(&vm)?;
    }
    failure.map_or(Ok(0), Err)
}

/// Waits until a machine is configured, and says so; or why it is not.
///
/// # Errors
/// [`Failure`]: it goes on, but cannot be seen.
pub(super) async fn configured(
    context: &Context,
    client: &Client,
    mut vm: VmView,
    quiet: bool,
) -> Result<(VmView, Option<Failure>), Failure> {
    let Some(begun) = vm.configured.clone() else {
        return Ok((vm, None));
    };
    if begun.state.is_none() {
        if !quiet {
            let short = begun.run.prefix(4);
            let text = format!("run {short}  {} configures {}", begun.scenario, vm.name);
            context.term.note(&text);
        }
        vm = ended(context, client, &vm.name, begun.run).await?;
    }
    let Some(now) = vm.configured.clone() else {
        return Ok((vm, None));
    };
    let name = &vm.name;
    let failure = match now.state {
        Some(RunPhase::Succeeded) => {
            if !quiet {
                context
                    .term
                    .line(&format!("{name} is configured by {}", now.scenario))?;
            }
            None
        }
        None => {
            let text = format!(
                "{name} is up, and {} has not configured it yet",
                now.scenario
            );
            let hint = format!("it goes on by itself; muster vm show {name} says how it is");
            let why = now.why.as_deref().unwrap_or("its run has not ended");
            Some(
                Failure::new(NOT_ALL, text)
                    .detail(printable(why, 2_000))
                    .hint(hint),
            )
        }
        state => {
            let code = if state == Some(RunPhase::Cancelled) {
                CANCELLED
            } else {
                NOT_ALL
            };
            let text = format!("{name} is up, and {} did not configure it", now.scenario);
            let mut hint = format!("muster vm provision {name} tries it again");
            // There is none where it was refused.
            if found(client.run(&Reference::from(now.run)).await)?.is_some() {
                let run = now.run.prefix(8);
                hint = format!("muster runs show {run} has all of it; {hint}");
            }
            let why = now.why.as_deref().unwrap_or("no reason is known");
            Some(
                Failure::new(code, text)
                    .detail(printable(why, 2_000))
                    .hint(hint),
            )
        }
    };
    Ok((vm, failure))
}

/// The machine, once what configures it has ended, or was refused; as it is
/// when that does not begin for long.
async fn ended(
    context: &Context,
    client: &Client,
    name: &VmName,
    run: RunId,
) -> Result<VmView, Failure> {
    let mut since = Instant::now();
    let mut patience = BEGINS_WITHIN;
    let mut over = false;
    loop {
        let vm = client.vm(name).await?;
        let now = vm.configured.as_ref();
        let open = now.is_some_and(|now| now.run == run && now.state.is_none());
        if !open || since.elapsed() > patience {
            return Ok(vm);
        }
        // It is asked for a moment after the machine is up, and when it is
        // refused there never is such a run: the machine says that.
        let there = !over && found(client.run(&Reference::from(run)).await)?.is_some();
        if there {
            wait(context, client, run, Steps::Quiet, |_| None).await?;
            (since, patience, over) = (Instant::now(), SETTLED_WITHIN, true);
        } else {
            sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_they_are_typed() {
        let scenario: ScenarioName = "deploy".parse().expect("a name");
        let read = |params: &[&str]| {
            let params: Vec<String> = params.iter().map(|p| (*p).to_owned()).collect();
            configure(Some(&scenario), &params)
        };
        let both = read(&["version=1.4.2", "url=http://a/?b=c"]).expect("they are");
        let both = both.expect("a scenario").params;
        assert_eq!(both["version"], "1.4.2");
        assert_eq!(both["url"], "http://a/?b=c");
        assert!(read(&["version"]).is_err());
        assert!(read(&["a=1", "a=2"]).is_err());
        assert_eq!(configure(None, &[]).expect("nothing"), None);
    }
}
