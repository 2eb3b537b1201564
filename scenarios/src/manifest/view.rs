//! A manifest as it is shown: the same over HTTP and on a terminal.

use muster_protocol::api::{BudgetView, FunctionView, ManifestView, ParamView};

use super::{MAIN, Manifest, RUN, Shape};

impl Manifest {
    /// All of it, as it is shown.
    #[must_use]
    pub fn view(&self) -> ManifestView {
        ManifestView {
            about: self.about.clone(),
            runs: match self.shape {
                Shape::Main => MAIN,
                Shape::Run => RUN,
            }
            .to_owned(),
            params: self
                .params
                .iter()
                .map(|param| ParamView {
                    name: param.name.clone(),
                    kind: param.kind.as_str().to_owned(),
                    rule: param.rule(),
                    required: param.required,
                    default: param.default.as_ref().map(|value| value.json().clone()),
                    secret: param.secret,
                    help: param.help.clone(),
                })
                .collect(),
            sets: self
                .sets()
                .map(|(name, predicate)| (name.to_owned(), predicate.map(|p| p.text().to_owned())))
                .collect(),
            confirm: self.confirm,
            approvals: self.approvals,
            batch: self.batch,
            max_failures: self
                .budgets
                .iter()
                .map(|budget| BudgetView {
                    most: budget.amount,
                    by: budget.by.clone(),
                })
                .collect(),
            timeout: self.timeout,
            retry: self.retry,
            locks: self.locks.iter().cloned().collect(),
            windows: self.windows.iter().map(ToString::to_string).collect(),
            idempotent: self.idempotent.iter().map(ToString::to_string).collect(),
            allow_check: self.allow_check,
            functions: self
                .functions
                .iter()
                .map(|function| FunctionView {
                    name: function.name.clone(),
                    params: function.params.clone(),
                    doc: function.doc.clone(),
                })
                .collect(),
            tests: self.tests().map(str::to_owned).collect(),
        }
    }
}
