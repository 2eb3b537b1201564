//! Failure budgets.

use std::collections::BTreeMap;

use muster_protocol::names::LabelKey;
use muster_protocol::run::Outcome;

use super::Budget;

/// Why nothing more may be started, if so: the first budget that is used up.
///
/// `nodes` are all nodes of the step, also those that have not begun, with
/// their outcome if they have one; percentages are of all of them. `domain`
/// gives the value of a label of a node; nodes without it are one domain.
pub fn spent<'n, N: Copy>(
    budgets: &[Budget],
    nodes: &[(N, Option<Outcome>)],
    domain: impl Fn(N, &LabelKey) -> Option<&'n str>,
) -> Option<String> {
    budgets.iter().find_map(|budget| {
        let mut domains: BTreeMap<Option<&str>, (usize, usize)> = BTreeMap::new();
        for (node, outcome) in nodes {
            let of = budget.by.as_ref().and_then(|label| domain(*node, label));
            let (all, failed) = domains.entry(of).or_default();
            *all += 1;
            *failed += usize::from(outcome.is_some_and(Outcome::is_failure));
        }
        domains.into_iter().find_map(|(of, (all, failed))| {
            let most = budget.amount.of_rounded_down(all);
            (failed > most).then(|| {
                let place = match (&budget.by, of) {
                    (None, _) => String::new(),
                    (Some(label), Some(value)) => format!(" with {label}={value}"),
                    (Some(label), None) => format!(" without {label}"),
                };
                let nodes = if failed == 1 { "node" } else { "nodes" };
                let may = if most == 0 {
                    "none".to_owned()
                } else {
                    most.to_string()
                };
                format!("{failed} {nodes}{place} failed, {may} may")
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::units::Amount;

    #[test]
    fn what_failed_is_counted_over_all_and_by_label() {
        // Two racks of five, and one node without a rack.
        let rack = |node: usize, _: &LabelKey| match node {
            0..5 => Some("r1"),
            5..10 => Some("r2"),
            _ => None,
        };
        let said = |amount: Amount, by: Option<&str>, failed: &[(usize, Outcome)]| {
            let budget = Budget {
                amount,
                by: by.map(|by| by.parse().expect("a label")),
            };
            let mut nodes: Vec<(usize, Option<Outcome>)> = (0..11).map(|n| (n, None)).collect();
            for (node, outcome) in failed {
                nodes[*node].1 = Some(*outcome);
            }
            spent(&[budget], &nodes, rack)
        };
        let count = Amount::Count;
        let two = [(0, Outcome::Failed), (6, Outcome::Unknown)];
        assert_eq!(said(count(2), None, &two), None);
        assert_eq!(
            said(count(1), None, &two).as_deref(),
            Some("2 nodes failed, 1 may")
        );
        assert_eq!(said(count(1), Some("rack"), &two), None);
        assert_eq!(
            said(count(0), Some("rack"), &two).as_deref(),
            Some("1 node with rack=r1 failed, none may")
        );
        assert_eq!(
            said(count(0), Some("rack"), &[(10, Outcome::TimedOut)]).as_deref(),
            Some("1 node without rack failed, none may")
        );
        // 10% of eleven is one.
        assert_eq!(said(Amount::Percent(10), None, &two[..1]), None);
        assert!(said(Amount::Percent(10), None, &two).is_some());
        let others = [
            (0, Outcome::Declined),
            (1, Outcome::Cancelled),
            (2, Outcome::Skipped),
        ];
        assert_eq!(said(count(0), None, &others), None);
    }
}
