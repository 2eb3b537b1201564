//! Against a real apt and dpkg, in a root directory of the test's own, with a
//! repository that it makes; and against a dnf that only pretends.

use std::process::Command;

use super::*;
use crate::host::testing::{Bench, have, is_root, shown};

/// Runs a tool of the test itself.
fn must(program: &str, arguments: &[&str], dir: &std::path::Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .output()
        .expect("it starts");
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// A machine of its own, as far as apt and dpkg can tell.
fn apt() -> Option<Bench> {
    if !is_root() || !have("apt-get") || !have("dpkg-deb") {
        return None;
    }
    let bench = Bench::new();
    let root = bench.path("root");
    for dir in [
        "etc/apt/apt.conf.d",
        "etc/apt/preferences.d",
        "etc/apt/sources.list.d",
        "etc/apt/trusted.gpg.d",
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
        "var/log/apt",
        "var/lib/dpkg/updates",
        "var/lib/dpkg/info",
    ] {
        std::fs::create_dir_all(root.join(dir)).expect("made");
    }
    std::fs::create_dir_all(bench.path("repo")).expect("made");
    bench.write(
        "root/var/lib/dpkg/status",
        "Package: dpkg\nStatus: install ok installed\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: itself\n\n",
    );
    let root = root.display();
    let repo = bench.path("repo");
    bench.write(
        "root/etc/apt/sources.list",
        &format!("deb [trusted=yes] copy:{} ./\n", repo.display()),
    );
    let config = bench.write(
        "apt.conf",
        &format!(
            "Dir \"{root}\";
Dir::State::status \"{root}/var/lib/dpkg/status\";
Dir::Log \"{root}/var/log/apt\";
APT::Architecture \"all\";
APT::Architectures {{ \"all\"; }};
APT::Sandbox::User \"root\";
Acquire::Languages \"none\";
DPkg::Options {{ \"--root={root}\"; \"--log=/dev/null\"; }};
"
        ),
    );
    let mut bench = bench;
    bench
        .environment
        .insert("APT_CONFIG".into(), config.display().to_string());
    bench
        .environment
        .insert("DPKG_ADMINDIR".into(), format!("{root}/var/lib/dpkg"));
    Some(bench)
}

/// Puts a package into the repository.
fn publish(bench: &Bench, name: &str, version: &str, more: &str) {
    let tree = bench.path("tree");
    let _ = std::fs::remove_dir_all(&tree);
    bench.write(
        "tree/DEBIAN/control",
        &format!(
            "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a test\n{more}"
        ),
    );
    bench.write(&format!("tree/usr/share/{name}"), version);
    let repo = bench.path("repo");
    must(
        "dpkg-deb",
        &["--build", "--root-owner-group", "../tree", "."],
        &repo,
    );
    // What apt-ftparchive would write.
    let mut index = String::new();
    let files = std::fs::read_dir(&repo).expect("read");
    for file in files.flatten() {
        let file = file.file_name().to_string_lossy().into_owned();
        if !file.ends_with(".deb") {
            continue;
        }
        let fields = must("dpkg-deb", &["-f", &file], &repo);
        let sum = must("sha256sum", &[&file], &repo);
        let size = std::fs::metadata(repo.join(&file)).expect("there").len();
        index.push_str(&format!(
            "{fields}Filename: ./{file}\nSize: {size}\nSHA256: {}\n\n",
            &sum[..64]
        ));
    }
    std::fs::write(repo.join("Packages"), index).expect("written");
}

async fn perform_it(bench: &Bench, name: &'static str, wish: &PackageWish, mode: Mode) -> String {
    let wish = wish.clone();
    let wait = Span::from_secs(2);
    let (done, heard) = bench
        .with(move |tools| Packages::default().perform(tools, name, &wish, wait, mode))
        .await;
    match done {
        Ok(done) => shown(&done),
        Err(error) => {
            println!("{}{}", heard.out, heard.err);
            format!("error: {error}")
        }
    }
}

fn version(text: &str) -> PackageWish {
    PackageWish::Version {
        version: text.to_owned(),
    }
}

#[tokio::test]
async fn a_package_is_installed_upgraded_put_back_and_removed() {
    let Some(bench) = apt() else { return };
    publish(&bench, "libfoo", "1.0", "");
    publish(&bench, "webapp", "1.4.1", "Depends: libfoo\n");
    publish(&bench, "webapp", "1.4.2", "Depends: libfoo\n");
    let mut said = Vec::new();
    // A dry run goes by the lists that are there: none yet.
    said.push(perform_it(&bench, "webapp", &PackageWish::Installed, Mode::Check).await);
    said.push(perform_it(&bench, "webapp", &version("1.4.1"), Mode::Apply).await);
    for wish in [
        PackageWish::Installed,
        version("1.4.1"),
        PackageWish::Latest,
        version("1.4.1"),
        version("9.9"),
        PackageWish::Absent,
    ] {
        let would = perform_it(&bench, "webapp", &wish, Mode::Check).await;
        let did = perform_it(&bench, "webapp", &wish, Mode::Apply).await;
        assert_eq!(would.replace("would:", "changed:"), did, "{wish:?}");
        if !did.starts_with("error") {
            let again = perform_it(&bench, "webapp", &wish, Mode::Apply).await;
            assert_eq!(again, "unchanged");
        }
        said.push(format!("{wish:?}: {did}"));
    }
    assert!(!bench.path("root/usr/share/webapp").exists());
    assert!(bench.path("root/usr/share/libfoo").exists());
    insta::assert_snapshot!(said.join("\n"), @r#"
    error: this node's package sources have no package of that name
    changed: installed 1.4.1 ["+libfoo 1.0", "+webapp 1.4.1"]
    Installed: unchanged
    Version { version: "1.4.1" }: unchanged
    Latest: changed: 1.4.1 → 1.4.2 ["-webapp 1.4.1", "+webapp 1.4.2"]
    Version { version: "1.4.1" }: changed: 1.4.2 → 1.4.1 ["-webapp 1.4.2", "+webapp 1.4.1"]
    Version { version: "9.9" }: error: this node's package sources do not have 9.9; they have 1.4.2, 1.4.1
    Absent: changed: removed 1.4.1 ["-webapp 1.4.1"]
    "#);
}

#[tokio::test]
async fn lists_are_fetched_when_they_are_too_old() {
    let Some(bench) = apt() else { return };
    publish(&bench, "webapp", "1.0", "");
    let done = perform_it(&bench, "webapp", &PackageWish::Installed, Mode::Apply).await;
    assert!(done.starts_with("changed: installed 1.0"), "{done}");
    publish(&bench, "webapp", "2.0", "");
    let done = perform_it(&bench, "webapp", &PackageWish::Latest, Mode::Check).await;
    assert_eq!(done, "unchanged", "a dry run fetched something");
    let done = perform_it(&bench, "webapp", &version("2.0"), Mode::Apply).await;
    assert!(done.starts_with("changed: 1.0 → 2.0"), "{done}");
    publish(&bench, "webapp", "3.0", "");
    let done = perform_it(&bench, "webapp", &PackageWish::Latest, Mode::Apply).await;
    assert!(done.starts_with("changed: 2.0 → 3.0"), "{done}");
    // The lists name a file that the source has replaced since.
    publish(&bench, "other", "1.0", "");
    perform_it(&bench, "webapp", &PackageWish::Latest, Mode::Apply).await;
    std::fs::remove_file(bench.path("repo/other_1.0_all.deb")).expect("removed");
    publish(&bench, "other", "1.1", "");
    let done = perform_it(&bench, "other", &PackageWish::Installed, Mode::Apply).await;
    assert!(done.starts_with("changed: installed 1.1"), "{done}");
}

#[tokio::test]
async fn lists_are_fetched_once_a_step() {
    let Some(bench) = apt() else { return };
    bench.fake(
        "apt-get",
        "for word in \"$@\"; do [ \"$word\" != update ] || echo update >> $BENCH/log; done\nexec /usr/bin/apt-get \"$@\"",
    );
    for name in ["one", "two", "three"] {
        publish(&bench, name, "1.0", "");
    }
    let (done, _) = bench
        .with(|tools| {
            let packages = Packages::default();
            ["one", "two", "three"].map(|name| {
                let wait = Span::from_secs(60);
                packages.perform(tools, name, &PackageWish::Latest, wait, Mode::Apply)
            })
        })
        .await;
    for one in done {
        let text = shown(&one.expect("it is installed"));
        assert!(text.starts_with("changed: installed 1.0"), "{text}");
    }
    assert_eq!(bench.log(), ["update"]);
}

#[tokio::test]
async fn nothing_else_goes_and_a_name_is_a_name() {
    let Some(bench) = apt() else { return };
    publish(&bench, "webapp", "1.0", "");
    publish(&bench, "addon", "1.0", "Depends: webapp\n");
    publish(&bench, "rival", "1.0", "Conflicts: webapp\n");
    publish(&bench, "web.app2", "1.0", "");
    perform_it(&bench, "addon", &PackageWish::Installed, Mode::Apply).await;
    let mut said = Vec::new();
    for mode in [Mode::Check, Mode::Apply] {
        said.push(perform_it(&bench, "rival", &PackageWish::Installed, mode).await);
        said.push(perform_it(&bench, "webapp", &PackageWish::Absent, mode).await);
        for bad in ["webapp-", "-y", "web*", "./webapp.deb", "a b", "web.app"] {
            said.push(perform_it(&bench, bad, &PackageWish::Installed, mode).await);
        }
        said.push(perform_it(&bench, "webapp", &version("1.0 -y"), mode).await);
    }
    assert!(bench.path("root/usr/share/webapp").exists());
    insta::assert_snapshot!(said.join("\n"), @r"
    error: it would also remove addon, webapp; remove that by name first, if it is to go
    error: it would also remove addon; remove that by name first, if it is to go
    error: `webapp-` is not the name of a package
    error: `-y` is not the name of a package
    error: `web*` is not the name of a package
    error: `./webapp.deb` is not the name of a package
    error: `a b` is not the name of a package
    error: this node's package sources have no package of that name
    error: `1.0 -y` is not a version of a package
    error: it would also remove addon, webapp; remove that by name first, if it is to go
    error: it would also remove addon; remove that by name first, if it is to go
    error: `webapp-` is not the name of a package
    error: `-y` is not the name of a package
    error: `web*` is not the name of a package
    error: `./webapp.deb` is not the name of a package
    error: `a b` is not the name of a package
    error: this node's package sources have no package of that name
    error: `1.0 -y` is not a version of a package
    ");
}

#[tokio::test]
async fn the_lock_is_waited_for_as_told_and_a_stop_ends_the_wait() {
    let Some(mut bench) = apt() else { return };
    publish(&bench, "webapp", "1.0", "");
    publish(&bench, "other", "1.0", "");
    perform_it(&bench, "other", &PackageWish::Installed, Mode::Apply).await;
    let lock =
        std::fs::File::create(bench.path("root/var/lib/dpkg/lock-frontend")).expect("a lock");
    let hold = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::fcntl_lock(&lock, hold).expect("locked");
    let done = perform_it(&bench, "webapp", &PackageWish::Installed, Mode::Apply).await;
    assert!(
        done.starts_with("error: the package manager is busy, and was for 2s: ")
            && done.contains("is held by process"),
        "{done}"
    );
    // A dry run needs no lock.
    let done = perform_it(&bench, "webapp", &PackageWish::Installed, Mode::Check).await;
    assert!(done.starts_with("would: installed 1.0"), "{done}");
    bench.timeout = std::time::Duration::from_secs(3);
    let (done, _) = bench
        .with(|tools| {
            let wait = Span::from_secs(600);
            Packages::default()
                .perform(tools, "webapp", &PackageWish::Installed, wait, Mode::Apply)
                .map_err(HostError::from)
        })
        .await;
    assert_eq!(done.expect_err("it is locked"), HostError::Stopped);
    drop(lock);
    bench.timeout = std::time::Duration::from_secs(300);
    let done = perform_it(&bench, "webapp", &PackageWish::Installed, Mode::Apply).await;
    assert!(done.starts_with("changed: installed 1.0"), "{done}");
}

/// PATH with nothing but the fakes, and what they are made of.
fn only_fakes(bench: &mut Bench) {
    let tools = bench.path("tools");
    std::fs::create_dir(&tools).expect("made");
    for tool in ["cat", "grep", "tail", "rm"] {
        let real = ["/bin", "/usr/bin"]
            .map(|dir| std::path::Path::new(dir).join(tool))
            .into_iter()
            .find(|path| path.exists())
            .expect("it is there");
        std::os::unix::fs::symlink(real, tools.join(tool)).expect("a link");
    }
    let path = format!("{}:{}", bench.path("bin").display(), tools.display());
    bench.environment.insert("PATH".into(), path);
}

/// The real dnf and rpm, in a root directory of their own.
fn real_dnf() -> Option<Bench> {
    let all = ["dnf", "rpm", "rpmbuild", "createrepo_c"];
    if !is_root() || !all.iter().all(|tool| have(tool)) {
        return None;
    }
    let mut bench = Bench::new();
    only_fakes(&mut bench);
    // Debian's rpm has its database in the home directory.
    bench.write("home/.rpmmacros", "%_dbpath /var/lib/rpm\n");
    let home = bench.path("home").display().to_string();
    bench.environment.insert("HOME".into(), home);
    let root = bench.path("root").display().to_string();
    bench.fake(
        "dnf",
        &format!(
            "exec /usr/bin/dnf --installroot={root} --setopt=reposdir={root}/etc/yum.repos.d --releasever=9 --setopt=module_platform_id=platform:el9 --setopt=cachedir={root}/cache --setopt=metadata_expire=0 \"$@\""
        ),
    );
    bench.fake("rpm", &format!("exec /usr/bin/rpm --root {root} \"$@\""));
    let repo = bench.path("repo");
    std::fs::create_dir(&repo).expect("made");
    bench.write(
        "root/etc/yum.repos.d/test.repo",
        &format!(
            "[test]\nname=test\nbaseurl=file://{}\ngpgcheck=0\n",
            repo.display()
        ),
    );
    for (name, version, release, more) in [
        ("libfoo", "1.0", "1", ""),
        ("webapp", "1.9", "1.el9", "Requires: libfoo\n"),
        ("webapp", "1.10", "3.el9", "Requires: libfoo\n"),
    ] {
        let spec = bench.write(
            "build/test.spec",
            &format!("Name: {name}\nVersion: {version}\nRelease: {release}\nSummary: a test\nLicense: MIT\nBuildArch: noarch\n{more}\n%description\na test\n%files\n"),
        );
        let define = [
            format!("_topdir {}", bench.path("build").display()),
            format!("_rpmdir {}", repo.display()),
            "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.rpm".to_owned(),
        ];
        let spec = spec.display().to_string();
        let mut arguments = vec!["-bb", "--quiet"];
        for one in &define {
            arguments.extend(["--define", one]);
        }
        arguments.push(&spec);
        must("rpmbuild", &arguments, &repo);
    }
    must("createrepo_c", &["-q", "."], &repo);
    Some(bench)
}

#[tokio::test]
async fn a_real_dnf_does_what_is_expected_of_it() {
    let Some(bench) = real_dnf() else { return };
    let mut said = Vec::new();
    for wish in [
        version("1.9"),
        PackageWish::Latest,
        version("1.9-1.el9"),
        version("1.10"),
        version("7"),
        PackageWish::Absent,
        PackageWish::Installed,
    ] {
        let would = perform_it(&bench, "webapp", &wish, Mode::Check).await;
        let did = perform_it(&bench, "webapp", &wish, Mode::Apply).await;
        assert_eq!(would.replace("would:", "changed:"), did, "{wish:?}");
        said.push(format!("{wish:?}: {did}"));
        if !did.starts_with("error") {
            let again = perform_it(&bench, "webapp", &wish, Mode::Apply).await;
            assert_eq!(again, "unchanged", "{wish:?}");
        }
        // What it needs is not taken away with it.
        let lib = perform_it(&bench, "libfoo", &PackageWish::Installed, Mode::Check).await;
        assert_eq!(lib, "unchanged", "{wish:?}");
    }
    said.push(perform_it(&bench, "libfoo", &PackageWish::Absent, Mode::Apply).await);
    said.push(perform_it(&bench, "nosuch", &PackageWish::Latest, Mode::Apply).await);
    insta::assert_snapshot!(said.join("\n"), @r#"
    Version { version: "1.9" }: changed: installed 1.9-1.el9 ["+webapp 1.9-1.el9"]
    Latest: changed: 1.9-1.el9 → 1.10-3.el9 ["-webapp 1.9-1.el9", "+webapp 1.10-3.el9"]
    Version { version: "1.9-1.el9" }: changed: 1.10-3.el9 → 1.9-1.el9 ["-webapp 1.10-3.el9", "+webapp 1.9-1.el9"]
    Version { version: "1.10" }: changed: 1.9-1.el9 → 1.10-3.el9 ["-webapp 1.9-1.el9", "+webapp 1.10-3.el9"]
    Version { version: "7" }: error: this node's package sources do not have 7; they have 1.10-3.el9, 1.9-1.el9
    Absent: changed: removed 1.10-3.el9 ["-webapp 1.10-3.el9"]
    Installed: changed: installed 1.10-3.el9 ["+webapp 1.10-3.el9"]
    error: it would also remove webapp-1.10-3.el9.noarch; remove that by name first, if it is to go
    error: this node's package sources have no package of that name
    "#);
}

#[tokio::test]
async fn dnf_is_asked_as_dnf_wants_to_be() {
    let mut bench = Bench::new();
    // No apt is there, only what pretends and what that is made of.
    only_fakes(&mut bench);
    bench.fake(
        "rpm",
        r#"case "$1 $2" in
  "-q --qf") [ -e $BENCH/installed ] || { echo "package $5 is not installed"; exit 1; }; cat $BENCH/installed ;;
  "-e --test") [ ! -e $BENCH/needed ] || { echo "error: Failed dependencies:" >&2; echo "	webapp is needed by (installed) addon-1.0-1.noarch" >&2; exit 1; } ;;
esac"#,
    );
    bench.fake(
        "dnf",
        r#"shift 4
case "$1" in
  repoquery) cat $BENCH/available ;;
  check-update) last=$(tail -n 1 $BENCH/available); now=$(cat $BENCH/installed)
    [ "$last" = "$now" ] && exit 0; echo; echo "webapp.noarch   ${last#0:}   base"; exit 100 ;;
  remove) echo "$@" >> $BENCH/log; rm -f $BENCH/installed ;;
  *) echo "$@" >> $BENCH/log; grep -F ":${2#webapp-}" $BENCH/available > $BENCH/installed ;;
esac"#,
    );
    bench.write("available", "0:1.4.1-1.el9\n0:1.4.2-3.el9\n");
    let mut said = Vec::new();
    for wish in [
        PackageWish::Installed,
        version("1.4.1"),
        PackageWish::Latest,
        version("1.4.1-1.el9"),
        version("0:1.4.2"),
        version("7"),
        PackageWish::Absent,
    ] {
        let would = perform_it(&bench, "webapp", &wish, Mode::Check).await;
        assert!(bench.log().is_empty(), "a dry run did something");
        let did = perform_it(&bench, "webapp", &wish, Mode::Apply).await;
        assert_eq!(would.replace("would:", "changed:"), did, "{wish:?}");
        said.push(format!("{wish:?}: {did} {:?}", bench.log()));
        if !did.starts_with("error") {
            let again = perform_it(&bench, "webapp", &wish, Mode::Apply).await;
            assert_eq!(again, "unchanged", "{wish:?}");
        }
    }
    perform_it(&bench, "webapp", &PackageWish::Installed, Mode::Apply).await;
    bench.write("needed", "");
    said.push(perform_it(&bench, "webapp", &PackageWish::Absent, Mode::Check).await);
    bench.write("available", "");
    std::fs::remove_file(bench.path("installed")).expect("removed");
    said.push(perform_it(&bench, "webapp", &PackageWish::Latest, Mode::Check).await);
    insta::assert_snapshot!(said.join("\n"), @r#"
    Installed: changed: installed 1.4.2-3.el9 ["+webapp 1.4.2-3.el9"] ["install webapp-1.4.2-3.el9"]
    Version { version: "1.4.1" }: changed: 1.4.2-3.el9 → 1.4.1-1.el9 ["-webapp 1.4.2-3.el9", "+webapp 1.4.1-1.el9"] ["downgrade webapp-1.4.1-1.el9"]
    Latest: changed: 1.4.1-1.el9 → 1.4.2-3.el9 ["-webapp 1.4.1-1.el9", "+webapp 1.4.2-3.el9"] ["upgrade webapp-1.4.2-3.el9"]
    Version { version: "1.4.1-1.el9" }: changed: 1.4.2-3.el9 → 1.4.1-1.el9 ["-webapp 1.4.2-3.el9", "+webapp 1.4.1-1.el9"] ["downgrade webapp-1.4.1-1.el9"]
    Version { version: "0:1.4.2" }: changed: 1.4.1-1.el9 → 1.4.2-3.el9 ["-webapp 1.4.1-1.el9", "+webapp 1.4.2-3.el9"] ["upgrade webapp-1.4.2-3.el9"]
    Version { version: "7" }: error: this node's package sources do not have 7; they have 1.4.2-3.el9, 1.4.1-1.el9 []
    Absent: changed: removed 1.4.2-3.el9 ["-webapp 1.4.2-3.el9"] ["remove webapp"]
    error: it would also remove addon-1.0-1.noarch; remove that by name first, if it is to go
    error: this node's package sources have no package of that name
    "#);
}

#[test]
fn names_and_versions_are_checked_before_anything_runs() {
    for good in [
        "nginx",
        "g++",
        "libc6:amd64",
        "python3.11",
        "0ad",
        "java-1.8.0-openjdk",
    ] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "-y",
        "a-",
        "a b",
        "a;b",
        "a=1",
        "/x",
        "a*",
        "é",
        &"a".repeat(300),
    ] {
        assert!(check_name(bad).is_err(), "{bad}");
    }
    for good in ["1.4.2", "2:1.22-9+deb12u2~rc1", "1.2-3.el9"] {
        assert!(check_version(good).is_ok(), "{good}");
    }
    for bad in ["", "-1", "1 2", "1/stable", "1;x"] {
        assert!(check_version(bad).is_err(), "{bad}");
    }
}
