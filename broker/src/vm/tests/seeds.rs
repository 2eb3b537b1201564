//! What new machines find at their first start.

use muster_protocol::api::Secret;
use muster_protocol::ids::Serial;
use muster_protocol::problem::Kind;
use muster_protocol::run::RunPhase;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::VmId;

use super::lab::{Lab, wish};

#[tokio::test(flavor = "multi_thread")]
async fn each_seed_has_one_invite_that_works_and_only_its_hypervisor_is_told() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let mut wish = wish("web-01");
    wish.ssh_keys = vec!["ssh-ed25519 AAAAC3Nz ana@example.org".into()];
    wish.user_data = Some("#cloud-config\npassword: hunter2\n".into());
    let made = machines.make(wish).await.unwrap();
    let vm = machines.vm("web-01");
    let (at, id) = (vm.place.serial, vm.id);
    let no = |error: crate::vm::VmError| error.problem().kind;
    assert_eq!(
        no(machines.seed(Serial(2), id).await.unwrap_err()),
        Kind::Denied
    );
    let other = VmId::derive(&super::lab::cluster(), &super::lab::name("x"), 1);
    assert_eq!(
        no(machines.seed(at, other).await.unwrap_err()),
        Kind::Denied
    );

    let first = machines.seed(at, id).await.unwrap();
    let second = machines.seed(at, id).await.unwrap();
    let token = |seed: &muster_protocol::vm::SeedText| {
        let enrol = seed.enrol.as_ref().unwrap();
        assert_eq!(enrol.brokers, ["https://muster.example.org:7878"]);
        let token: muster_protocol::api::InviteToken = enrol.token.expose().parse().unwrap();
        token.id
    };
    let (one, two) = (token(&first), token(&second));
    {
        let invites = lab.world.invites.lock().unwrap();
        assert!(!invites.contains_key(&one), "the one before is void");
        let (invite, _) = &invites[&two];
        assert_eq!(invite.name.as_str(), "web-01");
        assert_eq!(invite.roles, vm.wish.roles);
    }
    assert_eq!(machines.vm("web-01").invites, std::slice::from_ref(&two));
    assert!(!format!("{:?}", machines.vm("web-01")).contains("hunter2"));

    // The guest has enrolled; whoever asks again needs no other invite.
    lab.world.invites.lock().unwrap().get_mut(&two).unwrap().1 = Some(Serial(40));
    let third = machines.seed(at, id).await.unwrap();
    assert!(third.enrol.is_none());
    assert_eq!(machines.vm("web-01").node, Some(Serial(40)));
    assert_eq!(
        third.user_data,
        Secret::new("#cloud-config\npassword: hunter2\n")
    );

    // Once it is up nobody is told anything, and what was secret is gone.
    lab.world
        .end(made.machines[0].vm.run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    assert_eq!(no(machines.seed(at, id).await.unwrap_err()), Kind::Denied);
    assert_eq!(machines.vm("web-01").wish.user_data, None);
    let ended = machines.end_of("web-01", true).await.unwrap();
    lab.world.end(ended.run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    assert_eq!(*lab.world.removed.lock().unwrap(), [Serial(40)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_texts_are_json_that_cloud_init_reads() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let mut wish = wish("web-01");
    wish.networks.push("internal".parse().unwrap());
    wish.ssh_keys = vec!["ssh-ed25519 AAAAC3Nz \"ana\": @example.org".into()];
    machines.make(wish).await.unwrap();
    let vm = machines.vm("web-01");
    let seed = machines.seed(vm.place.serial, vm.id).await.unwrap();
    insta::assert_snapshot!(seed.meta_data);
    insta::assert_snapshot!(seed.network_config);
    insta::assert_snapshot!(seed.vendor_data);
    let mut tenant = super::lab::wish("acme-db");
    tenant.agent = false;
    tenant.networks.clear();
    machines.make(tenant).await.unwrap();
    let vm = machines.vm("acme-db");
    let seed = machines.seed(vm.place.serial, vm.id).await.unwrap();
    assert!(seed.enrol.is_none() && !seed.vendor_data.contains("muster-agent"));
    insta::assert_snapshot!(seed.vendor_data, @r#"
    #cloud-config
    {
      "hostname": "acme-db",
      "preserve_hostname": false
    }
    "#);
}
