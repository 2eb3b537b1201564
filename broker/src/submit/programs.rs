//! Where the scenarios come from that runs are made of.

use futures_util::future::BoxFuture;
use muster_protocol::names::ScenarioName;
use muster_protocol::problem::{Kind, Problem};

use super::Refused;
use crate::runs::Program;

/// The stored scenarios, as far as runs are made of them.
pub trait Programs: Send + Sync {
    /// A scenario, at that version or as it is now.
    fn load<'a>(
        &'a self,
        name: &'a ScenarioName,
        version: Option<u32>,
    ) -> BoxFuture<'a, Result<Program, Refused>>;
}

/// None at all.
#[derive(Clone, Copy, Debug)]
pub struct NoPrograms;

impl Programs for NoPrograms {
    fn load<'a>(
        &'a self,
        name: &'a ScenarioName,
        _: Option<u32>,
    ) -> BoxFuture<'a, Result<Program, Refused>> {
        let title = format!("there is no scenario `{name}`; nothing was run");
        let problem = Problem::new(Kind::NotFound, title)
            .hint("muster scenario list says what there is");
        Box::pin(async move { Err(Box::new(problem)) })
    }
}
