//! Addresses on a real server.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::api::Role;
use muster_protocol::envelope::Door;
use muster_protocol::ids::ClusterId;
use proptest::prelude::*;

use super::pool::{Plan, Pool};
use super::*;
use crate::authz::{Action, Caller, FixedRoles, Origin, authorize};
use crate::nats::testing::TestServer;
use crate::store::kv::{BucketConfig, ensure_bucket};

fn authorized<T: 'static>(subject: T) -> Authorized<T> {
    let caller = Caller {
        principal: "ana".parse().unwrap(),
        role: Role::Admin,
        token: "t".into(),
        door: Door::Cli,
        origin: Origin::Unknown,
    };
    authorize(&FixedRoles, &caller, Action::ManageNetworks, subject).unwrap()
}

fn network(pools: &[&str]) -> PutNetwork {
    PutNetwork {
        bridge: "br0".parse().unwrap(),
        pools: pools.iter().map(ToString::to_string).collect(),
        gateways: Vec::new(),
        dns: Vec::new(),
        reserved: Vec::new(),
        mtu: None,
        labels: BTreeMap::new(),
        replace: true,
    }
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn lan() -> LanName {
    "public".parse().unwrap()
}

fn machine(n: u64) -> (VmId, VmName) {
    let name: VmName = format!("web-{n:03}").parse().unwrap();
    let cluster = ClusterId::from_bytes([7; 16]);
    (VmId::derive(&cluster, &name, 1), name)
}

struct Store {
    server: TestServer,
    networks: Kv<StoredNetwork>,
    addresses: Kv<StoredAddress>,
}

impl Store {
    async fn new() -> Self {
        let server = TestServer::start().await;
        let js = crate::store::context(server.broker().await);
        let bucket = |name: &'static str| BucketConfig::new(name);
        let networks = Box::pin(ensure_bucket(&js, bucket("muster_networks"))).await;
        let addresses = Box::pin(ensure_bucket(&js, bucket("muster_addresses"))).await;
        Self {
            server,
            networks: networks.unwrap(),
            addresses: addresses.unwrap(),
        }
    }

    async fn open(&self) -> Networks {
        let (networks, addresses) = (self.networks.clone(), self.addresses.clone());
        Networks::load(networks, addresses, Lease::fixed(1), Events::log_only())
            .await
            .unwrap()
    }

    /// Addresses as the store has them.
    async fn stored(&self) -> BTreeMap<String, VmName> {
        let all = self.addresses.list().await.unwrap().entries;
        all.into_iter().map(|e| (e.key, e.value.name)).collect()
    }
}

async fn put(networks: &Networks, put: PutNetwork) -> Result<NetworkView, NetworksError> {
    networks.put(authorized((lan(), put))).await
}

async fn reserve(networks: &Networks, n: u64) -> Result<Vec<IpAddr>, ReserveError> {
    let (id, name) = machine(n);
    let reserved = networks.reserve(&lan(), id, &name).await;
    reserved.map(|reserved| reserved.addresses)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_over_a_small_pool_get_one_each_until_it_is_full() {
    let store = Store::new().await;
    let networks = store.open().await;
    let mut small = network(&["192.0.2.0/25", "2001:db8::/64"]);
    small.gateways = addresses(&["192.0.2.1", "2001:db8::1"]);
    let view = put(&networks, small).await.unwrap();
    assert_eq!((view.used, view.free), (0, 125));
    let asking = (0..200).map(|n| {
        let networks = networks.clone();
        tokio::spawn(async move { reserve(&networks, n).await })
    });
    let mut given = Vec::new();
    let mut refused = BTreeSet::new();
    for asked in asking.collect::<Vec<_>>() {
        match asked.await.unwrap() {
            Ok(addresses) => given.extend(addresses),
            Err(error) => drop(refused.insert(error.to_string())),
        }
    }
    assert_eq!(
        given.len(),
        2 * 125,
        "exhausted when it is full, not before"
    );
    let once: BTreeSet<IpAddr> = given.iter().copied().collect();
    assert_eq!(once.len(), given.len(), "no address twice");
    assert!(!given.contains(&"192.0.2.1".parse().unwrap()));
    assert!(!given.contains(&"192.0.2.127".parse().unwrap()));
    // Nothing of those that got none stays: neither here nor there.
    assert_eq!(store.stored().await.len(), 2 * 125);
    assert_eq!(networks.machines().len(), 125);
    let all: Vec<String> = refused.into_iter().collect();
    insta::assert_snapshot!(all.join("\n"), @"network `public` has no IPv4 address left: 125 of 192.0.2.0/25 are in use; add a pool, or destroy machines");
    // Whoever loads it knows the same.
    let again = store.open().await;
    assert_eq!(again.get(&lan()).unwrap(), networks.get(&lan()).unwrap());
    let first = networks.machines()[0];
    assert_eq!(again.of(first), networks.of(first));
    // What is given back is given again.
    assert_eq!(networks.release(first).await.unwrap().len(), 2);
    assert_eq!(networks.release(first).await.unwrap(), []);
    let next = reserve(&networks, 1_000).await.unwrap();
    assert_eq!(next.len(), 2);
    assert_eq!(networks.get(&lan()).unwrap().free, 0);
    drop(store.server);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_brokers_over_one_store_never_give_the_same() {
    let store = Store::new().await;
    let one = store.open().await;
    put(&one, network(&["192.0.2.0/26"])).await.unwrap();
    let two = store.open().await;
    let asking = (0..80).map(|n| {
        let networks = if n % 2 == 0 { &one } else { &two }.clone();
        tokio::spawn(async move { reserve(&networks, n).await })
    });
    let mut given = Vec::new();
    for asked in asking.collect::<Vec<_>>() {
        given.extend(asked.await.unwrap().ok().into_iter().flatten());
    }
    let once: BTreeSet<IpAddr> = given.iter().copied().collect();
    assert_eq!((given.len(), once.len()), (62, 62));
    assert_eq!(store.stored().await.len(), 62);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_again_gets_the_same_and_failure_leaves_nothing() {
    let store = Store::new().await;
    let networks = store.open().await;
    let mut both = network(&["192.0.2.0/24", "2001:db8::10-2001:db8::10/64"]);
    both.gateways = addresses(&["192.0.2.254", "fe80::1"]);
    both.dns = addresses(&["9.9.9.9"]);
    both.mtu = Some(9000);
    put(&networks, both).await.unwrap();
    let (id, name) = machine(1);
    let first = networks.reserve(&lan(), id, &name).await.unwrap();
    insta::assert_debug_snapshot!((&first.addresses, &first.prefixes, &first.gateways), @"
    (
        [
            192.0.2.1,
            2001:db8::10,
        ],
        [
            24,
            64,
        ],
        [
            192.0.2.254,
            fe80::1,
        ],
    )
    ");
    // At once, and one after another, also of another broker.
    let public = lan();
    let again = (0..8).map(|_| networks.reserve(&public, id, &name));
    let again = futures_util::future::join_all(again);
    for again in again.await {
        assert_eq!(again.unwrap(), first);
    }
    assert_eq!(
        store.open().await.reserve(&lan(), id, &name).await.unwrap(),
        first
    );
    // There is one IPv6 address only: the next one gets no IPv4 address.
    let failed = reserve(&networks, 2).await.unwrap_err();
    insta::assert_snapshot!(failed, @"network `public` has no IPv6 address left: 1 of 2001:db8::10-2001:db8::10/64 are in use; add a pool, or destroy machines");
    assert_eq!(networks.of(machine(2).0), []);
    assert_eq!(store.stored().await.len(), 2);
    let (id, name) = machine(3);
    let nowhere: LanName = "nowhere".parse().unwrap();
    let unknown = networks.reserve(&nowhere, id, &name);
    insta::assert_snapshot!(unknown.await.unwrap_err(), @"there is no network `nowhere`; `muster network list` shows what there is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_changes_around_what_is_in_use() {
    let store = Store::new().await;
    let networks = store.open().await;
    let mut said = Vec::new();
    put(&networks, network(&["192.0.2.0/24"])).await.unwrap();
    for n in 1..=7 {
        reserve(&networks, n).await.unwrap();
    }
    let late = PutNetwork {
        replace: false,
        ..network(&["192.0.2.0/24"])
    };
    said.push(put(&networks, late).await.unwrap_err());
    let moved = network(&["192.0.2.100-192.0.2.200/24"]);
    said.push(put(&networks, moved).await.unwrap_err());
    said.push(networks.remove(authorized(lan())).await.unwrap_err());
    let other = networks.put(authorized((
        "other".parse().unwrap(),
        network(&["192.0.2.128/25"]),
    )));
    said.push(other.await.unwrap_err());
    said.push(
        networks
            .remove(authorized("other".parse().unwrap()))
            .await
            .unwrap_err(),
    );
    let said: Vec<String> = said.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(said.join("\n"), @"
    there is a network `public`; take another name, or change it: --replace
    network `public` would lose addresses that are in use: 192.0.2.1 by web-001, 192.0.2.2 by web-002, 192.0.2.3 by web-003, 192.0.2.4 by web-004, 192.0.2.5 by web-005, and 2 more; keep their pool, or destroy these machines first
    network `public` is in use: 192.0.2.1 by web-001, 192.0.2.2 by web-002, 192.0.2.3 by web-003, 192.0.2.4 by web-004, 192.0.2.5 by web-005, and 2 more; destroy these machines first
    the pool 192.0.2.128/25 has addresses of 192.0.2.0/24 of network `public`, on the same bridge br0; one of them must leave them out
    there is no network `other`; `muster network list` shows what there is
    ");
    // On another bridge it is another wire.
    let elsewhere = PutNetwork {
        bridge: "br1".parse().unwrap(),
        ..network(&["192.0.2.128/25"])
    };
    let other: LanName = "other".parse().unwrap();
    let other = networks.put(authorized((other, elsewhere))).await;
    assert_eq!(other.unwrap().free, 126);
    // What is in use stays so, and is not given again once it is reserved.
    let mut less = network(&["192.0.2.0/28"]);
    less.reserved = addresses(&["192.0.2.3", "192.0.2.9"]);
    let view = put(&networks, less).await.unwrap();
    assert_eq!((view.used, view.free), (7, 6));
    networks.release(machine(3).0).await.unwrap();
    let given: Vec<IpAddr> =
        futures_util::future::join_all((11..=16).map(|n| reserve(&networks, n)))
            .await
            .into_iter()
            .flat_map(Result::unwrap)
            .collect();
    let mut sorted = given.clone();
    sorted.sort();
    assert_eq!(
        sorted,
        addresses(&[
            "192.0.2.8",
            "192.0.2.10",
            "192.0.2.11",
            "192.0.2.12",
            "192.0.2.13",
            "192.0.2.14"
        ])
    );
    assert!(reserve(&networks, 17).await.is_err());
    for n in 1..=16 {
        networks.release(machine(n).0).await.unwrap();
    }
    assert_eq!(store.stored().await, BTreeMap::new());
    assert_eq!(networks.machines(), []);
    networks.remove(authorized(lan())).await.unwrap();
    assert!(networks.get(&lan()).is_err());
    assert_eq!(store.open().await.list(), networks.list());
}

#[test]
fn what_cannot_be_a_network_is_refused_and_says_why() {
    let full = |put: PutNetwork| Plan::read(&put).expect_err("refused").to_string();
    let one = |pool: &str| full(network(&[pool]));
    let with = |change: &dyn Fn(&mut PutNetwork)| {
        let mut put = network(&["192.0.2.0/24", "2001:db8::/64"]);
        change(&mut put);
        full(put)
    };
    let said = [
        one("../etc"),
        one("192.0.2.0"),
        one("192.0.2.5/24"),
        one("192.0.2.10-192.0.2.99"),
        one("192.0.2.99-192.0.2.10/24"),
        one("192.0.2.10-192.0.3.9/24"),
        one("192.0.2.10-2001:db8::1/24"),
        one("192.0.2.0-192.0.2.0/24"),
        one("192.0.2.0/99"),
        one("127.0.0.0/8"),
        one("::/0"),
        one("fe80::/64"),
        one("224.0.0.0/4"),
        one(&"9".repeat(300)),
        full(network(&[])),
        full(network(&["192.0.2.0/24"; 17])),
        full(network(&["192.0.2.0/24", "192.0.2.128-192.0.2.129/24"])),
        full(network(&["192.0.2.0/25", "192.0.2.128/25"])),
        with(&|put| put.gateways = addresses(&["192.0.2.1", "192.0.2.2"])),
        with(&|put| put.gateways = addresses(&["198.51.100.1"])),
        with(&|put| put.dns = addresses(&["0.0.0.0"])),
        with(&|put| put.mtu = Some(1000)),
        with(&|put| {
            put.pools[0] = "192.0.2.1/32".into();
            put.gateways = addresses(&["192.0.2.1"]);
        }),
        with(&|put| put.reserved = vec![IpAddr::from([192, 0, 2, 1]); 1001]),
    ];
    insta::assert_snapshot!(said.join("\n"), @"
    `../etc` is not a pool of addresses; write a prefix like 192.0.2.0/24, or a range like 192.0.2.10-192.0.2.99/24
    `192.0.2.0` is not a pool of addresses; write a prefix like 192.0.2.0/24, or a range like 192.0.2.10-192.0.2.99/24
    `192.0.2.5/24` is within 192.0.2.0/24; write 192.0.2.0/24, or the range that you mean
    `192.0.2.10-192.0.2.99` is not a pool of addresses; write a prefix like 192.0.2.0/24, or a range like 192.0.2.10-192.0.2.99/24
    `192.0.2.99-192.0.2.10/24` is no range within one prefix; its first address comes first
    `192.0.2.10-192.0.3.9/24` is no range within one prefix; its first address comes first
    `192.0.2.10-2001:db8::1/24` is no range within one prefix; its first address comes first
    `192.0.2.0-192.0.2.0/24` has no address for a machine
    `192.0.2.0/99` is not a pool of addresses; write a prefix like 192.0.2.0/24, or a range like 192.0.2.10-192.0.2.99/24
    no machine can have the addresses of `127.0.0.0/8`: they are for one host, one link, or groups
    no machine can have the addresses of `::/0`: they are for one host, one link, or groups
    no machine can have the addresses of `fe80::/64`: they are for one host, one link, or groups
    no machine can have the addresses of `224.0.0.0/4`: they are for one host, one link, or groups
    `9999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999…` is not a pool of addresses; write a prefix like 192.0.2.0/24, or a range like 192.0.2.10-192.0.2.99/24
    a network has 1 to 16 pools of addresses, not 0
    a network has 1 to 16 pools of addresses, not 17
    the pools 192.0.2.0/24 and 192.0.2.128-192.0.2.129/24 have addresses in common
    the pools 192.0.2.0/25 and 192.0.2.128/25 are of different subnets; make a network of each
    two gateways of IPv4; a network has at most one of each family
    the gateway 198.51.100.1 is in no subnet of the pools; no machine could reach it
    0.0.0.0 is not the address of a host
    packets of at most 1000 bytes: possible are 576 to 9216, with IPv6 from 1280
    the IPv4 pools have no address that is not reserved or a gateway
    at most 1000 addresses are reserved, not 1001; give ranges as pools that leave them out
    ");
}

#[test]
fn ends_of_subnets_are_nobodys() {
    let has = |pool: &str, address: &str| {
        let pool: Pool = pool.parse().unwrap();
        pool.contains(address.parse().unwrap())
    };
    for (pool, address, is) in [
        ("192.0.2.0/24", "192.0.2.0", false),
        ("192.0.2.0/24", "192.0.2.1", true),
        ("192.0.2.0/24", "192.0.2.255", false),
        ("192.0.2.0/31", "192.0.2.0", true),
        ("192.0.2.7/32", "192.0.2.7", true),
        ("192.0.2.0-192.0.2.255/23", "192.0.2.255", true),
        ("192.0.2.0-192.0.2.255/23", "192.0.2.0", false),
        ("2001:db8::/64", "2001:db8::", false),
        ("2001:db8::/64", "2001:db8::1", true),
        ("2001:db8::/64", "2001:db8::ffff:ffff:ffff:ffff", true),
        ("2001:db8::/127", "2001:db8::", true),
    ] {
        assert_eq!(has(pool, address), is, "{pool} {address}");
    }
}

proptest! {
    #[test]
    fn the_lowest_free_address_is_given(
        begin in 0_u8..200, len in 0_u8..40, gateway in 0_u8..=255,
        steps in proptest::collection::vec((any::<bool>(), 0_usize..40), 0..120),
    ) {
        let end = begin.saturating_add(len);
        let mut put = network(&[]);
        put.pools = vec![format!("192.0.2.{begin}-192.0.2.{end}/24")];
        put.gateways = addresses(&[&format!("192.0.2.{gateway}")]);
        let can: Vec<u8> = (begin..=end)
            .filter(|n| *n != 0 && *n != 255 && *n != gateway)
            .collect();
        let plan = match Plan::read(&put) {
            Ok(plan) => plan,
            Err(error) => {
                prop_assert!(can.is_empty(), "{}", error);
                return Ok(());
            }
        };
        let mut index = Index::default();
        let stored = StoredNetwork { put, by: "ana".parse().unwrap(), made: Timestamp::UNIX_EPOCH };
        index.put(lan(), Held::new(stored, 1, plan));
        let of = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mut model = BTreeSet::new();
        for (n, (take, which)) in steps.into_iter().enumerate() {
            if take {
                let (machine, name) = machine(n as u64);
                let value = StoredAddress { machine, name, reserved_at: Timestamp::UNIX_EPOCH };
                let given = index.propose(&lan(), Family::V4, Claim::sure(value));
                let lowest = can.iter().copied().find(|n| !model.contains(n));
                prop_assert_eq!(given, lowest.map(of));
                model.extend(lowest);
            } else if let Some(n) = can.get(which) {
                index.free(&lan(), of(*n));
                model.remove(n);
            }
            let held = index.network(&lan()).unwrap();
            let view = index.view(&lan(), held);
            prop_assert_eq!(view.used as usize, model.len());
            prop_assert_eq!(view.free as usize, can.len() - model.len());
            prop_assert_eq!(index.machines().len(), model.len());
        }
    }

    #[test]
    fn no_text_makes_a_pool_panic(text in "\\PC{0,60}", near in "[0-9a-f:./-]{0,40}") {
        for text in [text, near] {
            if let Ok(pool) = text.parse::<Pool>() {
                let again: Pool = pool.to_string().parse().unwrap();
                prop_assert_eq!(again, pool);
            }
        }
    }
}
