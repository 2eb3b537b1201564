//! What each kind of NATS user may publish and subscribe to.
//!
//! Least privilege is decided here and enforced by the server: a node hears
//! only what is addressed to it and speaks only under its own prefix.

use muster_protocol::ids::Serial;
use muster_protocol::subject::{
    ALL, from_prefix, inbox_prefix, label_subject, node_subject, role_subject,
};

/// Allowed and denied subjects of a user. In NATS an empty allow list means
/// EVERYTHING, so each constructor in this module fills both lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects that the user may publish to.
    pub publish: SubjectRules,
    /// Subjects that the user may subscribe to.
    pub subscribe: SubjectRules,
}

/// One direction of [`Permissions`].
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SubjectRules {
    /// Allowed subjects, wildcards included; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Denied subjects; they win over the allowed ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

impl SubjectRules {
    fn only(allow: Vec<String>) -> Self {
        Self {
            allow,
            deny: Vec::new(),
        }
    }
}

/// A node: hears what is for everybody, for itself, its roles and its labels,
/// and answers to its own inbox; says everything below its own prefix. No
/// JetStream API, no `$SYS`, no replies to subjects that a message names.
///
/// Order and repetition of `roles` and `labels` do not matter.
#[must_use]
pub fn node_permissions(id: u32, roles: &[&str], labels: &[(&str, &str)]) -> Permissions {
    let mut subscribe: Vec<String> = roles.iter().map(|role| role_subject(role)).collect();
    subscribe.extend(labels.iter().map(|(key, value)| label_subject(key, value)));
    subscribe.sort();
    subscribe.dedup();
    let own = [
        ALL.to_owned(),
        node_subject(Serial(id)),
        format!("{}.>", inbox_prefix(Serial(id))),
    ];
    Permissions {
        publish: SubjectRules::only(vec![format!("{}.>", from_prefix(Serial(id)))]),
        subscribe: SubjectRules::only(own.into_iter().chain(subscribe).collect()),
    }
}

/// A broker: everything inside muster's account.
#[must_use]
pub fn broker_permissions() -> Permissions {
    Permissions {
        publish: SubjectRules::only(vec![">".to_owned()]),
        subscribe: SubjectRules::only(vec![">".to_owned()]),
    }
}

/// muster's own administration of the server: asks servers, pushes claims,
/// hears connections come and go.
#[must_use]
pub fn system_permissions() -> Permissions {
    Permissions {
        publish: SubjectRules::only(vec!["$SYS.REQ.>".to_owned()]),
        subscribe: SubjectRules::only(vec![
            "$SYS.ACCOUNT.*.CONNECT".to_owned(),
            "$SYS.ACCOUNT.*.DISCONNECT".to_owned(),
            "_INBOX.>".to_owned(),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_exactly_its_own_subjects() {
        let p = node_permissions(
            17,
            &["web", "lb"],
            &[("zone", "gva2"), ("os.version", "12.*"), ("zone", "gva2")],
        );
        assert_eq!(p.publish.allow, ["m1.from.17.>"]);
        assert_eq!(
            p.subscribe.allow,
            [
                "m1.do.all",
                "m1.do.node.17",
                "_INBOX.m1.17.>",
                "m1.do.label.os=2Eversion.12=2E=2A",
                "m1.do.label.zone.gva2",
                "m1.do.role.lb",
                "m1.do.role.web",
            ]
        );
        assert!(p.publish.deny.is_empty() && p.subscribe.deny.is_empty());
    }

    #[test]
    fn no_list_is_ever_empty_because_that_would_allow_everything() {
        for p in [
            node_permissions(0, &[], &[]),
            broker_permissions(),
            system_permissions(),
        ] {
            assert!(!p.publish.allow.is_empty() && !p.subscribe.allow.is_empty());
        }
    }

    #[test]
    fn a_hostile_role_stays_one_token() {
        let p = node_permissions(1, &[">", "*", "a.b", "", "x y"], &[]);
        assert!(
            p.subscribe
                .allow
                .iter()
                .filter(|s| s.starts_with("m1.do.role."))
                .all(|s| s.split('.').count() == 4 && !s.contains(['>', '*', ' ']))
        );
    }

    mod on_a_server {
        use async_nats::{Client, Event};
        use futures_util::StreamExt as _;
        use tokio::sync::mpsc;
        use tokio::time::timeout;

        use super::*;
        use crate::nats::testing::{PATIENCE, TestServer};

        /// A node's connection, and what the server refuses it.
        async fn node(server: &TestServer, id: u32) -> (Client, mpsc::UnboundedReceiver<String>) {
            let (say, refusals) = mpsc::unbounded_channel();
            let client = server
                .user("node", node_permissions(id, &["web"], &[("zone", "gva2")]))
                .connect_options()
                .custom_inbox_prefix(inbox_prefix(Serial(id)))
                .event_callback(move |event| {
                    let say = say.clone();
                    async move {
                        if let Event::ServerError(error) = event {
                            let _ = say.send(error.to_string());
                        }
                    }
                })
                .connect(server.url())
                .await
                .unwrap();
            (client, refusals)
        }

        async fn refusal(refusals: &mut mpsc::UnboundedReceiver<String>, of: &str) {
            let said = timeout(PATIENCE, refusals.recv())
                .await
                .unwrap_or_else(|_| panic!("{of} was not refused"))
                .unwrap();
            assert!(
                said.to_lowercase().contains("permissions violation"),
                "{of}: {said}"
            );
            assert!(said.contains(of), "{of}: {said}");
        }

        /// Waits until the server has done what node 7 asked before: `flush`
        /// of the client only means that it was sent.
        async fn settled(client: &Client, broker: &Client) {
            let mut hears = broker.subscribe("m1.from.7.settled").await.unwrap();
            // The broker's own subscription is in place once it hears itself.
            for from in [broker, client] {
                from.publish("m1.from.7.settled", "x".into()).await.unwrap();
                timeout(PATIENCE, hears.next()).await.unwrap().unwrap();
            }
        }

        #[tokio::test]
        async fn a_node_hears_what_is_for_it_and_nothing_else() {
            let server = TestServer::start().await;
            let (client, mut refusals) = node(&server, 7).await;
            for subject in [
                "m1.do.node.8",
                "m1.do.>",
                "m1.do.node.*",
                "m1.do.role.db",
                "m1.do.role.*",
                "m1.do.label.zone.dk2",
                "m1.from.8.>",
                "m1.from.7.>",
                "m1.run.>",
                "_INBOX.>",
                "_INBOX.m1.8.>",
                "$SYS.>",
                "$JS.>",
                "$KV.>",
                ">",
                "*",
            ] {
                let _subscription = client.subscribe(subject).await.unwrap();
                client.flush().await.unwrap();
                refusal(&mut refusals, subject).await;
            }
            let broker = server.broker().await;
            for subject in [
                "m1.do.all",
                "m1.do.node.7",
                "m1.do.role.web",
                "m1.do.label.zone.gva2",
                "_INBOX.m1.7.x",
            ] {
                let mut hears = client.subscribe(subject).await.unwrap();
                settled(&client, &broker).await;
                broker.publish(subject, subject.into()).await.unwrap();
                let heard = timeout(PATIENCE, hears.next()).await.unwrap().unwrap();
                assert_eq!(heard.payload, subject);
            }
            assert!(refusals.try_recv().is_err());
        }

        #[tokio::test]
        async fn a_node_speaks_below_its_own_prefix_and_nowhere_else() {
            let server = TestServer::start().await;
            let (client, mut refusals) = node(&server, 7).await;
            let broker = server.broker().await;
            settled(&client, &broker).await;
            let mut everything = broker.subscribe("*.>").await.unwrap();
            settled(&client, &broker).await;
            while timeout(PATIENCE, everything.next())
                .await
                .unwrap()
                .unwrap()
                .subject
                .as_str()
                != "m1.from.7.settled"
            {}
            timeout(PATIENCE, everything.next()).await.unwrap().unwrap();
            for subject in [
                "m1.from.8.hello",
                "m1.from.7",
                "m1.from.77.hello",
                "m1.do.all",
                "m1.do.node.7",
                "m1.run.x",
                "_INBOX.m1.7.x",
                "$JS.API.INFO",
                "$JS.API.STREAM.CREATE.x",
                "$JS.API.STREAM.NAMES",
                "$JS.API.CONSUMER.CREATE.x",
                "$KV.state.key",
                "$SYS.REQ.SERVER.PING",
                "$SYS.REQ.CLAIMS.UPDATE",
            ] {
                client.publish(subject, "x".into()).await.unwrap();
                client.flush().await.unwrap();
                refusal(&mut refusals, subject).await;
            }
            client
                .publish("m1.from.7.hello", "mine".into())
                .await
                .unwrap();
            // The first thing that anybody hears is the one that was allowed.
            let heard = timeout(PATIENCE, everything.next()).await.unwrap().unwrap();
            assert_eq!(
                (heard.subject.as_str(), heard.payload),
                ("m1.from.7.hello", "mine".into())
            );
            assert!(refusals.try_recv().is_err());
        }

        #[tokio::test]
        async fn a_node_cannot_answer_to_a_subject_that_a_request_names() {
            let server = TestServer::start().await;
            let (client, mut refusals) = node(&server, 7).await;
            let broker = server.broker().await;
            let mut requests = client.subscribe("m1.do.node.7").await.unwrap();
            settled(&client, &broker).await;
            broker
                .publish_with_reply("m1.do.node.7", "m1.do.all", "x".into())
                .await
                .unwrap();
            let request = timeout(PATIENCE, requests.next()).await.unwrap().unwrap();
            client
                .publish(request.reply.unwrap(), "y".into())
                .await
                .unwrap();
            client.flush().await.unwrap();
            refusal(&mut refusals, "m1.do.all").await;
        }

        #[tokio::test]
        async fn a_node_with_hundreds_of_labels_still_connects() {
            let server = TestServer::start().await;
            let values: Vec<String> = (0..300)
                .map(|n| format!("value-{n}-with-some-length"))
                .collect();
            let labels: Vec<(&str, &str)> = values.iter().map(|v| ("label", v.as_str())).collect();
            let user = server.user("labelled", node_permissions(1, &[], &labels));
            assert!(user.jwt().len() > 16 * 1024);
            user.connect_options()
                .connect(server.url())
                .await
                .unwrap()
                .flush()
                .await
                .unwrap();
        }
    }
}
