use super::*;
use crate::keys::BrokerKey;
use proptest::prelude::*;

const ME: Serial = Serial(17);

struct World {
    broker: PrivateKey,
    retired: PrivateKey,
    keys: KeyList,
    seen: HighWater,
}

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + secs).expect("in range")
}

fn world() -> World {
    let root = PrivateKey::from_seed(&[1; 32]);
    let broker = PrivateKey::from_seed(&[2; 32]);
    let retired = PrivateKey::from_seed(&[3; 32]);
    let entry = |k: &PrivateKey, state| BrokerKey {
        key: k.public(),
        state,
        added: at(0),
    };
    let keys = KeyList {
        cluster: ClusterId::from_bytes([9; 16]),
        epoch: 1,
        root: root.public(),
        keys: vec![
            entry(&broker, BrokerKeyState::Active),
            entry(&retired, BrokerKeyState::Revoked),
        ],
        issued: at(0),
    };
    let seen = HighWater {
        epoch: 5,
        newest: BTreeMap::from([(broker.public().id(), at(0))]),
    };
    World {
        broker,
        retired,
        keys,
        seen,
    }
}

fn request() -> Request {
    Request {
        v: 1,
        cluster: ClusterId::from_bytes([9; 16]),
        epoch: 5,
        run: RunId::from_bytes([4; 16]),
        step: 0,
        set: [ME, Serial(40)].into_iter().collect(),
        whole: NodeSet::new(),
        created: None,
        predicate: "role=web".into(),
        issued: at(0),
        start_before: at(15),
        principal: "ana".parse().expect("valid"),
        door: Door::Cli,
        promised: false,
        ask: Ask::Ping,
    }
}

fn check(w: &World, sealed: &Sealed, now: Timestamp) -> Result<Request, Refusal> {
    let (key, signature) = (sealed.key.to_string(), sealed.signature.to_string());
    let message = Incoming {
        key: Some(&key),
        signature: Some(&signature),
        bytes: &sealed.bytes,
    };
    Gate {
        keys: &w.keys,
        node: ME,
        seen: &w.seen,
    }
    .check(message, now)
    .map_err(|r| r.why)
}

fn refused(change: impl FnOnce(&mut Request)) -> Refusal {
    let w = world();
    let mut r = request();
    change(&mut r);
    check(&w, &r.seal(&w.broker), at(1)).expect_err("must be refused")
}

#[test]
fn a_good_request_passes_and_means_what_was_signed() {
    let w = world();
    assert_eq!(check(&w, &request().seal(&w.broker), at(1)), Ok(request()));
}

#[test]
fn each_thing_that_may_be_wrong_is_refused_by_its_name() {
    let w = world();
    assert_eq!(
        refused(|r| r.cluster = ClusterId::from_bytes([8; 16])).kind(),
        "wrong_cluster"
    );
    assert_eq!(
        refused(|r| r.set = [Serial(40)].into_iter().collect()).kind(),
        "not_in_set"
    );
    assert_eq!(refused(|r| r.epoch = 4).kind(), "lower_epoch");
    assert_eq!(refused(|r| r.start_before = at(61)).kind(), "window");
    assert_eq!(
        refused(|r| {
            r.issued = at(-91);
            r.start_before = at(-50);
        })
        .kind(),
        "replayed"
    );
    assert_eq!(
        refused(|r| {
            r.issued = at(-60);
            r.start_before = at(-30);
        })
        .kind(),
        "late"
    );
    assert_eq!(
        refused(|r| {
            r.issued = at(32);
            r.start_before = at(40);
        })
        .kind(),
        "early"
    );
    assert_eq!(
        check(&w, &request().seal(&w.retired), at(1)).map_err(|r| r.kind()),
        Err("revoked_key")
    );
    let stranger = PrivateKey::from_seed(&[5; 32]);
    assert_eq!(
        check(&w, &request().seal(&stranger), at(1)).map_err(|r| r.kind()),
        Err("unknown_key")
    );
    // A stranger who writes a trusted key's id over the top.
    let mut forged = request().seal(&stranger);
    forged.key = w.broker.public().id();
    assert_eq!(check(&w, &forged, at(1)), Err(Refusal::BadSignature));
    let gate = Gate {
        keys: &w.keys,
        node: ME,
        seen: &w.seen,
    };
    let bare = Incoming {
        key: None,
        signature: None,
        bytes: b"{}",
    };
    assert_eq!(
        gate.check(bare, at(1)).map_err(|r| r.why),
        Err(Refusal::Unsigned)
    );
}

#[test]
fn a_clock_an_hour_off_is_answered_and_strangers_are_not() {
    let w = world();
    for hour in [-3600, 3600] {
        let refusal = check(&w, &request().seal(&w.broker), at(hour)).expect_err("refused");
        assert!(refusal.is_answered(), "{refusal}");
    }
    let back = Refusal::Replayed { behind: 3_600 };
    assert!(
        back.is_answered() && back.to_string().contains("clock"),
        "{back}"
    );
    assert!(!Refusal::BadSignature.is_answered());
    assert!(!Refusal::NotInSet.is_answered());
}

#[test]
fn a_field_that_this_version_does_not_know_is_not_ignored() {
    let w = world();
    let mut json: Value = serde_json::to_value(request()).expect("json");
    json["only_if"] = "weekday".into();
    let bytes = serde_json::to_vec(&json).expect("json");
    let signature = w.broker.sign(Purpose::Request, &bytes);
    let sealed = Sealed {
        bytes,
        key: w.broker.public().id(),
        signature,
    };
    assert_eq!(
        check(&w, &sealed, at(1)).map_err(|r| r.kind()),
        Err("unreadable")
    );
}

#[test]
fn the_high_water_mark_only_rises() {
    let w = world();
    let key = w.broker.public().id();
    assert_eq!(w.seen.advanced(&request(), key), None);
    let mut later = request();
    later.issued = at(30);
    later.epoch = 6;
    let next = w.seen.advanced(&later, key).expect("moves");
    assert_eq!((next.epoch, next.newest[&key]), (6, at(30)));
    later.issued = at(10);
    later.epoch = 7;
    assert_eq!(
        next.advanced(&later, key).map(|n| n.newest[&key]),
        Some(at(30))
    );
}

proptest! {
    /// Whatever single byte is changed in flight, the request is refused.
    #[test]
    fn an_altered_byte_is_always_refused(place in any::<prop::sample::Index>(), flip in 1u8..) {
        let w = world();
        let mut sealed = request().seal(&w.broker);
        let i = place.index(sealed.bytes.len());
        sealed.bytes[i] ^= flip;
        prop_assert_eq!(check(&w, &sealed, at(1)), Err(Refusal::BadSignature));
    }
}
