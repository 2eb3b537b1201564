//! Failure budgets: over all nodes of a run, and over those with one value of
//! a label.

use std::collections::BTreeMap;

use super::{NodePhase, RunState};
use crate::names::{LabelKey, LabelValue};
use crate::units::Amount;

impl RunState {
    /// Why nothing more is started, when a failure budget is spent.
    pub(super) fn budget_spent(&self) -> Option<String> {
        let options = &self.spec.options;
        let all = || {
            let budget = options.max_failures?;
            let allowed = budget.of_rounded_down(self.order.len());
            let failed = self.tally.failures();
            (failed > allowed)
                .then(|| format!("not started: {failed} failed, the budget was {budget}"))
        };
        // Nothing has to be counted by label before something has failed.
        if self.tally.failures() == 0 {
            return None;
        }
        let by_label = |(label, budget)| self.spent_by(label, budget);
        all().or_else(|| options.max_failures_by.iter().find_map(by_label))
    }

    fn spent_by(&self, label: &LabelKey, budget: &Amount) -> Option<String> {
        let mut domains: BTreeMap<Option<&LabelValue>, (usize, usize)> = BTreeMap::new();
        for node in self.nodes.values() {
            let (all, failed) = domains.entry(node.labels.get(label)).or_default();
            *all += 1;
            if let NodePhase::Done(result) = &node.phase {
                *failed += usize::from(result.outcome.is_failure());
            }
        }
        domains.into_iter().find_map(|(value, (all, failed))| {
            (failed > budget.of_rounded_down(all)).then(|| {
                let place = match value {
                    Some(value) => format!("with {label}={value}"),
                    None => format!("without {label}"),
                };
                format!(
                    "not started: {failed} {place} failed, the budget was {budget} for each {label}"
                )
            })
        })
    }
}
