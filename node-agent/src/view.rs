//! This node, as a predicate sees it here: the assignment that the operators
//! gave and the facts that it reports.

use muster_protocol::predicate::{Attributes, Predicate, fact_at};
use muster_protocol::text::printable;
use muster_protocol::wire::Assignment;
use serde_json::Value;

/// The attributes of this node.
pub struct NodeView<'a> {
    /// Name, roles, labels.
    pub assignment: &'a Assignment,
    /// A JSON object.
    pub facts: &'a Value,
}

impl Attributes for NodeView<'_> {
    fn name(&self) -> &str {
        self.assignment.name.as_str()
    }

    fn any_role(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.assignment.roles.iter().any(|role| test(role.as_str()))
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.assignment
            .labels
            .get(key)
            .map(muster_protocol::names::LabelValue::as_str)
    }

    fn fact(&self, path: &str) -> Option<&Value> {
        fact_at(self.facts, path)
    }
}

impl NodeView<'_> {
    /// Whether the predicate of a request still holds here.
    ///
    /// # Errors
    /// The reason to decline with: the clauses that decided, or that the
    /// predicate cannot be read by this version.
    pub fn check(&self, predicate: &str) -> Result<(), String> {
        let predicate = Predicate::parse(predicate).map_err(|e| {
            format!(
                "this agent cannot read the predicate: {}",
                printable(&e.to_string(), 200)
            )
        })?;
        if predicate.matches(self) {
            return Ok(());
        }
        let explanation = predicate.explain(self);
        let clauses: Vec<String> = explanation
            .decided_by
            .iter()
            .take(4)
            .map(|clause| {
                let verb = if clause.holds {
                    "holds"
                } else {
                    "does not hold"
                };
                format!("`{}` {verb}", printable(&clause.text, 80))
            })
            .collect();
        Err(format!(
            "the predicate no longer holds here: {}",
            clauses.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_that_was_relabelled_says_which_clause_no_longer_holds() {
        let assignment: Assignment = serde_json::from_value(json!({
            "revision": 3, "name": "web-01", "roles": ["web"], "labels": {"zone": "dk2"},
        }))
        .expect("reads");
        let facts = json!({"os": {"version": "12.1"}, "zone": "gva2"});
        let view = NodeView {
            assignment: &assignment,
            facts: &facts,
        };
        assert_eq!(view.check("role=web and os.version>=12"), Ok(()));
        insta::assert_snapshot!(
            view.check("role=web and zone=gva2").expect_err("relabelled"),
            @"the predicate no longer holds here: `zone=gva2` does not hold"
        );
        insta::assert_snapshot!(
            view.check("not role=web").expect_err("it is web"),
            @"the predicate no longer holds here: `role=web` holds"
        );
        assert!(
            view.check("role=(")
                .expect_err("no predicate")
                .contains("cannot read")
        );
    }
}
