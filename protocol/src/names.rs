//! Names that people give: parsed once, then carried as types.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::text::printable;
use crate::text_form::text_form;

/// Why a text is not a name of some kind.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not a valid {what}: {why}")]
pub struct NameError {
    what: &'static str,
    text: String,
    why: String,
}

/// Longest node, role, scenario or principal name, in bytes.
pub const MAX_NAME: usize = 63;
/// Longest label value, in bytes.
pub const MAX_VALUE: usize = 128;

fn check(
    what: &'static str,
    text: &str,
    extra: &str,
    upper: bool,
    max: usize,
) -> Result<(), NameError> {
    let fail = |why: String| {
        Err(NameError {
            what,
            text: printable(text, 80),
            why,
        })
    };
    if text.is_empty() {
        return fail("it is empty".into());
    }
    if text.len() > max {
        return fail(format!(
            "it has {} bytes, at most {max} are allowed",
            text.len()
        ));
    }
    for c in text.chars() {
        let ok = c.is_ascii_lowercase()
            || c.is_ascii_digit()
            || (upper && c.is_ascii_uppercase())
            || extra.contains(c);
        if !ok {
            let letters = if upper { "letters" } else { "small letters" };
            return fail(format!(
                "`{}` is not allowed; it takes {letters}, digits and `{extra}`",
                printable(&c.to_string(), 8)
            ));
        }
    }
    let first = text.chars().next().unwrap_or('-');
    if !first.is_ascii_alphanumeric() {
        return fail(format!(
            "it begins with `{first}`; it must begin with a letter or a digit"
        ));
    }
    Ok(())
}

/// What [`check`] takes, for the API's schema.
fn pattern(extra: &str, upper: bool) -> String {
    let letters = if upper { "A-Za-z0-9" } else { "a-z0-9" };
    // Within brackets only these have a meaning of their own.
    let extra = extra.replace('-', r"\-");
    format!("^[{letters}][{letters}{extra}]*$")
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $extra:literal, $upper:literal, $max:expr, $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check($what, text, $extra, $upper, $max)?;
                let reserved: &[&str] = $reserved;
                if reserved.contains(&text) {
                    return Err(NameError {
                        what: $what,
                        text: text.to_owned(),
                        why: "this word has a meaning of its own in predicates; choose another".into(),
                    });
                }
                Ok(Self(text.into()))
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        text_form!($name, pattern($extra, $upper), $max);
    };
}

/// Words of the predicate language, which no name may be.
const WORDS: &[&str] = &["and", "or", "not", "in", "has"];

name! {
    /// What people call a node: a host name in lower case, dots allowed.
    NodeName, "node name", ".-", false, MAX_NAME, WORDS
}
name! {
    /// A role that the operators give to nodes, such as `web`.
    RoleName, "role", "-_.", false, MAX_NAME, WORDS
}
name! {
    /// The key of a label, such as `zone`. `name` and `role` are taken.
    LabelKey, "label name", "-_.", false, MAX_NAME, &["and", "or", "not", "in", "has", "name", "role"]
}
name! {
    /// The value of a label, such as `gva2` or `12.1`.
    LabelValue, "label value", "-_.:/@+", true, MAX_VALUE, &[]
}
name! {
    /// The name of a scenario, such as `web-upgrade`.
    ScenarioName, "scenario name", "-_", false, MAX_NAME, &[]
}
name! {
    /// The name of a schedule, such as `nightly`. Its runs are those of the
    /// principal `schedule:<name>`, which is a name, too.
    ScheduleName, "schedule name", "-_.", false, MAX_NAME - 9, &[]
}
name! {
    /// The name of a webhook, such as `github`: `POST /hooks/<name>`.
    HookName, "hook name", "-_", false, MAX_NAME, &[]
}
name! {
    /// The name of a trigger, such as `deploy-main`. Its runs are those of the
    /// principal `trigger:<name>` unless another one is named.
    TriggerName, "trigger name", "-_", false, MAX_NAME - 8, &[]
}
name! {
    /// The name of a route, such as `pager`.
    RouteName, "route name", "-_", false, MAX_NAME, &[]
}
name! {
    /// The name of a build that can be asked for in chat, such as `web`.
    BuildName, "build name", "-_", false, MAX_NAME, &[]
}
name! {
    /// The name that the operators give to a chat network, such as `ops`.
    /// Whoever listens there asks as `irc:<name>`, which is a name, too.
    NetworkName, "network name", "-_.", false, 24, &[]
}
name! {
    /// Who asks: a person, a CI system, a schedule; `ana` or `ci/webapp`.
    PrincipalName, "principal name", "-_.@/:", true, MAX_NAME, &[]
}
name! {
    /// What people call a virtual machine: a host name, so that its node can
    /// have the same name. Dots allowed.
    VmName, "machine name", ".-", false, MAX_NAME, WORDS
}
name! {
    /// The name of a disk image, such as `debian-12`.
    ImageName, "image name", "-_.", false, MAX_NAME, &[]
}
name! {
    /// The name of a network that machines are in, such as `public`.
    LanName, "network name", "-_.", false, MAX_NAME, &[]
}
name! {
    /// A bridge of a hypervisor, such as `br0`: the name of a Linux device.
    BridgeName, "bridge name", "-_.", true, 15, &[]
}
name! {
    /// The tap of a machine on its hypervisor: the name of a Linux device.
    TapName, "tap name", "-_.", true, 15, &[]
}
name! {
    /// A storage pool of a hypervisor, such as `default`.
    PoolName, "pool name", "-_.", true, MAX_NAME, &[]
}
name! {
    /// The name of a snapshot of a machine.
    SnapshotName, "snapshot name", "-_.", false, MAX_NAME, &[]
}
name! {
    /// Who a machine belongs to, such as `acme`: what it uses is theirs.
    AccountName, "account name", "-_.@", false, MAX_NAME, &[]
}
name! {
    /// The name of a public key for ssh, such as `ana`.
    SshKeyName, "ssh key name", "-_.@", false, MAX_NAME, &[]
}
name! {
    /// The name of a group of rules for the interfaces of machines.
    GroupName, "group name", "-_.", false, MAX_NAME, &[]
}
name! {
    /// The name of a set of addresses, such as `office`.
    SetName, "address set name", "-_.", false, MAX_NAME, &[]
}
name! {
    /// A function of a scenario.
    FunctionName, "function name", "_", true, MAX_NAME, &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_a_subject_a_path_or_a_terminal_would_read_otherwise() {
        for bad in [
            "",
            "-a",
            "a b",
            "a*",
            "a>",
            "../x",
            "a\n",
            "é",
            "A",
            "and",
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        for good in ["web-01", "gva2-r03-h12", "db.example.org", "0"] {
            assert_eq!(
                good.parse::<NodeName>().map(|n| n.to_string()),
                Ok(good.to_owned())
            );
        }
        assert!("name".parse::<LabelKey>().is_err());
        assert!("role".parse::<LabelKey>().is_err());
        assert!("12.1".parse::<LabelValue>().is_ok());
        insta::assert_snapshot!(
            "web 01".parse::<NodeName>().unwrap_err(),
            @"`web 01` is not a valid node name: ` ` is not allowed; it takes small letters, digits and `.-`"
        );
    }
}
