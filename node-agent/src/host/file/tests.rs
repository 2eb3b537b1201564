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
