//! Images: whole, the right ones, and layers over nothing.

use muster_protocol::vm::ImageFormat;
use proptest::prelude::*;

use super::*;

fn fetch(image: &ImageRef) -> VmCall {
    VmCall::Image {
        image: image.clone(),
    }
}

/// A qcow2 image of version 3 without a single cluster of data.
fn qcow2(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![0; 4 * 65_536];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    bytes[4..8].copy_from_slice(&3_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&16_u32.to_be_bytes());
    bytes[24..32].copy_from_slice(&GIB.to_be_bytes());
    bytes[36..40].copy_from_slice(&2_u32.to_be_bytes());
    bytes[40..48].copy_from_slice(&(3 * 65_536_u64).to_be_bytes());
    bytes[48..56].copy_from_slice(&65_536_u64.to_be_bytes());
    bytes[56..60].copy_from_slice(&1_u32.to_be_bytes());
    bytes[96..100].copy_from_slice(&4_u32.to_be_bytes());
    bytes[100..104].copy_from_slice(&104_u32.to_be_bytes());
    change(&mut bytes);
    bytes
}

#[tokio::test]
async fn it_is_fetched_once() {
    let bench = Bench::new();
    let image = raw_image();
    assert_eq!(
        bench.would(fetch(&image)).await,
        "would: fetch debian-12, 50KiB"
    );
    assert_eq!(bench.files(), Vec::<String>::new());
    assert_eq!(
        bench.does(fetch(&image)).await,
        "changed: fetched debian-12, 50KiB"
    );
    assert_eq!(bench.does(fetch(&image)).await, "unchanged");
    assert_eq!(*bench.shop.asked_from.lock().expect("a lock"), [0]);
    let path = bench.pool(&format!("muster-image-{}.raw", image.sha256));
    assert_eq!(std::fs::read(path).expect("there"), content());
}

#[tokio::test]
async fn a_transfer_that_breaks_off_is_gone_on_with() {
    for ranges in [true, false] {
        let mut bench = Bench::new();
        let breaks = if ranges {
            vec![20_000, 20_000]
        } else {
            vec![20_000]
        };
        let shop = Arc::new(Shop {
            bytes: Mutex::new(content()),
            breaks: Mutex::new(breaks),
            ranges,
            seeds: AtomicUsize::new(0),
            asked_from: Mutex::default(),
            no_seed: Mutex::default(),
        });
        bench.machines = Bench::machines(Arc::new(bench.memory.clone()), &shop, &bench.dir);
        let image = raw_image();
        bench.does(fetch(&image)).await;
        let asked = shop.asked_from.lock().expect("a lock").clone();
        let wanted: &[u64] = if ranges {
            &[0, 20_000, 40_000]
        } else {
            &[0, 20_000]
        };
        assert_eq!(asked, wanted);
        let path = bench.pool(&format!("muster-image-{}.raw", image.sha256));
        assert_eq!(std::fs::read(path).expect("there"), content(), "{ranges}");
        assert_eq!(bench.files(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn other_bytes_are_thrown_away() {
    let bench = Bench::new();
    let image = raw_image();
    bench.shop.bytes.lock().expect("a lock")[700] ^= 1;
    let said = bench.refuses(fetch(&image)).await;
    assert!(said.contains("has another hash than it should"), "{said}");
    assert_eq!(bench.files(), Vec::<String>::new());
    *bench.shop.bytes.lock().expect("a lock") = [content(), vec![0; 512]].concat();
    let said = bench.refuses(fetch(&image)).await;
    assert!(
        said.contains("more came of the image debian-12 than its 50KiB"),
        "{said}"
    );
    assert_eq!(bench.files(), Vec::<String>::new());
    // Whatever an earlier try left is held against the hash, too.
    *bench.shop.bytes.lock().expect("a lock") = content();
    let part = bench.pool(&format!(".muster-image-{}.part", image.sha256));
    std::fs::write(&part, vec![9; 30_000]).expect("written");
    let said = bench.refuses(fetch(&image)).await;
    assert!(said.contains("another hash"), "{said}");
    bench.does(fetch(&image)).await;
    // No room.
    let bench = Bench::new();
    let mut large = raw_image();
    large.size = Size(200 * GIB);
    insta::assert_snapshot!(
        bench.refuses(fetch(&large)).await,
        @"the pool `default` has 100GiB free, and 200GiB are needed for the image debian-12"
    );
}

#[tokio::test]
async fn a_part_that_is_no_file_is_not_followed() {
    let bench = Bench::new();
    let image = raw_image();
    let elsewhere = bench.dir.path().join("shadow");
    std::fs::write(&elsewhere, "secret").expect("written");
    let part = bench.pool(&format!(".muster-image-{}.part", image.sha256));
    std::os::unix::fs::symlink(&elsewhere, &part).expect("linked");
    bench.refuses(fetch(&image)).await;
    std::fs::remove_file(&part).expect("removed");
    std::fs::hard_link(&elsewhere, &part).expect("linked");
    bench.refuses(fetch(&image)).await;
    assert_eq!(std::fs::read(&elsewhere).expect("there"), b"secret");
}

#[tokio::test]
async fn an_image_that_is_a_layer_is_refused() {
    type Change = fn(&mut Vec<u8>);
    let cases: [(Change, &str); 5] = [
        (
            |bytes| {
                bytes[8..16].copy_from_slice(&512_u64.to_be_bytes());
                bytes[16..20].copy_from_slice(&11_u32.to_be_bytes());
                bytes[512..523].copy_from_slice(b"/etc/shadow");
            },
            "a layer over another file",
        ),
        (|bytes| bytes[79] |= 4, "has its bytes in another file"),
        (|bytes| bytes[35] = 2, "encrypted"),
        (
            |bytes| {
                bytes[24..32].copy_from_slice(&(2 * GIB).to_be_bytes());
                bytes[39] = 4;
            },
            "is one of a disk of 2GiB, and not of 1GiB",
        ),
        (|bytes| bytes[0] = b'X', "not a qcow2 image"),
    ];
    for (change, words) in cases {
        let bench = Bench::new();
        let bytes = qcow2(change);
        let image = image_of(&bytes, ImageFormat::Qcow2, GIB);
        *bench.shop.bytes.lock().expect("a lock") = bytes;
        let said = bench.refuses(fetch(&image)).await;
        assert!(said.contains(words), "{said}");
        assert_eq!(bench.files(), Vec::<String>::new());
        let kept = bench.pool(&format!("muster-image-{}.qcow2", image.sha256));
        assert!(!kept.exists(), "{words}");
    }
    let bench = Bench::new();
    let bytes = qcow2(|_| {});
    let image = image_of(&bytes, ImageFormat::Qcow2, GIB);
    *bench.shop.bytes.lock().expect("a lock") = bytes;
    bench.does(fetch(&image)).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_make_it_panic(head in prop::collection::vec(any::<u8>(), 1..600)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let bench = Bench::new();
            let mut bytes = qcow2(|_| {});
            bytes.splice(..head.len(), head);
            let image = image_of(&bytes, ImageFormat::Qcow2, GIB);
            *bench.shop.bytes.lock().expect("a lock") = bytes;
            let _ = bench.perform(fetch(&image), Mode::Apply).await;
        });
    }
}
