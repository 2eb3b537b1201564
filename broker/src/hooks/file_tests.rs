use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn write(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn mistakes(text: &str, mode: u32) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "hooks.toml", text, mode);
    match load(&path).0 {
        Ok(_) => Vec::new(),
        Err(error) => error.mistakes,
    }
}

const GOOD: &str = r#"
max_body = "1MiB"

[hooks.github]
kind = "github"
secret_file = "github.secret"
previous_secret = "the one before"
rate = "100/1s"

[hooks.anything]
kind = "generic"
secret = "correct horse battery"
max_skew = "1m"

[triggers.deploy-main]
when = { kind = "git.push", hook = "github", data.ref = "refs/heads/main" }
scenario = "deploy"
params = { commit = "$.data.head_commit.id", fast = true }
on = "role=web"
rate = "10/1h"

[routes.pager]
kinds = ["alarm.*"]
url = "https://pager.example.org/in/abc"
secret = "whsec_c2VjcmV0c2VjcmV0"

[routes.chat]
kinds = ["git.push", "run.ended"]
url = "https://chat.example.org/hook"
template = '{"text": {{ data.text | json }}}'
"#;

#[test]
fn a_good_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "hooks.toml", GOOD, 0o640);
    write(dir.path(), "github.secret", "a long enough secret\n", 0o600);
    let (declared, look) = load(&path);
    let declared = declared.unwrap();
    assert_eq!(declared.max_body, 1 << 20);
    let hook = &declared.hooks["github"];
    assert_eq!(hook.secrets[0].expose(), "a long enough secret");
    assert_eq!(hook.secrets.len(), 2);
    assert_eq!(format!("{hook:?}").matches("[redacted]").count(), 2);
    assert_eq!(declared.triggers.len(), 1);
    assert_eq!(declared.routes["pager"].to(), "https://pager.example.org");
    assert!(!format!("{:?}", declared.routes).contains("abc"));
    // Both files are looked at.
    assert_eq!(look.len(), 2);
    assert_eq!(look_at(&look), look);
    write(dir.path(), "github.secret", "another long secret", 0o600);
    assert_ne!(look_at(&look), look);
}

#[test]
fn all_mistakes_are_said_at_once() {
    let text = r#"
        [hooks.a]
        kind = "github"
        secret = ""
        [hooks.b]
        kind = "sourceforge"
        secret = "long enough for that"
        [hooks.c]
        kind = "gitlab"
        [hooks.d]
        kind = "gitlab"
        secret = "short"
        rate = "often"
        [hooks."Not a name"]
        kind = "gitlab"
        [triggers.t]
        when = { hook = "nobody", kind = "git.push" }
        scenario = "deploy"
        params = { x = "$.a..b" }
        [triggers.u]
        when = { "data.ref" = "x" }
        scenario = "deploy"
        on = "role="
        role = "admin"
        [triggers.v]
        when = { kind = "git.push", hook = "nobody" }
        scenario = "deploy"
        [routes.r]
        kinds = []
        url = "ftp://x/secret"
        template = "{{ x"
        [routes.s]
        kinds = ["*"]
        [odd]
    "#;
    let said = mistakes(text, 0o600).join("\n");
    for part in [
        "hooks.a: `secret` is empty",
        "hooks.b: ",
        "hooks.c: it needs a `secret`",
        "hooks.d: `secret` has 5 bytes",
        "hooks.d: `rate`: `often` is no rate",
        "hooks.Not a name: ",
        "triggers.t: `params`: `x`: `$.a..b` is no path",
        "triggers.u: `when` needs a `kind`",
        "triggers.u: `on`: ",
        "triggers.u: `role` is member",
        "triggers.v: there is no webhook `nobody`",
        "routes.r: `kinds` names 1 to 64",
        "routes.r: the URL must begin with https://",
        "routes.r: `template`: ",
        "routes.s: it needs a `url`",
        "`odd` is unknown",
    ] {
        assert!(said.contains(part), "{part}\n---\n{said}");
    }
    assert!(!said.contains("ftp://x/secret"), "{said}");
}

#[test]
fn a_secret_that_everybody_can_read_is_none() {
    let text = "[hooks.a]\nkind = \"github\"\nsecret = \"long enough for that\"\n";
    assert_eq!(mistakes(text, 0o600), Vec::<String>::new());
    assert!(mistakes(text, 0o644)[0].contains("everybody can read"));
    assert!(mistakes(text, 0o602)[0].contains("everybody can write it"));
    let dir = tempfile::tempdir().unwrap();
    let named = "[hooks.a]\nkind = \"github\"\nsecret_file = \"s\"\n";
    let path = write(dir.path(), "hooks.toml", named, 0o644);
    let said = || load(&path).0.unwrap_err().mistakes.join("\n");
    assert!(said().contains("No such file"), "{}", said());
    write(dir.path(), "s", "long enough for that", 0o644);
    assert!(
        said().contains("everybody can read or write it"),
        "{}",
        said()
    );
    write(dir.path(), "s", "\n", 0o600);
    assert!(said().contains("is empty"), "{}", said());
    write(dir.path(), "s", "long enough for that\n", 0o600);
    assert!(load(&path).0.is_ok());
}

#[test]
fn what_is_no_toml_is_said_with_its_place() {
    assert!(mistakes("[hooks.a\n", 0o600)[0].contains("line 1"));
    assert!(mistakes("max_body = \"1GiB\"\n", 0o600)[0].contains("max_body"));
    assert!(mistakes("hooks = 3\n", 0o600)[0].contains("[hooks.NAME]"));
    let missing = load(Path::new("/nonexistent/hooks.toml")).0.unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/hooks.toml"));
}

#[test]
fn a_route_leads_to_a_webhook_or_to_channels() {
    let route = |text: &str| mistakes(&format!("[routes.r]\nkinds = [\"git.*\"]\n{text}\n"), 0o600);
    for good in [
        "channel = \"ops/#dev\"",
        "channels = [\"ops/#dev\", \"home/&x\"]",
        "channel = \"ops/#dev\"\nrepository = \"web*\"\nwhere = { branch = [\"main\", \"release-*\"], data.forced = true }",
        "url = \"https://x.example.org/a\"\nrepository = [\"web*\", \"acme/api\"]",
    ] {
        assert_eq!(route(good), [""; 0], "{good}");
    }
    for (bad, why) in [
        ("", "it needs a `url` or a `url_file`, or a `channel`"),
        ("channel = \"#dev\"", "it does not say which network"),
        ("channel = \"ops/dev\"", "it begins with `#`"),
        ("channels = []", "1 to 64 channels"),
        (
            "channel = \"ops/#a\"\nchannels = [\"ops/#b\"]",
            "only one of them",
        ),
        (
            "channel = \"ops/#a\"\nurl = \"https://x/\"",
            "nothing of what is for a `url`",
        ),
        (
            "channel = \"ops/#a\"\nformat = \"cloudevents\"",
            "nothing of what is for a `url`",
        ),
        (
            "channel = \"ops/#a\"\nrepository = 3",
            "`repository`: it is a text",
        ),
        (
            "channel = \"ops/#a\"\nwhere = { \"a b\" = 1 }",
            "`where`: `a b`",
        ),
        (
            "channel = \"ops/#a\"\nwhere = { a = [] }",
            "the list is empty",
        ),
    ] {
        let found = route(bad);
        assert!(found.concat().contains(why), "{bad}: {found:?}");
    }
}
