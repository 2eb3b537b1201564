//! A machine that a `main` asks for.

use muster_protocol::api::CreateVms;
use muster_protocol::text::printable;
use muster_protocol::vm::Size;
use serde_json::{Map, Value};

use crate::fault::nearest;

/// What can be said of it.
const KEYS: [&str; 21] = [
    "account",
    "agent",
    "apart",
    "autostart",
    "configure",
    "cpus",
    "disk",
    "groups",
    "image",
    "labels",
    "memory",
    "name",
    "networks",
    "on",
    "protect",
    "ready",
    "ready_within",
    "roles",
    "ssh_keys",
    "strategy",
    "user_data",
];
/// Beside that, whether it stays when the run fails.
const KEEP: &str = "keep";
/// What people write as `2GiB`.
const SIZES: [&str; 2] = ["disk", "memory"];

/// A machine as a script says it. In this form it is hashed: what a newer
/// muster knows of machines changes nothing about calls that stand in journals.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Said {
    /// What is not `()`.
    pub(super) machine: Map<String, Value>,
    /// Whether it stays when the run fails.
    pub(super) keep: bool,
}

impl Said {
    /// Of a script's map.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(mut map: Map<String, Value>) -> Result<Self, String> {
        map.retain(|_, value| !value.is_null());
        let keep = match map.remove(KEEP) {
            None => false,
            Some(Value::Bool(keep)) => keep,
            Some(_) => return Err("`keep` is true or false".to_owned()),
        };
        if let Some(odd) = map.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let shown = printable(odd, 40);
            let all = || format!("there are: {}, {KEEP}", KEYS.join(", "));
            let hint = match odd.as_str() {
                "count" => "one call makes one machine".to_owned(),
                "dry_run" => "a dry run makes none by itself".to_owned(),
                _ => match nearest(odd, KEYS.into_iter().chain([KEEP])) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => all(),
                },
            };
            return Err(format!("a machine has no `{shown}`; {hint}"));
        }
        let said = Self { machine: map, keep };
        let asked = wanted(&said.machine)?;
        if asked.protect && !keep {
            return Err(
                "a machine that is protected cannot be taken back when the run fails; say `keep: true` as well"
                    .to_owned(),
            );
        }
        Ok(said)
    }
}

/// The request that such a map stands for.
///
/// # Errors
/// What is wrong with it.
pub fn wanted(machine: &Map<String, Value>) -> Result<CreateVms, String> {
    let mut map = machine.clone();
    for key in SIZES {
        if let Some(Value::String(text)) = map.get(key) {
            let size: Size = text.parse().map_err(|e| format!("`{key}`: {e}"))?;
            map.insert(key.to_owned(), size.bytes().into());
        }
    }
    let read = serde_path_to_error::deserialize(Value::Object(map));
    read.map_err(|error| {
        let path = error.path().to_string();
        let why = printable(&error.into_inner().to_string(), 200);
        match path.as_str() {
            "." | "" => why,
            path => format!("`{}`: {why}", printable(path, 60)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Said, String> {
        Said::read(value.as_object().expect("a map").clone())
    }

    fn given(more: Value) -> Value {
        let mut all = json!({"name": "web-25", "image": "debian-12", "cpus": 2, "memory": "2GiB"});
        let map = all.as_object_mut().expect("a map");
        map.extend(more.as_object().expect("a map").clone());
        all
    }

    #[test]
    fn a_machine_is_what_a_request_for_one_is() {
        let said = read(given(json!({
            "disk": "10GiB", "account": null, "roles": ["web"], "keep": true, "ready_within": "5m"
        })))
        .expect("it is well");
        assert!(said.keep);
        let asked = wanted(&said.machine).expect("it is well");
        assert_eq!(asked.memory, Size(2 << 30));
        assert_eq!(asked.disk, Some(Size(10 << 30)));
        assert_eq!(asked.account, None);
        assert!(asked.agent && !asked.dry_run);
    }

    #[test]
    fn every_part_of_a_request_is_known_here() {
        let odd = json!({"no such part": 1});
        let error = serde_json::from_value::<CreateVms>(odd).expect_err("refused");
        let text = error.to_string();
        let mut known: Vec<&str> = text.split('`').skip(3).step_by(2).collect();
        known.sort_unstable();
        let mut here: Vec<&str> = KEYS.to_vec();
        here.extend(["count", "dry_run"]);
        here.sort_unstable();
        assert_eq!(known, here, "{text}");
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_right() {
        let said = |value| read(value).expect_err("refused");
        insta::assert_snapshot!(
            said(given(json!({"cpu": 2}))),
            @"a machine has no `cpu`; did you mean `cpus`?"
        );
        insta::assert_snapshot!(
            said(given(json!({"count": 2}))),
            @"a machine has no `count`; one call makes one machine"
        );
        insta::assert_snapshot!(
            said(given(json!({"memory": "much"}))),
            @"`memory`: `much` is not a size; write it like 512MiB, 2GiB or 1TiB"
        );
        let roles = said(given(json!({"roles": [1]})));
        assert!(roles.starts_with("`roles[0]`: "), "{roles}");
        insta::assert_snapshot!(
            said(given(json!({"protect": true}))),
            @"a machine that is protected cannot be taken back when the run fails; say `keep: true` as well"
        );
        insta::assert_snapshot!(said(given(json!({"keep": 1}))), @"`keep` is true or false");
        insta::assert_snapshot!(said(json!({"name": "a"})), @"missing field `image`");
    }
}
