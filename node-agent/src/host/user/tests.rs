use super::*;
use crate::host::testing::{Bench, have, is_root, shown};

/// The real tools, below a directory; what they are asked is written down.
fn bench() -> Bench {
    let bench = Bench::new();
    for tool in ["useradd", "usermod", "userdel"] {
        let script = format!(
            "echo {tool} \"$@\" >> $BENCH/log\nexec /usr/sbin/{tool} --prefix $BENCH/root \"$@\""
        );
        bench.fake(tool, &script);
    }
    // Those who ask a real system would look at the machine's own users.
    bench.fake("getent", "grep \"^$2:\" $BENCH/root/etc/passwd || exit 2");
    bench.fake(
        "id",
        "awk -F: -v n=\"$3\" '$1 == n || (\",\" $4 \",\") ~ (\",\" n \",\") { print $1 }' $BENCH/root/etc/group",
    );
    bench.write("root/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    bench.write("root/etc/group", "root:x:0:\nweb:x:50:\nops:x:51:\n");
    bench.write("root/etc/shadow", "root:*:19000:0:99999:7:::\n");
    bench.write("root/etc/gshadow", "root:*::\nweb:!::\nops:!::\n");
    bench.write(
        "root/etc/login.defs",
        "UID_MIN 1000\nGID_MIN 1000\nUSERGROUPS_ENAB yes\n",
    );
    std::fs::create_dir_all(bench.path("root/home")).expect("made");
    bench
}

fn present(shell: &str, groups: &[&str]) -> UserWish {
    UserWish::Present {
        shell: Some(shell.to_owned()),
        home: None,
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        system: false,
    }
}

async fn perform_it(bench: &Bench, name: &'static str, wish: &UserWish, mode: Mode) -> String {
    let wish = wish.clone();
    let (done, _) = bench
        .with(move |tools| perform(tools, name, &wish, mode))
        .await;
    match done {
        Ok(done) => shown(&done),
        Err(error) => format!("error: {error}"),
    }
}

#[tokio::test]
async fn an_account_is_made_changed_and_removed_once() {
    if !is_root() || !have("useradd") {
        return;
    }
    let bench = bench();
    let mut said = Vec::new();
    for wish in [
        present("/bin/sh", &["web"]),
        present("/bin/bash", &["web", "ops"]),
        // Groups that it is in beside these stay.
        present("/bin/bash", &["ops"]),
        UserWish::Absent,
    ] {
        let would = perform_it(&bench, "deploy", &wish, Mode::Check).await;
        assert!(bench.log().is_empty(), "a dry run did something");
        let did = perform_it(&bench, "deploy", &wish, Mode::Apply).await;
        assert_eq!(would.replace("would:", "changed:"), did);
        said.push(format!("{did} {:?}", bench.log()));
        let again = perform_it(&bench, "deploy", &wish, Mode::Apply).await;
        assert_eq!(again, "unchanged");
        let groups = std::fs::read_to_string(bench.path("root/etc/group")).expect("read");
        said.push(
            groups
                .lines()
                .filter(|l| l.contains("deploy"))
                .collect::<Vec<_>>()
                .join(" "),
        );
    }
    insta::assert_snapshot!(said.join("\n"), @r#"
    changed: created ["+user deploy", "+shell /bin/sh", "+groups web"] ["useradd --create-home --shell /bin/sh --groups web -- deploy"]
    web:x:50:deploy deploy:x:1000:
    changed: shell, groups ["-shell /bin/sh", "+shell /bin/bash", "+groups ops"] ["usermod --shell /bin/bash --append --groups ops -- deploy"]
    web:x:50:deploy ops:x:51:deploy deploy:x:1000:
    unchanged []
    web:x:50:deploy ops:x:51:deploy deploy:x:1000:
    changed: removed ["-user deploy"] ["userdel -- deploy"]
    "#);
    let passwd = std::fs::read_to_string(bench.path("root/etc/passwd")).expect("read");
    assert!(!passwd.contains("deploy"), "{passwd}");
}

#[tokio::test]
async fn names_and_paths_are_never_options() {
    let bench = Bench::new();
    let mut said = Vec::new();
    for name in ["-r", "Root", "a:b", "a b", "", "--help"] {
        said.push(perform_it(&bench, name, &UserWish::Absent, Mode::Apply).await);
    }
    for wish in [
        present("bin/sh", &[]),
        present("/bin/sh:x", &[]),
        present("/bin/sh", &["-G"]),
    ] {
        said.push(perform_it(&bench, "deploy", &wish, Mode::Apply).await);
    }
    assert!(
        said.iter().all(|text| text.starts_with("error: `")),
        "{said:?}"
    );
}
