//! What a refusal means for whoever could ask again.

use muster_protocol::problem::{Kind, Problem};

/// What a refusal means for whoever could ask again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refusal {
    /// Nothing was done, and asking again changes nothing.
    Final,
    /// Nothing was done now; it may be otherwise in a while.
    Later,
    /// It may be otherwise in a while, and nobody knows whether it was done
    /// all the same.
    Unsure,
}

impl Refusal {
    /// What this one means.
    pub(crate) fn of(problem: &Problem) -> Self {
        match problem.kind {
            Kind::Unavailable => Self::Unsure,
            Kind::RateLimited | Kind::NoRoom | Kind::Frozen => Self::Later,
            Kind::InvalidRequest
            | Kind::InvalidPredicate
            | Kind::UnknownName
            | Kind::NoMatch
            | Kind::ConfirmationRequired
            | Kind::PlanGone
            | Kind::Unauthenticated
            | Kind::Denied
            | Kind::NotFound
            | Kind::Ambiguous
            | Kind::Incompatible
            | Kind::Conflict
            | Kind::TooLarge
            | Kind::Internal => Self::Final,
        }
    }

    /// Whether waiting may cure it.
    pub(crate) fn passes(self) -> bool {
        self != Self::Final
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_refusals_pass_and_one_of_them_says_nothing_for_sure() {
        let of = |kind| Refusal::of(&Problem::new(kind, "no"));
        let pass: Vec<Kind> = Kind::ALL.into_iter().filter(|k| of(*k).passes()).collect();
        let unsure = |kind: &Kind| of(*kind) == Refusal::Unsure;
        assert_eq!(
            pass,
            [
                Kind::Frozen,
                Kind::RateLimited,
                Kind::Unavailable,
                Kind::NoRoom
            ]
        );
        assert!(
            pass.iter()
                .filter(|kind| unsure(kind))
                .eq([&Kind::Unavailable])
        );
    }
}
