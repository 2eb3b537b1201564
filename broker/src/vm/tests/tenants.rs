//! Accounts, and public keys that have names.

use muster_protocol::api::{PutAccount, PutSshKey};
use muster_protocol::run::RunPhase;

use super::lab::{Lab, may, wish};
use crate::vm::tenants::TenantsError;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPFaC/9yS6fY19YIhsnforpeA/kcv2cbO3fsgdOlwEne ana@example.org";
const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPFaC/9yS6fY19YIhsnforpeA/kcv2cbO3fsgdOlwEnf bob@example.org";

fn key(text: &str) -> PutSshKey {
    let key = text.parse().unwrap();
    PutSshKey { key }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_made_with_a_key_by_its_name() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let name = || "ana".parse().unwrap();
    let put = |text| machines.put_ssh_key(may((name(), key(text))));
    let view = put(KEY).await.unwrap();
    assert_eq!(
        view.fingerprint,
        "SHA256:MKGJbuMHtJXW+8GBqGcE1i6GGpHYjP98279dOO4oYNI"
    );
    // The same again is the same; a name is never given another key.
    assert_eq!(put(KEY).await.unwrap(), view);
    let there = put(OTHER).await.unwrap_err();
    assert!(matches!(there, TenantsError::SshKeyThere(_)), "{there}");

    let with = |text: &str| {
        let mut wish = wish("web-01");
        wish.ssh_keys = vec![text.to_owned()];
        wish
    };
    let said = |error: crate::vm::VmError| {
        let problem = error.problem();
        format!("{}; {}", problem.title, problem.hint.unwrap_or_default())
    };
    let none = said(machines.make(with("anna")).await.unwrap_err());
    assert_eq!(none, "there is no ssh key `anna`; did you mean `ana`?");
    let secret = "-----BEGIN OPENSSH PRIVATE KEY-----";
    let none = said(machines.make(with(secret)).await.unwrap_err());
    assert!(none.starts_with("this is a private key"), "{none}");
    // What is none may be a secret all the same: it is not repeated.
    for secret in [
        "b3BlbnNzaC1rZXktdjEAAAAABG5v",
        "MIIEowIBAAKCAQEA3Tz2mr7SZiAMfQ==",
    ] {
        let none = said(machines.make(with(secret)).await.unwrap_err());
        assert!(!none.contains(secret) && none.contains("key"), "{none}");
    }
    machines.make(with("ana")).await.unwrap();
    assert_eq!(machines.vm("web-01").wish.ssh_keys, [KEY]);

    // Whoever begins anew knows it, and forgets it when that is asked for.
    let again = lab.open().await;
    assert_eq!(again.ssh_keys(), std::slice::from_ref(&view));
    again.remove_ssh_key(may(name())).await.unwrap();
    assert!(again.remove_ssh_key(may(name())).await.is_err());
    assert!(again.ssh_keys().is_empty());
    assert_eq!(machines.vm("web-01").wish.ssh_keys, [KEY]);
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_of_accounts_that_were_declared_once_any_was() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let of = |name: &str, account: &str| {
        let mut wish = wish(name);
        wish.account = Some(account.parse().unwrap());
        wish
    };
    let declare = |name: &str, note: Option<&str>| {
        let note = note.map(str::to_owned);
        machines.put_account(may((name.parse().unwrap(), PutAccount { note })))
    };
    let remove = |name: &str| machines.remove_account(may(name.parse().unwrap()));

    // As long as none is declared, any will do.
    machines.up(&lab.world, of("old-01", "old")).await;
    declare("acme", Some("since 2019")).await.unwrap();
    let refused = machines.make(of("web-01", "acmee")).await.unwrap_err();
    let problem = refused.problem();
    assert_eq!(problem.title, "there is no account `acmee`");
    assert_eq!(problem.hint.as_deref(), Some("did you mean `acme`?"));
    assert!(machines.make(of("web-01", "old")).await.is_err());
    machines.up(&lab.world, of("web-01", "acme")).await;
    // Nobody's machine is nobody's still.
    machines.up(&lab.world, wish("web-02")).await;

    let table = |machines: &crate::vm::Machines| {
        let all = machines.accounts().into_iter();
        let line = |view: muster_protocol::api::AccountView| {
            format!(
                "{} {} {} {} declared={} note={:?}",
                view.name,
                view.machines,
                view.cpus,
                view.memory,
                view.declared.is_some(),
                view.note
            )
        };
        all.map(line).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(table(&machines), @r#"
    acme 1 2 2GiB declared=true note=Some("since 2019")
    old 1 2 2GiB declared=false note=None
    "#);
    assert_eq!(table(&lab.open().await), table(&machines));

    let used = remove("acme").await.unwrap_err();
    assert!(used.to_string().contains("web-01"), "{used}");
    let never = remove("old").await.unwrap_err();
    assert!(matches!(never, TenantsError::NotDeclared(_)), "{never}");
    assert!(declare("acme", Some("two\nlines")).await.is_err());
    machines.end_of("web-01", true).await.unwrap();
    assert!(remove("acme").await.is_err(), "it is being destroyed");
    lab.world.end_all(RunPhase::Succeeded);
    lab.report_all(&machines);
    machines.look_after(&super::lab::name("web-01")).await;
    remove("acme").await.unwrap();
    // None is declared any more.
    machines.up(&lab.world, of("web-03", "anybody")).await;
}
