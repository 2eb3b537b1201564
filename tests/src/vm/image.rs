//! A disk that boots by itself: Debian's kernel, a busybox, the agent as it
//! was built. Made once, without root and without mounts, and kept in the
//! build directory until something that it is made of changes.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use super::parts::Parts;
use crate::bin;

const MIB: u64 = 1 << 20;
/// Where the file system with the kernel begins, and how large it is.
const BOOT_AT: u64 = MIB;
const BOOT_SIZE: u64 = 32 * MIB;
/// What is free on the guest's disk.
const ROOM: u64 = 96 * MIB;
/// How long an image is kept that is not made any more from what is there:
/// another test may still boot it.
const OLD: Duration = Duration::from_secs(3600);

/// In this order, each behind what it needs.
const MODULES: [&str; 12] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_utf8",
    "button",
    "evdev",
];

const BOOT: &str = include_str!("guest/syslinux.cfg");
const FIRST: &str = include_str!("guest/initrd-init");
/// Files of the guest; those below `/etc/rc` and `/etc/acpi` are run.
const FILES: [(&str, &str); 6] = [
    ("etc/inittab", include_str!("guest/inittab")),
    ("etc/rc", include_str!("guest/rc")),
    ("etc/rc.agent", include_str!("guest/rc.agent")),
    ("etc/rc.stop", include_str!("guest/rc.stop")),
    ("etc/acpi/PWRF/00000080", include_str!("guest/acpi-power")),
    ("etc/json.awk", include_str!("guest/json.awk")),
];

/// The image.
#[derive(Clone, Debug)]
pub struct Image {
    /// The file, qcow2 without a backing file. It is nobody's to write to.
    pub path: PathBuf,
    /// How large a disk of it is at least.
    pub virtual_size: u64,
}

impl Image {
    /// The one that belongs to what is built and installed now, made if it is
    /// not there. Two tests that need it at once make it once.
    ///
    /// # Errors
    /// When something is missing, or a program that makes it fails.
    pub fn made() -> Result<Self> {
        let parts = Parts::find()?;
        let agent = bin("muster-agent");
        fs::create_dir_all(&parts.cache)?;
        let lock = File::create(parts.cache.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let path = parts.cache.join(format!("{}.qcow2", key(&parts, &agent)?));
        if !path.exists() {
            tidy(&parts.cache)?;
            let work = tempfile::Builder::new()
                .prefix("making-")
                .tempdir_in(&parts.cache)?;
            let whole = make(&parts, &agent, work.path())?;
            // There whole, or not at all.
            fs::rename(whole, &path)?;
        }
        let mut head = [0; 32];
        File::open(&path)?.read_exact(&mut head)?;
        let size = head[24..].try_into().context("the size in its header")?;
        Ok(Self {
            path,
            virtual_size: u64::from_be_bytes(size),
        })
    }

    /// A disk in that file which begins as the image, and writes for itself.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn overlay(&self, file: &Path) -> Result<()> {
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(&self.path)
            .arg(file))
    }
}

/// A hash over everything that the image is made of.
fn key(parts: &Parts, agent: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for text in [
        include_str!("image.rs"),
        include_str!("parts.rs"),
        BOOT,
        FIRST,
    ] {
        hash.update(Sha256::digest(text));
    }
    for (name, text) in FILES {
        hash.update(Sha256::digest(name));
        hash.update(Sha256::digest(text));
    }
    for file in [agent, &parts.kernel, &parts.qemu_ga, &parts.busybox] {
        let bytes = fs::read(file).with_context(|| file.display().to_string())?;
        hash.update(Sha256::digest(bytes));
    }
    Ok(data_encoding::HEXLOWER.encode(&hash.finalize()[..12]))
}

/// Removes what was left over and images that nobody asks for any more.
fn tidy(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let age = SystemTime::now()
            .duration_since(entry.metadata()?.modified()?)
            .unwrap_or_default();
        if name.starts_with("making-") {
            // Whoever made it held the lock, and does no more.
            fs::remove_dir_all(entry.path())?;
        } else if name.ends_with(".qcow2") && age > OLD {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Runs a program to its end.
fn run(command: &mut Command) -> Result<()> {
    let said = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    ensure!(
        said.status.success(),
        "{command:?} ended with {}: {}{}",
        said.status,
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(())
}

fn executable(file: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    fs::write(file, bytes)?;
    Ok(fs::set_permissions(
        file,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// The image, in that empty directory.
fn make(parts: &Parts, agent: &Path, work: &Path) -> Result<PathBuf> {
    let initrd = first_files(parts, work)?;
    let root = root_files(parts, agent, work)?;
    let disk = work.join("disk");
    boot_partition(parts, &initrd, &disk, work)?;
    let root_at = BOOT_AT + BOOT_SIZE;
    let root_size = root_partition(&root, &disk, root_at)?;
    boot_record(&parts.boot_record, &disk, root_at, root_size)?;
    let image = work.join("image");
    // Compressed: it is copied to hypervisors, again and again.
    run(Command::new("qemu-img")
        .args(["convert", "-q", "-c", "-O", "qcow2"])
        .arg(&disk)
        .arg(&image))?;
    Ok(image)
}

/// What the kernel starts with: modules, and the way to the disk.
fn first_files(parts: &Parts, work: &Path) -> Result<PathBuf> {
    let dir = work.join("first");
    for name in ["bin", "dev", "modules", "root"] {
        fs::create_dir_all(dir.join(name))?;
    }
    executable(&dir.join("init"), FIRST)?;
    fs::copy(&parts.busybox, dir.join("bin/busybox"))?;
    let mut order = String::new();
    for module in parts.modules(&MODULES)? {
        let name = module.file_name().context("a module")?;
        fs::copy(&module, dir.join("modules").join(name))
            .with_context(|| module.display().to_string())?;
        writeln!(order, "{}", name.to_string_lossy())?;
    }
    fs::write(dir.join("modules/order"), order)?;
    let archive = work.join("initrd");
    // The names are ours: no shell reads anything else.
    run(Command::new(&parts.busybox)
        .args(["sh", "-c", "find . | busybox cpio -o -H newc >../initrd"])
        .current_dir(&dir))?;
    Ok(archive)
}

/// The guest's own files.
fn root_files(parts: &Parts, agent: &Path, work: &Path) -> Result<PathBuf> {
    let root = work.join("root");
    for name in [
        "bin",
        "dev",
        "etc/acpi/PWRF",
        "proc",
        "root",
        "run",
        "srv",
        "sys",
        "tmp",
        "var/lib",
    ] {
        fs::create_dir_all(root.join(name))?;
    }
    symlink("bin", root.join("sbin"))?;
    symlink("../run", root.join("var/run"))?;
    let busybox = root.join("bin/busybox");
    fs::copy(&parts.busybox, &busybox)?;
    let applets = Command::new(&parts.busybox).arg("--list").output()?;
    for applet in String::from_utf8(applets.stdout)?.lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet))?;
        }
    }
    for (name, text) in FILES {
        executable(&root.join(name), text)?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    for (from, to) in [(agent, "muster-agent"), (&parts.qemu_ga, "qemu-ga")] {
        let to = root.join("bin").join(to);
        fs::copy(from, &to)?;
        // Without what only a debugger reads it is a third.
        let _ = run(Command::new("strip").arg(&to));
        for library in libraries(from)? {
            let inside = root.join(library.strip_prefix("/")?);
            fs::create_dir_all(inside.parent().context("a directory")?)?;
            fs::copy(&library, &inside).with_context(|| library.display().to_string())?;
        }
    }
    Ok(root)
}

/// The libraries that a program of this machine needs.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8(said.stdout)?;
    ensure!(
        said.status.success() && !text.contains("not found"),
        "{} lacks libraries: {text}",
        program.display()
    );
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// A FAT file system with a boot loader, the kernel and the first files.
fn boot_partition(parts: &Parts, initrd: &Path, disk: &Path, work: &Path) -> Result<()> {
    File::create(disk)?.set_len(BOOT_AT + BOOT_SIZE)?;
    let config = work.join("syslinux.cfg");
    fs::write(&config, BOOT)?;
    let kernel = work.join("vmlinuz");
    fs::copy(&parts.kernel, &kernel)?;
    let at = format!("{}@@{BOOT_AT}", disk.display());
    run(Command::new("mformat")
        .args(["-i", &at])
        .args(["-T", &(BOOT_SIZE / 512).to_string()])
        .args(["-H", &(BOOT_AT / 512).to_string()])
        .args(["-h", "64", "-s", "32", "-v", "BOOT", "::"]))?;
    run(Command::new("mcopy")
        .args(["-i", &at])
        .args([&kernel, initrd, &config])
        .arg("::/"))?;
    run(Command::new("syslinux")
        .args(["--offset", &BOOT_AT.to_string(), "--install"])
        .arg(disk))
}

/// An ext4 file system with those files, behind what is there. How large it is.
fn root_partition(root: &Path, disk: &Path, at: u64) -> Result<u64> {
    // Its own bookkeeping is below a tenth.
    let size = (bytes_below(root)? * 11 / 10 + ROOM).next_multiple_of(MIB);
    let file = root.with_extension("ext4");
    File::create(&file)?.set_len(size)?;
    // Debian keeps it where only root's PATH looks.
    let mkfs = super::capability::program("mkfs.ext4").context("mkfs.ext4")?;
    run(Command::new(mkfs)
        .args(["-q", "-F", "-L", "root", "-m", "0"])
        .args(["-E", "lazy_itable_init=0,root_owner=0:0", "-d"])
        .arg(root)
        .arg(&file))?;
    let mut whole = File::options().write(true).open(disk)?;
    whole.seek(SeekFrom::Start(at))?;
    std::io::copy(&mut File::open(&file)?, &mut whole)?;
    fs::remove_file(&file)?;
    Ok(size)
}

fn bytes_below(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.path().symlink_metadata()?;
        sum += if meta.is_dir() {
            bytes_below(&entry.path())?
        } else {
            meta.len().next_multiple_of(4096)
        };
    }
    Ok(sum)
}

/// The first sector: what the firmware runs, and where the two are.
fn boot_record(code: &Path, disk: &Path, root_at: u64, root_size: u64) -> Result<()> {
    let entry = |active: u8, kind: u8, at: u64, size: u64| -> Result<Vec<u8>> {
        // Where it begins and ends in cylinders: further than these can say.
        let mut entry = vec![active, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff];
        entry.extend(u32::try_from(at / 512)?.to_le_bytes());
        entry.extend(u32::try_from(size / 512)?.to_le_bytes());
        Ok(entry)
    };
    let mut sector = fs::read(code)?;
    ensure!(sector.len() <= 446, "{} is too long", code.display());
    sector.resize(446, 0);
    sector.extend(entry(0x80, 0x0c, BOOT_AT, BOOT_SIZE)?);
    sector.extend(entry(0x00, 0x83, root_at, root_size)?);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let mut disk = File::options().write(true).open(disk)?;
    Ok(disk.write_all(&sector)?)
}
