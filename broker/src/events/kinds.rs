//! The kinds of events that muster makes.

/// Kinds and what they tell, in the order of the documentation.
pub const KINDS: &[(&str, &str)] = &[
    (
        "git.push",
        "somebody pushed commits to a branch; every commit is in it",
    ),
    ("git.tag", "somebody pushed a tag"),
    ("git.deleted", "somebody removed a branch or a tag"),
    (
        "git.change",
        "a pull or merge request was opened, changed, merged or closed",
    ),
    ("build.queued", "a CI build waits for its turn"),
    ("build.started", "a CI build has begun"),
    ("build.finished", "a CI build has ended: `result` says how"),
    (
        "alarm.firing",
        "a monitoring system raises alarms, as one group, each with its fingerprint",
    ),
    ("alarm.resolved", "alarms of a monitoring system are over"),
    (
        "alarm.acked",
        "somebody looks after an alarm: it is not repeated in chat",
    ),
    (
        "alarm.silenced",
        "somebody silenced alarms in chat, or ended that",
    ),
    ("hook.received", "a generic webhook was called"),
    (
        "hook.ping",
        "the other side of a webhook tries whether it is heard",
    ),
    ("run.begun", "a run has begun"),
    (
        "run.progress",
        "another tenth of its nodes, or a step of its `main`, is done",
    ),
    (
        "run.ended",
        "a run has ended: `state` says how, `outcomes` counts",
    ),
    (
        "run.step-failed",
        "a function of a scenario failed on nodes",
    ),
    (
        "run.waits",
        "a run waits for somebody: who, and what to type",
    ),
    ("run.more-events", "a run makes more events than are told"),
    (
        "run.cut",
        "a run was cut off by the end of a broker, and was ended",
    ),
    (
        "run.rebuilt",
        "runs that the store had lost were written down again from what nodes keep",
    ),
    ("node.up", "nodes are there, that were not"),
    ("node.down", "nodes are not there any more"),
    (
        "node.facts",
        "facts of a node are others: which, what they were and are",
    ),
    ("node.enrolled", "a node was enrolled"),
    ("node.changed", "roles or labels of a node were changed"),
    ("node.removed", "a node was removed"),
    (
        "node.unknown",
        "somebody connects as a node that is not enrolled",
    ),
    (
        "node.local-run",
        "somebody ran something on a node without the broker",
    ),
    ("invite.created", "somebody made an invite"),
    ("invite.withdrawn", "somebody withdrew an invite"),
    ("token.created", "somebody made an API token"),
    ("token.revoked", "somebody revoked an API token"),
    (
        "principal.device",
        "somebody has added or removed a device for one-time codes in chats",
    ),
    ("key.rotated", "the broker has a new signing key"),
    ("key.revoked", "a signing key was revoked"),
    ("scenario.stored", "somebody stored a scenario"),
    ("scenario.removed", "somebody removed a scenario"),
    ("schedule.added", "somebody added or changed a schedule"),
    ("schedule.removed", "somebody removed a schedule"),
    ("schedule.missed", "starts of a schedule were missed"),
    (
        "schedule.frozen",
        "the time of a schedule has come while the fleet is frozen: it does not run",
    ),
    (
        "vm.created",
        "a machine is up, or back after it was destroyed",
    ),
    (
        "vm.failed",
        "a machine could not be made, changed or brought back: why",
    ),
    (
        "vm.changed",
        "somebody had a machine started, stopped, started anew, resized, or its disk kept or restored",
    ),
    (
        "vm.deleted",
        "a machine was destroyed; its disk may be kept",
    ),
    (
        "vm.drift",
        "a machine is seen otherwise than it is wanted, or a domain that muster does not know",
    ),
    ("vm.drift-ended", "a machine is as it is wanted again"),
    (
        "vm.configured",
        "what was to configure a machine has done so",
    ),
    (
        "vm.configure-failed",
        "a machine is up, and was not configured: why",
    ),
    (
        "vm.adopted",
        "a machine belongs to the new key of its hypervisor",
    ),
    (
        "vm.cordon",
        "somebody cordoned or drained a hypervisor, or ended that",
    ),
    ("release.stored", "an agent release was uploaded"),
    ("release.removed", "an agent release was removed"),
    ("image.added", "somebody added a disk image"),
    ("image.removed", "somebody removed a disk image"),
    (
        "network.changed",
        "somebody made or changed a network of machines",
    ),
    ("group.changed", "somebody made or changed a security group"),
    ("group.removed", "somebody removed a security group"),
    (
        "address_set.changed",
        "somebody made or changed a set of addresses",
    ),
    ("address_set.removed", "somebody removed a set of addresses"),
    (
        "vm.groups",
        "somebody put a machine in security groups, or took it out, or changed which addresses it may use",
    ),
    (
        "firewall.in-force",
        "security groups of a hypervisor are in force again",
    ),
    ("network.removed", "somebody removed a network of machines"),
    (
        "ssh_key.changed",
        "somebody added or removed a public key for machines",
    ),
    (
        "account.changed",
        "somebody declared or removed an account, or changed its note",
    ),
    ("trigger.started", "a trigger has started a run"),
    (
        "hooks.changed",
        "the file with webhooks, triggers and routes was read anew",
    ),
    ("broker.takeover", "another broker is the active one"),
    ("broker.kit", "somebody took what another broker needs"),
    (
        "broker.certificate",
        "the certificate of the HTTP API was read anew",
    ),
    (
        "policy.stored",
        "somebody stored policies, principals and groups",
    ),
    (
        "audit.sink-back",
        "a place for copies of the record of requests can be written again",
    ),
    (
        "cluster.frozen",
        "somebody stopped everything new on all nodes",
    ),
    ("cluster.thawed", "somebody ended a freeze"),
    ("cluster.backup", "somebody made a backup"),
    ("cluster.restored", "a backup was put back"),
    (
        "alarm.trigger-refused",
        "an event fitted a trigger, and its run was refused: why",
    ),
    (
        "alarm.events-lost",
        "events went for want of room before triggers or routes saw them",
    ),
    ("alarm.route-failed", "a route has given up an event"),
    (
        "alarm.hooks-file",
        "the file with webhooks, triggers and routes is wrong; what was in force stays so",
    ),
    (
        "alarm.audit-changed",
        "the record of requests is not as it was written",
    ),
    ("alarm.audit-gap", "requests are missing in the record"),
    (
        "alarm.audit-sink",
        "a place for copies of the record of requests cannot be written",
    ),
    (
        "alarm.freeze-behind",
        "a node has seen a later freeze than this broker's",
    ),
    (
        "alarm.certificate",
        "the certificate of the HTTP API cannot be used; what was in force stays so",
    ),
    (
        "alarm.certificate-ends",
        "the certificate of the HTTP API ends soon",
    ),
    (
        "alarm.schedule-failed",
        "a schedule could not start its run",
    ),
    ("alarm.undo-failed", "taking back what a run did failed"),
    (
        "alarm.run-diverged",
        "the `main` of a run does something else than it did before",
    ),
    ("alarm.run-stuck", "a run cannot go on"),
    (
        "alarm.cloned-node",
        "two machines live with the key of one node",
    ),
    ("alarm.flooding-node", "a node sends more than it may"),
    (
        "alarm.node-went-back",
        "the journal of a node went back in time",
    ),
    ("alarm.local-runs", "local runs of a node cannot be taken"),
    (
        "alarm.keys-behind",
        "a node holds an older list of broker keys",
    ),
    (
        "alarm.epoch-behind",
        "a node has seen a later epoch than this broker's",
    ),
    (
        "alarm.revocation-pending",
        "NATS servers do not know yet who is revoked",
    ),
    ("alarm.clock", "the clock of the broker's machine was set"),
    ("alarm.space", "room gets little"),
    ("alarm.space-cleared", "there is room again"),
    ("alarm.journal-damaged", "journals of runs cannot be read"),
    (
        "alarm.journal-conflict",
        "somebody else wrote the journal of a run",
    ),
    (
        "alarm.vm-doubtful",
        "it cannot be said whether a machine is there; muster looks again",
    ),
    (
        "alarm.firewall-repaired",
        "somebody changed firewall tables of a node; they are as they were",
    ),
    (
        "alarm.firewall-problem",
        "security groups of a hypervisor are not in force: why",
    ),
    ("alarm.store-went-back", "the store went back in time"),
];

/// The part of a kind before its first dot, where all of them are muster's:
/// also those that it does not know yet.
const OWN: &[&str] = &[
    "account",
    "address_set",
    "audit",
    "broker",
    "cluster",
    "firewall",
    "freeze",
    "group",
    "hook",
    "hooks",
    "image",
    "invite",
    "key",
    "network",
    "node",
    "policy",
    "principal",
    "release",
    "route",
    "run",
    "scenario",
    "schedule",
    "ssh_key",
    "token",
    "trigger",
    "vm",
    "webhook",
];
/// Of the alarms these come from outside.
const FOREIGN_ALARMS: [&str; 2] = ["alarm.firing", "alarm.resolved"];

/// Whether only muster itself may make events of that kind.
#[must_use]
pub fn is_own(kind: &str) -> bool {
    match kind.split('.').next().unwrap_or_default() {
        "alarm" => !FOREIGN_ALARMS.contains(&kind),
        family => OWN.contains(&family),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whose() {
        for kind in [
            "node.up",
            "alarm.clock",
            "alarm.anything",
            "run.ended",
            "scenario.x",
            "alarm",
        ] {
            assert!(is_own(kind), "{kind}");
        }
        for kind in [
            "git.push",
            "build.finished",
            "alarm.firing",
            "org.example.done",
            "nodes.up",
        ] {
            assert!(!is_own(kind), "{kind}");
        }
        // Each is listed once, and each of them in a family that is known.
        let mut kinds: Vec<_> = KINDS.iter().map(|(kind, _)| *kind).collect();
        kinds.sort_unstable();
        let all = kinds.len();
        kinds.dedup();
        assert_eq!(kinds.len(), all);
        for kind in kinds {
            assert!(
                is_own(kind)
                    || kind.starts_with("git.")
                    || kind.starts_with("build.")
                    || FOREIGN_ALARMS.contains(&kind),
                "{kind}"
            );
        }
    }
}
