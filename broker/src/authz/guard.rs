//! The one who is asked.

use std::sync::Arc;

use muster_protocol::names::PrincipalName;

use super::{Action, Caller, Decision, Denied, Grant, RunAsk};
use crate::runs::FrozenRun;

/// Decides. The fixed roles are one implementation.
pub trait Policy: Send + Sync {
    /// Whether the caller may do this.
    fn decide(&self, caller: &Caller, action: &Action) -> Decision;
}

/// Something that its caller may do. Only [`authorize`] makes one:
///
/// ```compile_fail,E0451
/// fn forge(caller: muster_broker::authz::Caller) {
///     let _ = muster_broker::authz::Authorized { subject: (), caller };
/// }
/// ```
#[derive(Debug)]
pub struct Authorized<T> {
    subject: T,
    caller: Caller,
    grant: Grant,
}

impl<T> Authorized<T> {
    /// What may be done.
    pub fn get(&self) -> &T {
        &self.subject
    }

    /// What may be done, out of its wrapping.
    pub fn into_inner(self) -> T {
        self.subject
    }

    /// Who may do it.
    pub fn principal(&self) -> &PrincipalName {
        &self.caller.principal
    }

    /// Who may do it, in full.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What permits it, and what it asks for in return.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }
}

/// The one who is asked before anything is done.
#[derive(Clone)]
pub struct Guard {
    policy: Arc<dyn Policy>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl Guard {
    /// A guard who goes by this policy.
    #[must_use]
    pub fn new(policy: Arc<dyn Policy>) -> Self {
        Self { policy }
    }

    /// [`authorize`], of a request that came through a door.
    ///
    /// # Errors
    /// [`Denied`].
    #[expect(
        clippy::unused_async,
        reason = "what was decided is going to be written down here"
    )]
    pub async fn authorize<T>(
        &self,
        caller: &Caller,
        action: Action,
        subject: T,
    ) -> Result<Authorized<T>, Denied> {
        authorize(&*self.policy, caller, action, subject)
    }

    /// [`Guard::authorize`], of a run with everything that is fixed about it.
    /// What the policy asks for in return is put into what the run waits for.
    ///
    /// # Errors
    /// [`Denied`].
    pub async fn authorize_run(
        &self,
        caller: &Caller,
        run: FrozenRun,
    ) -> Result<Authorized<FrozenRun>, Denied> {
        let action = Action::CreateRun(Box::new(RunAsk::of(&run)));
        let mut run = self.authorize(caller, action, run).await?;
        run.grant.oblige(&mut run.subject.spec.gates);
        Ok(run)
    }

    /// What it goes by: for questions that are no request of their own.
    #[must_use]
    pub fn policy(&self) -> &dyn Policy {
        &*self.policy
    }
}

/// Asks the policy whether `caller` may do `action` to `subject`.
///
/// # Errors
/// [`Denied`].
pub fn authorize<T>(
    policy: &dyn Policy,
    caller: &Caller,
    action: Action,
    subject: T,
) -> Result<Authorized<T>, Denied> {
    match policy.decide(caller, &action) {
        Decision::Allow(grant) => Ok(Authorized {
            subject,
            caller: caller.clone(),
            grant,
        }),
        Decision::Deny(denied) => {
            tracing::warn!(
                principal = %caller.principal, role = %caller.role, token = caller.token,
                action = action.name(), %denied, "denied"
            );
            Err(*denied)
        }
    }
}
