//! What the disk of a guest is made of, and the programs that make it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::capability::program;
use crate::bin;

/// What `scripts/guest-parts.sh` fetched, and what is installed.
#[derive(Debug)]
pub struct Parts {
    /// Where images are kept.
    pub cache: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The folder that paths of modules begin at.
    pub modules: PathBuf,
    /// The QEMU guest agent.
    pub qemu_ga: PathBuf,
    /// A busybox without libraries.
    pub busybox: PathBuf,
    /// What a firmware finds at the begin of a disk.
    pub boot_record: PathBuf,
}

impl Parts {
    /// All of them.
    ///
    /// # Errors
    /// When one is missing, naming it.
    pub fn find() -> Result<Self> {
        for name in ["mformat", "mcopy", "syslinux", "mkfs.ext4", "ldd"] {
            ensure!(
                program(name).is_some(),
                "`{name}` is not installed (scripts/setup.sh test)"
            );
        }
        // target/debug/muster-agent
        let agent = bin("muster-agent");
        let target = agent.ancestors().nth(2).context("a build directory")?;
        let parts = target.join("guest/parts");
        let there = |path: PathBuf| {
            ensure!(
                path.exists(),
                "{} is not there (scripts/setup.sh test)",
                path.display()
            );
            Ok(path)
        };
        let release = there(parts.join("release"))?;
        let release = std::fs::read_to_string(&release)?;
        let busybox = program("busybox").context("busybox is not installed")?;
        // `ldd` has nothing to say of what needs none.
        ensure!(
            !Command::new("ldd").arg(&busybox).output()?.status.success(),
            "{} needs libraries: install busybox-static",
            busybox.display()
        );
        Ok(Self {
            cache: target.join("guest"),
            kernel: there(parts.join("vmlinuz"))?,
            modules: there(parts.join("modules/lib/modules").join(release.trim()))?,
            qemu_ga: there(parts.join("qemu-ga"))?,
            busybox,
            boot_record: there("/usr/lib/syslinux/mbr/mbr.bin".into())?,
        })
    }

    /// These modules and what they need, in the order to load them.
    ///
    /// # Errors
    /// When one is not known.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let file = self.modules.join("modules.dep");
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let needs: BTreeMap<&str, Vec<&str>> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(module, needs)| (module, needs.split_whitespace().collect()))
            .collect();
        let mut order = Vec::new();
        for name in wanted {
            let module = needs
                .keys()
                .find(|path| {
                    let stem = Path::new(path).file_stem().unwrap_or_default();
                    stem.to_string_lossy().replace('-', "_") == *name
                })
                .with_context(|| format!("the kernel has no module {name}"))?;
            visit(module, &needs, &mut order);
        }
        Ok(order.iter().map(|path| self.modules.join(path)).collect())
    }
}

/// What is needed first, then it, unless it was there.
fn visit<'a>(module: &'a str, needs: &BTreeMap<&'a str, Vec<&'a str>>, order: &mut Vec<&'a str>) {
    if order.contains(&module) {
        return;
    }
    for need in needs.get(module).into_iter().flatten() {
        visit(need, needs, order);
    }
    order.push(module);
}
