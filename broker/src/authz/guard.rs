//! The one who is asked.

use std::sync::Arc;

use muster_protocol::names::PrincipalName;

use super::{Action, Caller, Decision, Denied, Grant, RunAsk, Unauthorized};
use crate::audit::{Asked, Audit};
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
    audit: Audit,
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
        Self {
            policy,
            audit: Audit::off(),
        }
    }

    /// The same, who writes down what is asked and what is answered.
    #[must_use]
    pub fn recording(mut self, audit: Audit) -> Self {
        self.audit = audit;
        self
    }

    /// [`authorize`], of a request that came through a door. What was answered
    /// is in the record when this returns; reading alone is recorded behind.
    ///
    /// # Errors
    /// [`Unauthorized`]; nothing may be done.
    pub async fn authorize<T: 'static>(
        &self,
        caller: &Caller,
        action: Action,
        subject: T,
    ) -> Result<Authorized<T>, Unauthorized> {
        let asked = Asked::new(caller, &action, &subject);
        let answer = authorize(&*self.policy, caller, action, subject);
        let said = answer.as_ref().map(Authorized::grant);
        self.audit.answered(asked, said).await?;
        Ok(answer?)
    }

    /// Whether this may be asked at all, before it is known what it is about:
    /// only a no is recorded, and who may asks [`Guard::authorize`] next.
    ///
    /// # Errors
    /// [`Unauthorized`].
    pub async fn admit(&self, caller: &Caller, action: Action) -> Result<(), Unauthorized> {
        let asked = Asked::new(caller, &action, &());
        if let Err(denied) = authorize(&*self.policy, caller, action, ()) {
            self.audit.answered(asked, Err(&denied)).await?;
            return Err(denied.into());
        }
        Ok(())
    }

    /// [`Guard::authorize`], of a run with everything that is fixed about it.
    /// What the policy asks for in return is put into what the run waits for.
    ///
    /// # Errors
    /// [`Unauthorized`].
    pub async fn authorize_run(
        &self,
        caller: &Caller,
        run: FrozenRun,
    ) -> Result<Authorized<FrozenRun>, Unauthorized> {
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
