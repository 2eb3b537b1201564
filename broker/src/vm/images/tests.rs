//! Images, through the door.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use muster_protocol::api::IMAGE_PART;
use muster_protocol::keys::Purpose;
use muster_protocol::vm::ImageFormat;
use muster_protocol::wire::{Trust, proof_text};
use serde_json::{Value, json};

use super::*;
use crate::nats::testing::TestServer;
use crate::store::kv::{BucketConfig, ensure_bucket};
use crate::testing::{TestBroker, TestNode, state_for, wait_for};

async fn begin() -> (TestServer, tempfile::TempDir, TestBroker) {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, &tmp.path().join("state"));
    let broker = TestBroker::start(&server, &tmp.path().join("state")).await;
    (server, tmp, broker)
}

fn raw(bytes: &[u8]) -> Value {
    json!({
        "sha256": Sha256::of(bytes), "size": bytes.len(), "format": "raw",
        "virtual_size": bytes.len(),
    })
}

/// A disk of text: it is seen in answers as it is.
fn text(bytes: usize) -> Vec<u8> {
    let lines = (0..).flat_map(|n: u32| format!("line {n}\n").into_bytes());
    lines.take(bytes).collect()
}

/// As `qemu-img create -f qcow2 x 1G` leaves it, and changed.
fn qcow2(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut file = vec![0; 4 * 65_536];
    let mut put = |at: usize, value: u64, length: usize| {
        file[at..at + length].copy_from_slice(&value.to_be_bytes()[8 - length..]);
    };
    for (at, value, length) in [
        (0, 0x5146_49fb, 4),
        (4, 3, 4),
        (20, 16, 4),
        (24, 1 << 30, 8),
        (36, 2, 4),
        (40, 3 << 16, 8),
        (48, 1 << 16, 8),
        (56, 1, 4),
        (96, 4, 4),
        (100, 112, 4),
    ] {
        put(at, value, length);
    }
    change(&mut file);
    file
}

fn as_qcow2(bytes: &[u8]) -> Value {
    let mut body = raw(bytes);
    body["format"] = json!("qcow2");
    body["virtual_size"] = json!(1_u64 << 30);
    body
}

async fn put(broker: &TestBroker, name: &str, body: &Value) -> (u16, Value) {
    let path = format!("/v1/images/{name}");
    broker.call("PUT", &path, Some(body.clone())).await
}

async fn part(broker: &TestBroker, name: &str, part: u64, bytes: &[u8]) -> (u16, Value) {
    let head = format!(
        "PUT /v1/images/{name}/parts/{part} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Authorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        broker.token,
        bytes.len()
    );
    let (status, _, body) = broker.raw(&[head.as_bytes(), bytes].concat()).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

async fn commit(broker: &TestBroker, name: &str) -> (u16, Value) {
    let path = format!("/v1/images/{name}/commit");
    broker.call("POST", &path, None).await
}

/// Announces, sends everything, commits; the first answer that is no success.
async fn upload(broker: &TestBroker, name: &str, body: &Value, bytes: &[u8]) -> (u16, Value) {
    let (status, said) = put(broker, name, body).await;
    if status != 200 || said["image"].is_object() {
        return (status, said);
    }
    for number in said["missing"].as_array().unwrap() {
        let number = number.as_u64().unwrap();
        let begin = usize::try_from(number * IMAGE_PART).unwrap();
        let end = (begin + IMAGE_PART as usize).min(bytes.len());
        let (status, said) = part(broker, name, number, &bytes[begin..end]).await;
        if status != 204 {
            return (status, said);
        }
    }
    commit(broker, name).await
}

/// Asks for an image as a hypervisor does.
async fn fetch(
    broker: &TestBroker,
    node: &TestNode,
    serial: muster_protocol::ids::Serial,
    sha256: Sha256,
    from: u64,
) -> (u16, String, String) {
    let (_, trust) = broker.send("GET", "/v1/trust", None, None).await;
    let trust: Trust = serde_json::from_value(trust).unwrap();
    let (_, challenge) = broker.send("POST", "/v1/agent/challenge", None, None).await;
    let challenge = challenge["challenge"].as_str().unwrap();
    let text = proof_text(&trust.root, challenge, &node.nats.public_key());
    let body = json!({
        "serial": serial, "challenge": challenge, "image": sha256, "from": from,
        "proof": node.key.sign(Purpose::NodeProof, &text).to_string(),
    })
    .to_string();
    let ask = format!(
        "POST /v1/agent/image HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    broker.raw(ask.as_bytes()).await
}

fn files(path: &Path) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

fn title(answer: &(u16, Value)) -> String {
    let (status, said) = answer;
    let word = |key: &str| said[key].as_str().unwrap_or("-").to_owned();
    format!("{status} {}; {}", word("title"), word("hint"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_in_parts_and_goes_to_hypervisors() {
    let (_server, tmp, broker) = begin().await;
    let directory = tmp.path().join("state/images");
    let bytes = text(IMAGE_PART as usize + 512);
    let (body, sha256) = (raw(&bytes), Sha256::of(&bytes));
    let (first, second) = bytes.split_at(IMAGE_PART as usize);

    assert_eq!(part(&broker, "debian", 0, first).await.0, 409);
    let (status, said) = put(&broker, "debian", &body).await;
    assert_eq!((status, &said["missing"]), (200, &json!([0, 1])));
    assert_eq!(part(&broker, "debian", 1, second).await.0, 204);
    assert_eq!(part(&broker, "debian", 1, second).await.0, 204);
    let early = commit(&broker, "debian").await;
    insta::assert_snapshot!(title(&early), @"409 1 parts of this image are missing; send them, then commit again");
    let (_, said) = put(&broker, "debian", &body).await;
    assert_eq!(said["missing"], json!([0]));
    assert_eq!(part(&broker, "debian", 0, first).await.0, 204);
    let (status, said) = commit(&broker, "debian").await;
    assert_eq!((status, &said["sha256"]), (200, &json!(sha256)), "{said}");
    // Once more is the same.
    assert_eq!(commit(&broker, "debian").await, (200, said.clone()));
    let (status, again) = put(&broker, "debian", &body).await;
    assert_eq!((status, &again["image"]), (200, &said));
    assert_eq!(files(&directory), [sha256.to_string()]);
    let file = directory.join(sha256.to_string());
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    // Under another name there is nothing to send.
    let (_, other) = put(&broker, "other", &body).await;
    assert_eq!(other["image"]["name"], "other");

    let token = broker
        .invite(json!({ "name": "hv-01", "roles": ["hypervisor"] }))
        .await;
    let node = TestNode::new();
    let joined = node.enroll(&broker, &token).await;
    let serial = joined.credentials.serial;
    let (status, head, body) = fetch(&broker, &node, serial, sha256, 0).await;
    assert_eq!(status, 200, "{head}");
    assert!(body.as_bytes() == bytes);
    let from = IMAGE_PART - 7;
    let (_, head, body) = fetch(&broker, &node, serial, sha256, from).await;
    assert!(
        head.to_lowercase().contains("content-length: 519"),
        "{head}"
    );
    assert!(body.as_bytes() == &bytes[from as usize..]);
    let (status, _, body) = fetch(&broker, &node, serial, sha256, u64::MAX).await;
    assert_eq!((status, body.as_str()), (200, ""));
    let (status, _, _) = fetch(&broker, &node, serial, Sha256::of(b"other"), 0).await;
    assert_eq!(status, 404);
    let (status, _, _) = fetch(&broker, &TestNode::new(), serial, sha256, 0).await;
    assert_eq!(status, 403);
    // A node that makes no machines has no use for it.
    let token = broker.invite(json!({ "name": "web-01" })).await;
    let web = TestNode::new();
    let other = web.enroll(&broker, &token).await.credentials.serial;
    let (status, _, _) = fetch(&broker, &web, other, sha256, 0).await;
    assert_eq!(status, 403);

    // The bytes stay as long as a name refers to them.
    let removed = broker.call("DELETE", "/v1/images/other", None).await;
    assert_eq!(removed.0, 204);
    assert_eq!(files(&directory), [sha256.to_string()]);
    let removed = broker.call("DELETE", "/v1/images/debian", None).await;
    assert_eq!(removed.0, 204);
    assert!(files(&directory).is_empty());
    let gone = broker.call("DELETE", "/v1/images/debian", None).await;
    assert_eq!(gone.0, 404);
    let (status, _, _) = fetch(&broker, &node, serial, sha256, 0).await;
    assert_eq!(status, 404);
    let (_, all) = broker.call("GET", "/v1/events?limit=500", None).await;
    let kinds: Vec<&str> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["type"].as_str())
        .filter(|kind| kind.starts_with("image."))
        .collect();
    let count = |kind| kinds.iter().filter(|k| **k == kind).count();
    assert_eq!((count("image.added"), count("image.removed")), (2, 2));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_refused_and_leaves_nothing() {
    let (_server, tmp, broker) = begin().await;
    let whole = qcow2(|_| {});
    let mut said = Vec::new();
    // A backing file, an external data file, encryption, a version.
    for (at, value) in [(15, 1), (79, 4), (35, 1), (7, 9)] {
        let bytes = qcow2(|file| file[at] = value);
        said.push(upload(&broker, "bad", &as_qcow2(&bytes), &bytes).await);
    }
    let mut wrong = as_qcow2(&whole);
    wrong["sha256"] = json!(Sha256::of(b"something else"));
    said.push(upload(&broker, "bad", &wrong, &whole).await);
    // Cut off in the middle, and honest about it.
    let cut = &whole[..65_536];
    said.push(upload(&broker, "bad", &as_qcow2(cut), cut).await);
    let with = |key: &str, value: Value| {
        let mut body = as_qcow2(&whole);
        body[key] = value;
        body
    };
    for body in [
        with("virtual_size", json!(1_u64 << 31)),
        with("format", json!("raw")),
    ] {
        said.push(upload(&broker, "bad", &body, &whole).await);
    }
    for body in [
        with("size", json!(0)),
        with("size", json!(1_u64 << 50)),
        with("virtual_size", json!(0)),
        with("sha256", json!("../../etc/passwd")),
        with("format", json!("vmdk")),
        with("path", json!("/etc/shadow")),
        with("url", json!("ftp://a/b")),
        with("url", json!("file:///etc/shadow")),
        with("url", json!("https://ana:secret@a/b")),
        with("url", json!(format!("https://a/{}", "b".repeat(3_000)))),
    ] {
        said.push(put(&broker, "bad", &body).await);
    }
    let fine = as_qcow2(&whole);
    for name in [
        "..%2f..%2fetc",
        "a%00b",
        "A",
        "%F0%9F%90%A7",
        &"a".repeat(300),
    ] {
        said.push(put(&broker, name, &fine).await);
    }
    assert_eq!(put(&broker, "bad", &fine).await.0, 200);
    said.push(part(&broker, "bad", 0, &whole[1..]).await);
    said.push(part(&broker, "bad", 1, b"more").await);
    said.push(part(&broker, "bad", u64::from(u32::MAX), b"more").await);
    said.push(part(&broker, "bad", u64::MAX, b"more").await);
    said.push(part(&broker, "bad", 0, &vec![0; IMAGE_PART as usize + 2_000]).await);
    said.push(commit(&broker, "other").await);
    let lines: Vec<String> = said.iter().map(title).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    400 this qcow2 image is a layer over another file, its backing file; make it whole: qemu-img convert -O qcow2
    400 this qcow2 image has its bytes in another file, its external data file; make it whole: qemu-img convert -O qcow2
    400 this qcow2 image is encrypted; give one that is not
    400 a qcow2 image of version 9 is not known; convert it: qemu-img convert -O qcow2
    400 the bytes that came are not those of the image: their SHA-256 is 88fad7459dcf6c839d610f5a42664daaf6158a6bd8fef7788506054906c0cf31, announced was f41f3fa625ff120ddca7ef456bf66371ecea23c129f4e4c32367101edb516cf8; send it again
    400 this qcow2 image has 65536 bytes, and its tables end at 196624; it is cut off
    400 a disk of this image has 1073741824 bytes, announced were 2147483648; announce what it has
    400 this is a qcow2 image, not a raw one; give its format as qcow2
    413 an image of 0B is not taken; it has 1 byte to 1TiB
    413 an image of 1024TiB is not taken; it has 1 byte to 1TiB
    400 a disk of 0 bytes: a disk has 1 to 64TiB; -
    400 the body cannot be read; -
    400 the body cannot be read; -
    400 the body cannot be read; -
    400 this is not an address to fetch an image from: only http and https are fetched; write it like https://images.example.org/debian-12.qcow2, in at most 2000 bytes
    400 this is not an address to fetch an image from: only http and https are fetched; write it like https://images.example.org/debian-12.qcow2, in at most 2000 bytes
    400 this is not an address to fetch an image from: there is a user or a password in it; write it like https://images.example.org/debian-12.qcow2, in at most 2000 bytes
    400 this is not an address to fetch an image from: it is too long; write it like https://images.example.org/debian-12.qcow2, in at most 2000 bytes
    400 this path does not say plainly where it leads; no `//`, `.` or `..` as a part, and no `/`, `\`, `.` or control character as `%XX`
    400 this path does not say plainly where it leads; no `//`, `.` or `..` as a part, and no `/`, `\`, `.` or control character as `%XX`
    400 `A` is not a valid image name: `A` is not allowed; it takes small letters, digits and `-_.`; -
    400 `🐧` is not a valid image name: `🐧` is not allowed; it takes small letters, digits and `-_.`; -
    400 `aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…` is not a valid image name: it has 300 bytes, at most 63 are allowed; -
    400 part 0 of this image must have 262144 bytes, not 262143; -
    400 part 1 of this image must have 0 bytes, not 4; -
    400 part 4294967295 of this image must have 0 bytes, not 4; -
    400 the path cannot be read; -
    413 a part of an image has at most 4194304 bytes; -
    409 no upload of image `other` is under way; announce it again, what has come is kept
    ");
    assert!(files(&tmp.path().join("state/images")).is_empty());
    let (_, all) = broker.call("GET", "/v1/images", None).await;
    assert_eq!(all["items"], json!([]));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_after_the_broker_was_killed_and_old_bytes_go() {
    let (server, tmp, broker) = begin().await;
    let state = tmp.path().join("state");
    let directory = state.join("images");
    let bytes = text(2 * IMAGE_PART as usize);
    let (body, sha256) = (raw(&bytes), Sha256::of(&bytes));
    let (first, second) = bytes.split_at(IMAGE_PART as usize);
    put(&broker, "debian", &body).await;
    assert_eq!(part(&broker, "debian", 0, first).await.0, 204);
    let small = text(512);
    assert_eq!(upload(&broker, "small", &raw(&small), &small).await.0, 200);
    let url = "https://images.example.org/d.img";
    let mut far = raw(b"");
    far["size"] = json!(1024);
    far["virtual_size"] = json!(1024);
    far["url"] = json!(url);
    let (status, said) = put(&broker, "far", &far).await;
    assert_eq!((status, &said["image"]["url"]), (200, &json!(url)));
    broker.crash().await;

    // Bytes that nobody refers to, an upload that nobody goes on with, and
    // what is not muster's.
    let stray = Sha256::of(b"stray").to_string();
    let old = format!("{}.part", Sha256::of(b"old"));
    std::fs::write(directory.join(&stray), b"stray").unwrap();
    std::fs::create_dir(directory.join(&old)).unwrap();
    let long_ago = std::time::SystemTime::now() - 2 * ABANDONED;
    let opened = std::fs::File::open(directory.join(&old)).unwrap();
    opened.set_modified(long_ago).unwrap();
    std::fs::write(directory.join("README"), b"mine").unwrap();

    let broker = TestBroker::start(&server, &state).await;
    let mut left = [
        format!("{sha256}.part"),
        Sha256::of(&small).to_string(),
        "README".into(),
    ];
    left.sort();
    assert_eq!(files(&directory), left);
    let (status, _) = part(&broker, "debian", 1, second).await;
    assert_eq!(status, 409, "announced again first");
    let (_, said) = put(&broker, "debian", &body).await;
    assert_eq!(said["missing"], json!([1]));
    assert_eq!(part(&broker, "debian", 1, second).await.0, 204);
    assert_eq!(commit(&broker, "debian").await.0, 200);

    let token = broker
        .invite(json!({ "name": "hv-01", "roles": ["hypervisor"] }))
        .await;
    let node = TestNode::new();
    let serial = node.enroll(&broker, &token).await.credentials.serial;
    let (status, head, at) = fetch(&broker, &node, serial, Sha256::of(b""), 0).await;
    assert_eq!(status, 200);
    assert!(head.contains("application/json"), "{head}");
    assert_eq!(
        serde_json::from_str::<Value>(&at).unwrap(),
        json!({ "url": url })
    );

    // Another image under the name: only when that is said; the old bytes go.
    let mut other = raw(&small);
    let taken = put(&broker, "debian", &other).await;
    insta::assert_snapshot!(title(&taken), @"409 there is an image `debian` of other bytes; take another name, or replace it: --replace");
    other["replace"] = json!(true);
    assert_eq!(put(&broker, "debian", &other).await.1["image"]["size"], 512);
    let mut left = [Sha256::of(&small).to_string(), "README".into()];
    left.sort();
    assert_eq!(files(&directory), left);

    // Another broker's disk: it is said, and they can come again.
    std::fs::remove_file(directory.join(Sha256::of(&small).to_string())).unwrap();
    let (status, _, body) = fetch(&broker, &node, serial, Sha256::of(&small), 0).await;
    assert_eq!(status, 404);
    assert!(body.contains("another one took them"), "{body}");
    assert_eq!(
        put(&broker, "small", &raw(&small)).await.1["missing"],
        json!([0])
    );
    assert_eq!(upload(&broker, "small", &raw(&small), &small).await.0, 200);
    let (status, _, _) = fetch(&broker, &node, serial, Sha256::of(&small), 0).await;
    assert_eq!(status, 200);

    let reader = json!({ "for": "rita", "role": "reader" });
    let (_, reader) = broker.call("POST", "/v1/tokens", Some(reader)).await;
    let reader = reader["token"].as_str();
    let (status, _) = broker.send("GET", "/v1/images", reader, None).await;
    assert_eq!(status, 200);
    let (status, _) = broker
        .send("DELETE", "/v1/images/small", reader, None)
        .await;
    assert_eq!(status, 403);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_fetch_at_a_time() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let js = crate::store::context(server.broker().await);
    let bucket: Kv<StoredImage> = Box::pin(ensure_bucket(&js, BucketConfig::new("muster_images")))
        .await
        .unwrap();
    let bytes = text(8 << 20);
    let stored = StoredImage::new(
        "debian".parse().unwrap(),
        &PutImage {
            sha256: Sha256::of(&bytes),
            size: Size(bytes.len() as u64),
            format: ImageFormat::Raw,
            virtual_size: Size(bytes.len() as u64),
            url: None,
            replace: false,
        },
        "ana".parse().unwrap(),
    );
    bucket.create("debian", &stored).await.unwrap();
    let directory = tmp.path().join("images");
    let directory_of = |name: &str| directory.join(name);
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory_of(&stored.image.sha256.to_string()), &bytes).unwrap();
    let images = Images::open(
        directory.clone(),
        bucket,
        Lease::fixed(1),
        Events::log_only(),
    );
    let images = images.await.unwrap();
    let sha256 = stored.image.sha256;
    let mut open = Vec::new();
    for _ in 0..FETCHES {
        match images.reader(sha256, 0).await.unwrap() {
            Source::Bytes(left, pieces) => {
                assert_eq!(left, bytes.len() as u64);
                open.push(pieces);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        images.reader(sha256, 0).await.unwrap(),
        Source::Busy
    ));
    // One reads to its end, another goes away: both leave their places.
    let mut read = Vec::new();
    let mut pieces = open.pop().unwrap();
    while let Some(piece) = pieces.recv().await {
        read.extend_from_slice(&piece.unwrap());
    }
    assert!(read == bytes);
    drop(open.pop());
    let mut again = Vec::new();
    for _ in 0..2 {
        again.push(
            wait_for("a place", async || {
                match images.reader(sha256, 0).await.unwrap() {
                    Source::Bytes(_, pieces) => Some(pieces),
                    _ => None,
                }
            })
            .await,
        );
    }
    assert!(matches!(
        images.reader(sha256, 0).await.unwrap(),
        Source::Busy
    ));
}
