use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;

fn file(text: &str) -> NetworkFile {
    let base = "server = \"irc.example\"\nnick = \"muster\"\n";
    toml::from_str(&format!("{base}{text}")).unwrap()
}

fn private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn what_everybody_can_read_is_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pw"), "x").unwrap();
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(dir.path().join("pw"), open).unwrap();
    let settings = file("server_password_file = \"pw\"").read("ops".parse().unwrap(), dir.path());
    assert!(settings.unwrap_err().to_string().contains("chmod o-rwx it"));
}

fn read(text: &str) -> Result<NetworkSettings, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("pw", "hunter2\n"),
        ("empty", ""),
        ("key", "k1\r\n"),
        ("bad", "a b"),
    ] {
        private(&dir.path().join(name), content);
    }
    let made = rcgen::generate_simple_self_signed(["irc.example".to_owned()]).unwrap();
    std::fs::write(dir.path().join("cert"), made.cert.pem()).unwrap();
    private(
        &dir.path().join("certkey"),
        &made.signing_key.serialize_pem(),
    );
    file(text)
        .read("ops".parse().unwrap(), dir.path())
        .map_err(|e| {
            e.to_string()
                .replace(&dir.path().display().to_string(), "DIR")
        })
}

#[test]
fn what_is_not_said_has_good_values() {
    let read = read("channels = [\"#Ops\", { name = \"#s\", key_file = \"key\" }]").unwrap();
    assert_eq!((read.host.as_str(), read.port), ("irc.example", 6697));
    assert_eq!(
        (read.username.as_str(), read.prefix.as_str()),
        ("muster", "!")
    );
    let tls = read.tls.unwrap();
    assert!(tls.pin.is_none() && tls.roots.is_none() && tls.identity.is_none());
    assert_eq!(
        tls.server_name,
        ServerName::try_from("irc.example").unwrap()
    );
    assert_eq!(read.channels[0].name.as_str(), "#ops");
    assert_eq!(read.channels[1].key.as_ref().unwrap().expose(), "k1");
}

#[test]
fn what_is_not_about_the_connection_is_left_for_others() {
    let file = file("token_file = \"t\"\nmax_lines = 4\n");
    assert_eq!(file.rest.len(), 2);
    assert_eq!(file.rest["max_lines"].as_integer(), Some(4));
}

#[test]
fn servers_are_hosts_with_or_without_a_port() {
    for (text, want) in [
        ("irc.example", Some(("irc.example", 6697))),
        ("irc.example:7000", Some(("irc.example", 7000))),
        ("127.0.0.1:1", Some(("127.0.0.1", 1))),
        ("[::1]:6667", Some(("::1", 6667))),
        ("[::1]", Some(("::1", 6697))),
        ("irc.example:", None),
        ("irc.example:0", None),
        ("irc.example:99999", None),
        ("[::1", None),
        ("[nonsense]:1", None),
        ("::1", None),
        ("a b:1", None),
        ("", None),
    ] {
        let mut file = file("");
        file.server = text.to_owned();
        let read = file.read("ops".parse().unwrap(), Path::new("/nonexistent"));
        let got = read.ok().map(|r| (r.host, r.port));
        assert_eq!(got, want.map(|(h, p)| (h.to_owned(), p)), "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let plain = "sasl = { mechanism = \"plain\", account = \"m\", password_file = \"pw\" }";
    let external = "sasl = { mechanism = \"external\" }";
    let all = [
        "prefix = \"x\"",
        "prefix = \"\"",
        "username = \"a b\"",
        "realname = \"\"",
        "alt_nicks = [\"1st\"]",
        "alt_nicks = [\"list\"]",
        "channels = [\"#a\", \"#A\"]",
        "channels = [\"ops\"]",
        "channels = [{ name = \"#a\", key_file = \"bad\" }]",
        "channels = [{ name = \"#a\", key_file = \"missing\" }]",
        "server_password_file = \"empty\"",
        "tls_fingerprint = \"sha256:12\"",
        "tls_fingerprint = \"md5:12\"",
        "tls_ca_file = \"pw\"",
        "tls = false\nserver_name = \"x\"",
        "client_cert_file = \"cert\"",
        external,
        &format!("tls = false\n{plain}"),
    ]
    .map(|text| match read(text) {
        Ok(_) => panic!("{text} was taken"),
        Err(error) => format!("{}\n    {error}", text.replace('\n', "; ")),
    })
    .join("\n");
    insta::assert_snapshot!(all);
    assert!(read(plain).unwrap().sasl.is_some());
    let identity = "client_cert_file = \"cert\"\nclient_key_file = \"certkey\"";
    let read = read(&format!("{identity}\n{external}")).unwrap();
    assert!(matches!(read.sasl, Some(Sasl::External { account: None })));
    assert!(!format!("{read:?}").contains("PRIVATE"));
}

#[test]
fn a_password_may_go_unencrypted_only_where_nobody_listens() {
    let text = "tls = false\nsasl = { mechanism = \"plain\", account = \"m\", \
                password_file = \"pw\" }";
    let dir = tempfile::tempdir().unwrap();
    private(&dir.path().join("pw"), "x");
    for (server, good) in [
        ("127.0.0.1", true),
        ("[::1]:6667", true),
        ("localhost:1", true),
        ("127.0.0.1.example", false),
        ("192.0.2.1", false),
    ] {
        let mut file = file(text);
        file.server = server.to_owned();
        let read = file.read("ops".parse().unwrap(), dir.path());
        assert_eq!(read.is_ok(), good, "{server}");
    }
}

#[test]
fn pins_are_written_as_openssl_prints_them_too() {
    let hex = "ab".repeat(32);
    let colons = vec!["AB"; 32].join(":");
    let pin = format!("sha256:{hex}").parse::<Pin>().unwrap();
    assert_eq!(format!("sha256:{colons}").parse(), Ok(pin));
    assert_eq!(pin.to_string(), format!("sha256:{hex}"));
    assert!("sha256:".parse::<Pin>().is_err());
}
