//! Wrong input gets one clear error, the right exit code, and leaves
//! everything running.

use muster_tests::{Up, finish, free_port};

#[test]
fn mistakes_on_the_command_line() {
    let up = Up::start(&["web-01:role=web,zone=gva2", "web-02:role=web,zone=dk2"]).expect("starts");
    let run = |p: &str| up.muster(&["run", p, "--", "true"]);
    run("role=web and (zone=gva2")
        .exits(2)
        .says(&["never closed", "^"]);
    run("").exits(2).says(&["error"]);
    run("role=web and zoen=gva2")
        .exits(3)
        .says(&["zoen", "zone", "--allow-unknown", "^^^^"]);
    // A typing error under `not` must never mean the whole fleet.
    run("not zoen=zrh").exits(3).says(&["zoen"]);
    run("role=db").exits(3).says(&["no node matches"]);
    run("web-99").exits(3).says(&["web-99"]);
    run("name =~ '('").exits(2).says(&["error"]);
    run(&"(".repeat(5000)).exits(2).says(&["error"]);
    up.muster(&["run", "role=web"]).exits(2).says(&["--"]);
    up.muster(&["run", "role=web", "--batch", "0", "--", "true"])
        .exits(2)
        .says(&["batch"]);
    up.muster(&["run", "role=web", "--timeout", "5", "--", "true"])
        .exits(2)
        .says(&["30s"]);
    up.muster(&["runs", "show", "zzzz"])
        .exits(2)
        .says(&["zzzz"]);
    up.muster(&["runs", "cancel", "00000000000000000000000000"])
        .exits(2)
        .says(&["run"]);
    let said = up
        .muster(&["match", "not zoen=zrh", "--allow-unknown", "--json"])
        .exits(0);
    assert_eq!(muster_tests::names(&said).len(), 2);

    let long = "x".repeat(131_072);
    up.muster_via_body(&long);
    up.muster(&["run", "role=web", "--json", "--", "true"])
        .exits(0);
}

trait ViaBody {
    fn muster_via_body(&self, long: &str);
}

impl ViaBody for Up {
    /// An argument that the kernel would not let the shell pass is sent as a
    /// program would: over HTTP.
    fn muster_via_body(&self, long: &str) {
        let body = serde_json::json!({"predicate": "role=web", "params": {"argv": ["true", long]}});
        let file = self.dir.path().join("body.json");
        std::fs::write(&file, body.to_string()).expect("writes");
        let said = self.curl(
            &[
                "-X",
                "POST",
                "-H",
                "Content-Type: application/json",
                "--data-binary",
                &format!("@{}", file.display()),
            ],
            "/v1/runs",
        );
        assert!(
            said.contains("urn:muster:problem:invalid-request") && said.contains("131072"),
            "{said}"
        );
    }
}

trait Curl {
    fn curl(&self, args: &[&str], path: &str) -> String;
}

impl Curl for Up {
    fn curl(&self, args: &[&str], path: &str) -> String {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-s", "--max-time", "20", "-w", "\n%{http_code}", "-H"]);
        curl.arg(format!(
            "Authorization: Bearer {}",
            self.token().expect("token")
        ));
        curl.args(args).arg(format!("{}{path}", self.url()));
        finish(curl).exits(0).out
    }
}

#[test]
fn mistakes_over_http() {
    let up = Up::start(&["web-01:role=web"]).expect("starts");
    let json = ["-X", "POST", "-H", "Content-Type: application/json", "-d"];
    let post = |body: &str, path: &str| {
        let mut args = json.to_vec();
        args.push(body);
        up.curl(&args, path)
    };
    for (body, path, status, kind) in [
        ("{", "/v1/runs", 400, "invalid-request"),
        ("[]", "/v1/runs", 400, "invalid-request"),
        (
            r#"{"predicate":"role=web","whoami":1}"#,
            "/v1/runs",
            400,
            "invalid-request",
        ),
        (
            r#"{"predicate":"role=web","params":{"argv":[]}}"#,
            "/v1/runs",
            400,
            "invalid-request",
        ),
        (
            r#"{"predicate":"role=web","scenario":"nope"}"#,
            "/v1/runs",
            404,
            "not-found",
        ),
        (
            r#"{"predicate":"role="}"#,
            "/v1/match",
            400,
            "invalid-predicate",
        ),
        (
            r#"{"predicate":"rloe=web"}"#,
            "/v1/match",
            422,
            "unknown-name",
        ),
        ("{}", "/v1/nope", 404, "not-found"),
    ] {
        let said = post(body, path);
        assert!(
            said.ends_with(&format!("\n{status}")),
            "{body} {path}: {said}"
        );
        assert!(
            said.contains(&format!("urn:muster:problem:{kind}")),
            "{body} {path}: {said}"
        );
    }
    let said = up.curl(&["-H", "Authorization: Bearer mt1_nope"], "/v1/nodes");
    assert!(said.ends_with("\n401") || said.ends_with("\n400"), "{said}");
    let said = up.curl(&["-X", "DELETE"], "/v1/runs");
    assert!(
        said.ends_with("\n405") && said.contains("urn:muster:problem"),
        "{said}"
    );
    let doc = up.curl(&[], "/openapi.json");
    assert!(
        doc.contains("\"openapi\":\"3.1") && doc.contains("/v1/runs/{run}/events"),
        "{doc}"
    );
}

#[test]
fn tokens_and_their_roles() {
    let up = Up::start(&["web-01:role=web"]).expect("starts");
    let make = |who: &str, role: &str| {
        let said = up
            .muster(&["token", "create", "--for", who, "--role", role, "--json"])
            .exits(0);
        let json: serde_json::Value = serde_json::from_str(said.out.trim()).expect("json");
        (
            json["token"].as_str().expect("token").to_owned(),
            json["id"].as_str().expect("id").to_owned(),
        )
    };
    let (reader, id) = make("rosa", "reader");
    let (operator, _) = make("otto", "operator");
    let (enroller, _) = make("installer", "node-enroller");
    up.muster_as(&reader, &["nodes"]).exits(0);
    up.muster_as(&reader, &["run", "role=web", "--", "true"])
        .exits(4);
    up.muster_as(&operator, &["run", "role=web", "--", "true"])
        .exits(0);
    up.muster_as(
        &operator,
        &["token", "create", "--for", "x", "--role", "admin"],
    )
    .exits(4);
    up.muster_as(&operator, &["keys", "rotate"]).exits(4);
    up.muster_as(&enroller, &["node", "invite", "--name", "web-77"])
        .exits(0);
    up.muster_as(&enroller, &["run", "role=web", "--", "true"])
        .exits(4);
    up.muster_as("mt1_00000000_00000000000000000000000000", &["nodes"])
        .exits(4);
    up.muster(&["token", "revoke", &id]).exits(0);
    up.muster_as(&reader, &["nodes"]).exits(4);
    // Only hashes are kept.
    let list = up.muster(&["token", "list", "--json"]).exits(0);
    assert!(!list.out.contains(&operator), "{list:?}");
}

#[test]
fn nobody_there() {
    let up = Up::start(&[]).expect("starts");
    let port = free_port().expect("a port");
    let mut command = up.command(&["nodes"]);
    command.env("MUSTER_URL", format!("http://127.0.0.1:{port}"));
    finish(command).exits(5).says(&["127.0.0.1"]);
    let mut command = up.bare("muster");
    command.env("HOME", "/nonexistent").arg("nodes");
    finish(command).exits(5).says(&["--url"]);
    up.muster(&["run", "*", "--", "true"]).exits(3);
}
