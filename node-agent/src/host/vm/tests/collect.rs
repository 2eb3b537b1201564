//! Images that nothing needs go, and nothing else does.

use std::fs::File;
use std::time::SystemTime;

use futures_util::FutureExt as _;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// Has a file be one that nobody wrote to for so long.
fn old(bench: &Bench, name: &str, days: u32) {
    let file = File::options().write(true).open(bench.pool(name));
    let then = SystemTime::now() - DAY * days;
    file.expect("opened").set_modified(then).expect("set");
}

fn image() -> String {
    format!("muster-image-{}.raw", raw_image().sha256)
}

/// A disk that is a layer over that file.
fn layer(bench: &Bench, name: &str, over: &str) {
    let mut head = b"QFI\xfb\0\0\0\x03".to_vec();
    head.extend(112_u64.to_be_bytes());
    head.extend(u32::try_from(over.len()).expect("short").to_be_bytes());
    head.resize(112, 0);
    head.extend(over.as_bytes());
    std::fs::write(bench.pool(name), head).expect("written");
}

async fn collected(bench: &Bench) -> Vec<String> {
    bench.machines.collect(DAY * 7).await.expect("looked at")
}

#[tokio::test]
async fn an_image_goes_when_nothing_is_made_of_it_for_long() {
    let bench = Bench::with_image().await;
    assert_eq!(collected(&bench).await, [""; 0], "it came just now");
    old(&bench, &image(), 6);
    assert_eq!(collected(&bench).await, [""; 0], "not long enough");

    // As long as there is a machine of it, or its disk.
    bench.does(create("web-01")).await;
    for what in ["its domain", "its disk"] {
        old(&bench, &image(), 100);
        assert_eq!(collected(&bench).await, [""; 0], "{what}");
        // It counts from then on.
        let found = std::fs::metadata(bench.pool(&image())).expect("there");
        let age = found.modified().expect("a time").elapsed().expect("past");
        assert!(age < DAY, "{what}: {age:?}");
        bench.does(destroy("web-01", false)).await;
    }
    bench.does(destroy("web-01", true)).await;
    assert_eq!(collected(&bench).await, [""; 0]);

    // Whoever is about to make one of it has it.
    old(&bench, &image(), 100);
    bench.does(VmCall::Image { image: raw_image() }).await;
    assert_eq!(collected(&bench).await, [""; 0]);
    old(&bench, &image(), 8);
    assert_eq!(collected(&bench).await, [image()]);
    assert!(!bench.pool(&image()).exists());
}

#[tokio::test]
async fn an_image_stays_under_any_disk_and_where_one_cannot_be_read() {
    let bench = Bench::with_image().await;
    old(&bench, &image(), 100);
    let path = bench.pool(&image()).display().to_string();
    let named = format!("json:{{\"file\":{{\"filename\":\"{path}\"}}}}");
    for over in [path, image(), named] {
        layer(&bench, "somebody.qcow2", &over);
        assert_eq!(collected(&bench).await, [""; 0], "{over}");
        old(&bench, &image(), 100);
    }
    layer(&bench, "somebody.qcow2", "/other/image.qcow2");
    let head = std::fs::read(bench.pool("somebody.qcow2")).expect("there");
    for (length, says) in [(18, "cut off"), (19, "cut off"), (120, "cut off")] {
        std::fs::write(bench.pool("somebody.qcow2"), &head[..length]).expect("written");
        let said = bench.machines.collect(DAY).await.expect_err("unread");
        assert!(said.to_string().contains(says), "{length}: {said}");
    }
    let mut long = head.clone();
    long[16] = 0xff;
    std::fs::write(bench.pool("somebody.qcow2"), &long).expect("written");
    let said = bench.machines.collect(DAY).await.expect_err("unread");
    assert!(said.to_string().contains("cannot be read"), "{said}");
    // What is no disk names nothing.
    for other in [&b""[..], b"QFI", b"anything else"] {
        std::fs::write(bench.pool("somebody.qcow2"), other).expect("written");
        bench
            .machines
            .collect(DAY * 1_000)
            .await
            .expect("looked at");
    }
    bench.memory.hang(true);
    bench.machines.collect(DAY).await.expect_err("unheard");
    bench.memory.hang(false);
    assert!(bench.pool(&image()).exists());
    std::fs::write(bench.pool("somebody.qcow2"), head).expect("written");
    assert_eq!(collected(&bench).await, [image()]);
}

/// A domain of somebody else's with such a disk.
fn strangers(bench: &Bench, disk: &str) {
    let uuid = "6f0c3a5e-0000-4000-8000-000000000001"
        .parse()
        .expect("a UUID");
    let xml = format!("<domain><devices>{disk}</devices></domain>");
    bench.memory.put_as(foreign("somebodys", uuid), &xml);
}

fn qcow2(source: &str) -> String {
    format!("<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>{source}</disk>")
}

#[tokio::test]
async fn an_image_stays_under_a_strangers_disk_wherever_it_is() {
    let bench = Bench::with_image().await;
    old(&bench, &image(), 100);
    let there = tempfile::tempdir().expect("a directory");
    let at = |name: &str| there.path().join(name);
    let base = bench.pool(&image());
    let head = |over: &str| {
        layer(&bench, "somebody.qcow2", over);
        let bytes = std::fs::read(bench.pool("somebody.qcow2")).expect("there");
        std::fs::remove_file(bench.pool("somebody.qcow2")).expect("removed");
        bytes
    };
    std::os::unix::fs::symlink(&base, at("link")).expect("linked");
    let path = base.display().to_string();
    let named =
        |name: &str| format!("json:{{\"driver\":\"qcow2\",\"file\":{{\"filename\":\"{name}\"}}}}");
    let top = format!("<source file='{}'/>", at("top").display());
    for (below, lowest) in [
        // Through one in between, named by its place beside the other one.
        ("middle".to_owned(), path.clone()),
        (format!("file:{}", at("middle").display()), path.clone()),
        (named("middle"), path.clone()),
        // Named in the end by something that leads to it.
        ("middle".to_owned(), "link".to_owned()),
    ] {
        std::fs::write(at("top"), head(&below)).expect("written");
        std::fs::write(at("middle"), head(&lowest)).expect("written");
        strangers(&bench, &qcow2(&top));
        assert_eq!(collected(&bench).await, [""; 0], "{below} {lowest}");
        old(&bench, &image(), 100);
    }
    // What libvirt knows is below it, and disks that are no layers.
    for disk in [
        qcow2(&format!(
            "<source file='{0}'/><backingStore type='file'><source file='{path}'/></backingStore>",
            at("link").display()
        )),
        format!("<disk type='file'><source file='{path}'/></disk>"),
        format!(
            "<disk type='file'><driver type='raw'/><source file='{}'/></disk>",
            at("link").display()
        ),
        qcow2(&format!("<source pool='default' volume='{}'/>", image())),
    ] {
        strangers(&bench, &disk);
        assert_eq!(collected(&bench).await, [""; 0], "{disk}");
        old(&bench, &image(), 100);
    }

    // What cannot be read may be a layer over anything.
    let mut elsewhere = head("link");
    elsewhere[79] = 4;
    let is_no_file = head(&there.path().display().to_string());
    for (bytes, says) in [
        (head("none"), "No such file"),
        (head("nbd://10.0.0.1/x"), "not on this host"),
        (head("json:{\"driver\":\"nbd\"}"), "not on this host"),
        (head("json:{"), "EOF"),
        (is_no_file, "neither a file nor a disk"),
        (head("link")[..19].to_vec(), "cut off"),
        (elsewhere, "in another file"),
    ] {
        std::fs::write(at("top"), bytes).expect("written");
        strangers(&bench, &qcow2(&top));
        let said = bench.machines.collect(DAY).await.expect_err("unread");
        assert!(said.to_string().contains(says), "{said}");
    }
    for (disk, says) in [
        (qcow2("<source file='/nowhere/x'/>"), "No such file"),
        (
            qcow2("<source dev='/dev/zero'/>"),
            "neither a file nor a disk",
        ),
        (qcow2("<source protocol='rbd' name='x'/>"), "(rbd)"),
        (
            qcow2("<source pool='default' volume='../x'/>"),
            "No such file",
        ),
        (
            qcow2("<source pool='other' volume='x'/>"),
            "other/x is not there",
        ),
        ("<disk>".to_owned(), "odd"),
    ] {
        strangers(&bench, &disk);
        let said = bench.machines.collect(DAY).await.expect_err("unread");
        assert!(said.to_string().contains(says), "{disk}: {said}");
    }
    assert!(base.exists());

    // A drive, and a disk that holds what its guest wrote, are none.
    strangers(
        &bench,
        "<disk device='cdrom'><source file='/nowhere/x.iso'/></disk><disk device='cdrom'/>\
         <disk><driver type='raw'/><source file='/nowhere/x.raw'/></disk>",
    );
    assert_eq!(collected(&bench).await, [image()]);
}

#[tokio::test]
async fn nothing_goes_while_a_machine_is_made_and_old_parts_do() {
    let bench = Bench::with_image().await;
    let part = format!(".muster-image-{}.part", Sha256::of(b"other"));
    let strange = ".muster-image-x.part";
    for name in [&part, strange] {
        std::fs::write(bench.pool(name), "some").expect("written");
        old(&bench, name, 2);
    }
    old(&bench, &image(), 100);
    let stuck = Arc::new(Stuck {
        memory: bench.memory.clone(),
        left: Mutex::new(1),
        after: false,
    });
    let machines = Bench::machines(stuck.clone(), &bench.shop, &bench.dir);
    let call = create("web-01");
    let mut making = Box::pin(machines.perform(&call, Mode::Apply, &Silence));
    assert!((&mut making).now_or_never().is_none());
    *stuck.left.lock().expect("a lock") = 1_000;
    assert_eq!(machines.collect(DAY).await.expect("looked at"), [""; 0]);
    drop(making);
    let fresh = format!(".muster-image-{}.part", Sha256::of(b"fresh"));
    std::fs::write(bench.pool(&fresh), "some").expect("written");
    assert_eq!(collected(&bench).await, [image(), part]);
    assert!(bench.pool(strange).exists() && bench.pool(&fresh).exists());
}
