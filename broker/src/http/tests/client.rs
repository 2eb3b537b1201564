//! The typed client covers every route.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::document;

/// Without the names of parameters: `/v1/nodes/{}`.
fn plain(path: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in path.chars() {
        match c {
            '{' => {
                inside = true;
                out.push('{');
            }
            '}' => {
                inside = false;
                out.push('}');
            }
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out
}

/// What the functions of the client say that they ask: each names its route
/// in back ticks at the beginning of its documentation.
fn said() -> BTreeSet<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/src");
    let mut said = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("///"))
        {
            for code in line.split('`').skip(1).step_by(2) {
                let mut words = code.split(' ');
                if let (Some(method), Some(path), None) = (words.next(), words.next(), words.next())
                    && ["GET", "POST", "PUT", "PATCH", "DELETE"].contains(&method)
                {
                    let path = path.split('?').next().unwrap();
                    said.insert(format!("{method} {}", plain(path)));
                }
            }
        }
    }
    said
}

#[test]
fn every_route_has_a_function_in_the_client() {
    let document = serde_json::to_value(document()).unwrap();
    let mut routes = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        // Services send these, with signatures of their own; agents ask for
        // releases, images and seeds, and about their firewalls, with proofs.
        let of_agents = [
            "/v1/agent/release",
            "/v1/agent/image",
            "/v1/agent/seed",
            "/v1/agent/firewall/addresses",
            "/v1/agent/firewall/confirm",
        ];
        if path.starts_with("/hooks/") || of_agents.contains(&path.as_str()) {
            continue;
        }
        for method in item.as_object().unwrap().keys() {
            routes.insert(format!("{} {}", method.to_uppercase(), plain(path)));
        }
    }
    let said = said();
    let missing: Vec<_> = routes.difference(&said).collect();
    let extra: Vec<_> = said.difference(&routes).collect();
    assert!(missing.is_empty(), "the client lacks {missing:?}");
    assert!(
        extra.is_empty(),
        "the client asks what there is not: {extra:?}"
    );
}

#[test]
fn bodies_refuse_unknown_fields_and_problems_are_what_they_say() {
    let document = serde_json::to_value(document()).unwrap();
    let schemas = &document["components"]["schemas"];
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{method} {path}");
            let body = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            if let Some(name) = body.as_str().and_then(|name| name.rsplit('/').next()) {
                let schema = &schemas[name];
                if schema["type"] == "object" {
                    assert_eq!(schema["additionalProperties"], false, "{what}: {name}");
                }
            }
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let Some(content) = answer["content"].as_object() else {
                    continue;
                };
                for (kind, content) in content {
                    let problem = content["schema"]["$ref"] == "#/components/schemas/Problem";
                    assert_eq!(
                        problem,
                        kind == "application/problem+json",
                        "{what} {status}"
                    );
                }
                if status.starts_with('4') {
                    assert!(
                        content.contains_key("application/problem+json"),
                        "{what} {status}"
                    );
                }
            }
        }
    }
}
