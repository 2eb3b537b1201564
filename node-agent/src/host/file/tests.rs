use std::os::unix::fs::symlink;

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("it is written");
        path
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .expect("it is read")
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn content(text: &str) -> FileWish {
    FileWish::Content {
        text: text.to_owned(),
        attributes: FileAttributes::default(),
        backup: false,
        diff: true,
    }
}

fn mode(mode: u32) -> FileAttributes {
    FileAttributes {
        mode: Some(mode),
        ..FileAttributes::default()
    }
}

fn said(change: &Change) -> String {
    match change {
        Change::Unchanged => "unchanged".to_owned(),
        Change::Changed { summary, diff } => format!("changed: {summary}\n{}", diff.join("\n")),
        Change::WouldChange { summary, diff } => format!("would: {summary}\n{}", diff.join("\n")),
    }
}

/// What a dry run says is what happens then; twice is once.
fn settles(path: &Path, wish: &FileWish) -> String {
    let would = ensure(path, wish, Mode::Check).expect("a dry run");
    let did = ensure(path, wish, Mode::Apply).expect("it is done");
    assert_eq!(
        said(&would).strip_prefix("would"),
        said(&did).strip_prefix("changed")
    );
    assert_eq!(
        ensure(path, wish, Mode::Apply).expect("again"),
        Change::Unchanged
    );
    assert_eq!(
        ensure(path, wish, Mode::Check).expect("again"),
        Change::Unchanged
    );
    said(&did)
}

#[test]
fn content_is_replaced_whole_and_keeps_its_owner_and_mode() {
    let place = Place::new();
    let path = place.path("app.toml");
    insta::assert_snapshot!(settles(&path, &content("listen = 8000\n")), @r"
    changed: created
    +listen = 8000
    ");
    assert_eq!(bits(&fs::metadata(&path).expect("it is there")), 0o644);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
    insta::assert_snapshot!(settles(&path, &content("listen = 8080\n")), @r"
    changed: content
    -listen = 8000
    +listen = 8080
    ");
    assert_eq!(bits(&fs::metadata(&path).expect("it is there")), 0o600);
    let wish = FileWish::Content {
        text: "listen = 9\n".into(),
        attributes: mode(0o640),
        backup: true,
        diff: true,
    };
    insta::assert_snapshot!(settles(&path, &wish), @r"
    changed: content, mode 0600 → 0640
    -listen = 8080
    +listen = 9
    ");
    let names = place.names();
    assert_eq!(names.len(), 2, "{names:?}");
    let kept = fs::read_to_string(place.path(&names[1])).expect("the backup");
    assert_eq!(kept, "listen = 8080\n");
    // Nothing is left behind, and a dry run makes nothing.
    let _ = ensure(&place.path("new"), &content("x"), Mode::Check).expect("a dry run");
    assert_eq!(place.names(), names);
}

#[test]
fn a_line_is_replaced_or_added() {
    let place = Place::new();
    let hosts = place.write("hosts", "127.0.0.1 localhost\n192.0.2.1 old\nlast");
    let line = |replaces: Option<&str>| FileWish::Line {
        text: "192.0.2.1 db".into(),
        replaces: replaces.map(str::to_owned),
        backup: false,
        diff: true,
    };
    insta::assert_snapshot!(settles(&hosts, &line(Some("^192\\.0\\.2\\.1 "))), @r"
    changed: line replaced
     127.0.0.1 localhost
    -192.0.2.1 old
    -last
    \ no newline at the end
    +192.0.2.1 db
    +last
    ");
    let other = place.write("other", "a\n");
    insta::assert_snapshot!(settles(&other, &line(None)), @r"
    changed: line added
     a
    +192.0.2.1 db
    ");
    fs::write(place.path("binary"), [0xff, 0xfe]).expect("it is written");
    let refused = ensure(&place.path("binary"), &line(None), Mode::Apply);
    assert!(matches!(refused, Err(FileError::NotText(_))), "{refused:?}");
}

#[test]
fn what_is_something_else_is_left_alone() {
    let place = Place::new();
    let real = place.write("real", "a\n");
    let link = place.path("link");
    symlink(&real, &link).expect("a link");
    let error = ensure(&link, &content("b\n"), Mode::Apply).expect_err("a link");
    assert!(
        error.to_string().contains("a symbolic link; name"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&real).expect("it is there"), "a\n");
    // The link itself may go.
    settles(&link, &FileWish::Absent);
    assert!(real.exists());

    let full = place.path("full");
    settles(&full, &FileWish::Directory(mode(0o700)));
    fs::write(full.join("x"), "x").expect("it is written");
    let error = ensure(&full, &FileWish::Absent, Mode::Check).expect_err("it is full");
    assert!(
        error.to_string().contains("not empty (1 entries)"),
        "{error}"
    );
    assert!(ensure(&full, &content("x"), Mode::Apply).is_err());
    assert!(ensure(&real, &FileWish::Directory(mode(0o700)), Mode::Apply).is_err());
}

#[test]
fn owners_and_modes_are_set_and_strangers_refused() {
    let place = Place::new();
    let path = place.write("x", "x");
    insta::assert_snapshot!(settles(&path, &FileWish::Attributes(mode(0o4750))), @"changed: mode 0644 → 4750");
    let stranger = FileAttributes {
        owner: Some("nobody-knows".into()),
        ..FileAttributes::default()
    };
    let error = ensure(&path, &FileWish::Attributes(stranger), Mode::Check).expect_err("nobody");
    assert_eq!(error.to_string(), "this node has no user `nobody-knows`");
    let missing = place.path("missing");
    assert!(ensure(&missing, &FileWish::Attributes(mode(0o600)), Mode::Apply).is_err());
    assert_eq!(
        said(
            &ensure(&missing, &FileWish::Attributes(mode(0o600)), Mode::Check).expect("a dry run")
        ),
        "would: mode 0600\n"
    );
}

/// A directory of somebody else inside one of ours.
fn strangers(place: &Place) -> PathBuf {
    let theirs = place.path("theirs");
    fs::create_dir(&theirs).expect("a directory");
    std::os::unix::fs::chown(&theirs, Some(12_345), Some(12_345)).expect("an owner");
    theirs
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_link_on_the_way_is_followed_only_where_others_cannot_change_it() {
    let place = Place::new();
    let real = place.path("real");
    fs::create_dir(&real).expect("a directory");
    symlink("real", place.path("ours")).expect("a link");
    settles(&place.path("ours/x"), &content("a\n"));
    assert_eq!(
        fs::read_to_string(real.join("x")).expect("it is there"),
        "a\n"
    );
    symlink("../real/../real", real.join("up")).expect("a link");
    settles(&place.path("ours/up/y"), &content("b\n"));
    assert!(real.join("y").exists());
    symlink("turn", place.path("turn")).expect("a link");
    let error = ensure(&place.path("turn/x"), &content("a"), Mode::Apply).expect_err("a circle");
    assert!(
        error.to_string().contains("too many symbolic links"),
        "{error}"
    );
    if !is_root() {
        return;
    }
    let theirs = strangers(&place);
    // Their link, and a link of ours that lies where they can replace it.
    for (name, owner) in [("link", 12_345), ("ours", 0)] {
        let link = theirs.join(name);
        symlink(&real, &link).expect("a link");
        std::os::unix::fs::lchown(&link, Some(owner), Some(owner)).expect("an owner");
        for wish in [
            content("stolen\n"),
            FileWish::Absent,
            FileWish::Attributes(mode(0o777)),
            FileWish::Directory(mode(0o777)),
        ] {
            let error = ensure(&link.join("x"), &wish, Mode::Apply).expect_err("a trap");
            assert!(error.to_string().contains("others than root"), "{error}");
        }
    }
    assert_eq!(
        fs::read_to_string(real.join("x")).expect("it is there"),
        "a\n"
    );
    // Their real directories are fine.
    settles(&theirs.join("x"), &content("a\n"));
    settles(&theirs.join("deep/er"), &FileWish::Directory(mode(0o700)));
}

#[test]
fn a_second_name_of_a_file_is_no_way_to_read_or_own_it() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let secret = place.write("shadow", "root:secret\n");
    let theirs = strangers(&place);
    let trap = theirs.join("x");
    fs::hard_link(&secret, &trap).expect("a link");
    let own = FileWish::Attributes(FileAttributes {
        owner: Some("12345".into()),
        ..FileAttributes::default()
    });
    for wish in [content("a\n"), own] {
        for mode in [Mode::Check, Mode::Apply] {
            let error = ensure(&trap, &wish, mode).expect_err("a trap");
            assert!(error.to_string().contains("several names"), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
    assert_eq!(fs::metadata(&secret).expect("it is there").uid(), 0);
    // Where nobody else can put a name, it is the operators' own doing; the
    // other name keeps what it had.
    fs::hard_link(&secret, place.path("second")).expect("a link");
    settles(&place.path("second"), &content("b\n"));
    assert_eq!(
        fs::read_to_string(&secret).expect("it is there"),
        "root:secret\n"
    );
    // It may be taken away, which hurts nobody.
    settles(&trap, &FileWish::Absent);
}

#[test]
fn a_directory_that_is_swapped_for_a_link_between_two_steps_leads_nowhere_else() {
    let outer = Place::new();
    let safe = outer.path("safe");
    fs::create_dir(&safe).expect("a directory");
    let other = outer.path("other");
    fs::create_dir(&other).expect("a directory");
    let walked = super::walk::walk(&safe.join("x"), false)
        .expect("it is walked")
        .expect("it is there");
    fs::rename(&safe, outer.path("moved")).expect("it is moved");
    symlink(&other, &safe).expect("a link");
    replace(&walked, b"a\n", &Wanted::default(), None, false).expect("it is written");
    assert!(!other.join("x").exists());
    assert!(outer.path("moved/x").exists());
}

#[test]
fn what_leads_nowhere_is_said() {
    let place = Place::new();
    let deep = place.path("a/b/c");
    let error = ensure(&deep, &content("x"), Mode::Apply).expect_err("no directory");
    assert!(error.to_string().contains("directory()"), "{error}");
    assert_eq!(
        said(&ensure(&deep, &content("x\n"), Mode::Check).expect("a dry run")),
        "would: created\n+x"
    );
    assert_eq!(
        ensure(&deep, &FileWish::Absent, Mode::Apply).expect("not there"),
        Change::Unchanged
    );
    settles(&place.path("a/b"), &FileWish::Directory(mode(0o750)));
    settles(&deep, &content("x"));
    for bad in ["/", "/tmp/../etc/x", "relative"] {
        let error = ensure(Path::new(bad), &content("x"), Mode::Apply).expect_err(bad);
        assert!(matches!(error, FileError::Path { .. }), "{error}");
    }
    let file = place.write("file", "x");
    let error = ensure(&file.join("x"), &content("x"), Mode::Apply).expect_err("a file");
    assert!(error.to_string().contains("is no directory"), "{error}");
    let pipe = place.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).expect("a pipe");
    let error = ensure(&pipe, &content("x"), Mode::Apply).expect_err("a pipe");
    assert!(error.to_string().contains("a pipe"), "{error}");
}

#[test]
fn backups_of_one_second_are_all_kept_and_nothing_else_is_left() {
    let place = Place::new();
    let path = place.write("x", "0");
    for n in 1..=3 {
        let wish = FileWish::Content {
            text: n.to_string(),
            attributes: FileAttributes::default(),
            backup: true,
            diff: true,
        };
        settles(&path, &wish);
    }
    let mut kept: Vec<String> = place
        .names()
        .iter()
        .filter(|name| name.ends_with(".bak"))
        .map(|name| fs::read_to_string(place.path(name)).expect("a backup"))
        .collect();
    kept.sort();
    assert_eq!(kept, ["0", "1", "2"]);
    assert_eq!(place.names().len(), 4);
}

#[test]
fn the_users_own_attributes_stay() {
    let place = Place::new();
    let path = place.write("x", "a");
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(&path, "user.note", b"kept", flags).is_err() {
        // This file system has none.
        return;
    }
    settles(&path, &content("b"));
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(&path, "user.note", &mut value[..]).expect("it is there");
    assert_eq!(&value[..length], b"kept");
}

#[test]
fn lines_that_nobody_is_to_see_are_not_shown() {
    let place = Place::new();
    let path = place.write("x", "password = old\n");
    for mode in [Mode::Check, Mode::Apply] {
        for wish in [
            FileWish::Content {
                text: format!("password = {mode:?}\n"),
                attributes: FileAttributes::default(),
                backup: false,
                diff: false,
            },
            FileWish::Line {
                text: format!("other = {mode:?}"),
                replaces: None,
                backup: false,
                diff: false,
            },
        ] {
            let change = ensure(&path, &wish, mode).expect("it is well");
            let text = said(&change);
            assert!(
                !text.contains("password") && !text.contains("other"),
                "{text}"
            );
            assert_ne!(change, Change::Unchanged);
        }
    }
}

#[test]
fn lines_go_and_the_rest_stays_byte_by_byte() {
    let place = Place::new();
    let path = place.write(
        "hosts",
        "a\r\n192.0.2.1 old\n\n192.0.2.1 old\n192.0.2.2 older\nlast",
    );
    let no_line = |text: &str, pattern| FileWish::NoLine {
        text: text.to_owned(),
        pattern,
        backup: false,
        diff: true,
    };
    // A text is no pattern, and a part of a line is no line.
    assert_eq!(
        ensure(&path, &no_line("192.0.2.. old", false), Mode::Apply).expect("nothing"),
        Change::Unchanged
    );
    insta::assert_snapshot!(settles(&path, &no_line("192.0.2.1 old", false)), @r"
    changed: 2 lines removed
     a\x0d
    -192.0.2.1 old
     
    -192.0.2.1 old
     192.0.2.2 older
     last
    \ no newline at the end
    ");
    insta::assert_snapshot!(settles(&path, &no_line(r"^192\.0\.2\.", true)), @r"
    changed: line removed
     a\x0d
     
    -192.0.2.2 older
     last
    \ no newline at the end
    ");
    assert_eq!(fs::read(&path).expect("it is there"), b"a\r\n\nlast");
    settles(&path, &no_line("a", false));
    settles(&path, &no_line("last", false));
    assert_eq!(fs::read(&path).expect("it is there"), b"\n");
    // What is not there has no lines; and it is not made.
    let nothing = place.path("nothing");
    let change = ensure(&nothing, &no_line("a", false), Mode::Apply);
    assert_eq!(change.expect("nothing to do"), Change::Unchanged);
    assert!(!nothing.exists());
    let odd = ensure(&path, &no_line("(", true), Mode::Check).expect_err("no pattern");
    assert!(odd.to_string().contains("not a regular expression"));
    // A line that is added ends as the others do.
    let path = place.write("dos", "a\r\nb");
    let line = FileWish::Line {
        text: "c".into(),
        replaces: None,
        backup: false,
        diff: true,
    };
    settles(&path, &line);
    assert_eq!(fs::read(&path).expect("it is there"), b"a\r\nb\r\nc\r\n");
}

#[test]
fn a_file_goes_back_to_its_newest_backup() {
    let place = Place::new();
    let path = place.write("app.toml", "listen = 1\n");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("a mode");
    let restore = FileWish::Restore { diff: true };
    let none = |mode| {
        let said = ensure(&path, &restore, mode).expect_err("there is none");
        said.to_string()
            .replace(&place.0.path().display().to_string(), "DIR")
    };
    insta::assert_snapshot!(none(Mode::Apply), @r"
    DIR/app.toml has no backup beside it; one is kept when the file is changed with `backup: true`
    ");
    assert_eq!(none(Mode::Check), none(Mode::Apply));
    let new = |text: &str| FileWish::Content {
        text: text.into(),
        attributes: mode(0o600),
        backup: true,
        diff: true,
    };
    // Two within a second, as likely as not.
    settles(&path, &new("listen = 2\n"));
    settles(&path, &new("listen = 3\n"));
    let names = place.names();
    assert_eq!(names.len(), 3, "{names:?}");
    // Names that only look like one.
    place.write("app.toml.bak", "no");
    place.write("app.toml.99999999T999999.bak", "no");
    place.write("other.99991231T235959Z.bak", "no");
    let hide = |said: String| {
        let at = said.find(".20").expect("the backup's name");
        format!(
            "{}.TIME.bak{}",
            &said[..at],
            &said[said.find(".bak").expect("its end") + 4..]
        )
    };
    insta::assert_snapshot!(hide(settles(&path, &restore)), @r"
    changed: content of .TIME.bak
    -listen = 3
    +listen = 2
    ");
    // It stays: the same again changes nothing, and it goes on from there.
    let there = place.names();
    assert!(names.iter().all(|name| there.contains(name)), "{there:?}");
    assert_eq!(
        fs::read_to_string(&path).expect("it is there"),
        "listen = 2\n"
    );
    // Also when the file is gone, with its mode.
    fs::remove_file(&path).expect("it is there");
    insta::assert_snapshot!(hide(settles(&path, &restore)), @r"
    changed: created from .TIME.bak
    +listen = 2
    ");
    assert_eq!(bits(&fs::metadata(&path).expect("it is there")), 0o600);
    // Without the newest it goes further back.
    for name in names.iter().filter(|name| *name != "app.toml") {
        let kept = place.path(name);
        if fs::read_to_string(&kept).expect("a backup") == "listen = 2\n" {
            fs::remove_file(kept).expect("it is there");
        }
    }
    settles(&path, &restore);
    assert_eq!(
        fs::read_to_string(&path).expect("it is there"),
        "listen = 1\n"
    );
    assert_eq!(bits(&fs::metadata(&path).expect("it is there")), 0o640);
}

#[test]
fn a_backup_that_anybody_could_have_put_there_is_none() {
    let place = Place::new();
    let path = place.write("app.toml", "ours\n");
    place.write("app.toml.20261121T101500Z.bak", "theirs\n");
    fs::set_permissions(place.0.path(), fs::Permissions::from_mode(0o1777)).expect("a mode");
    let restore = FileWish::Restore { diff: true };
    for mode in [Mode::Check, Mode::Apply] {
        let said = ensure(&path, &restore, mode).expect_err("not to be trusted");
        assert!(said.to_string().contains("by hand"), "{said}");
    }
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "ours\n");
    // Nor is a link, wherever it leads.
    fs::set_permissions(place.0.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    fs::remove_file(place.path("app.toml.20261121T101500Z.bak")).expect("it is there");
    symlink("/etc/passwd", place.path("app.toml.20261121T101500Z.bak")).expect("a link");
    assert!(ensure(&path, &restore, Mode::Apply).is_err());
}
