//! A scenario that somebody runs on the node itself: found, read, and its
//! parameters bound, before anything happens.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use futures_util::future::BoxFuture;
use muster_protocol::envelope::{BundleHash, Mode};
use muster_protocol::names::{FunctionName, ScenarioName};
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::wire::LocalCall;
use muster_scenarios::bundle::{Bundle, BundlePath, MAX_BYTES, MAX_FILES, SCRIPT};
use muster_scenarios::manifest::{self, MAIN, Manifest, RUN, Shape};
use muster_scenarios::param::{Given, bind};
use muster_scenarios::secret::Secrets;
use serde_json::{Map, Value};

use crate::scenario::{BundleStore, Bundles, StoreError};

/// Most bytes of a file with a secret.
const MAX_SECRET: u64 = 32 * 1024;

/// What is to run.
pub struct Chosen {
    /// Which function of which scenario.
    pub call: LocalCall,
    /// Its parameters; in the place of a secret stands its name.
    pub params: Map<String, Value>,
    /// The secrets.
    pub secrets: Secrets,
    /// How long it may take, as the scenario says.
    pub timeout: Option<Span>,
    /// How often it is tried again, as the scenario says.
    pub retry: u32,
    /// The scenario.
    pub bundle: One,
}

/// Which scenario, and how.
pub struct Wish<'a> {
    /// A script, a directory with one, a name, or the beginning of a hash.
    pub which: &'a str,
    /// `name=value` each.
    pub given: &'a [String],
    /// A function of it, in place of `run`.
    pub function: Option<&'a str>,
    /// Only say what would change.
    pub dry_run: bool,
}

/// Why nothing can be run. One line or a few, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotChosen(String);

fn no(text: impl Into<String>) -> NotChosen {
    NotChosen(text.into())
}

impl Wish<'_> {
    /// Finds and reads it. `stored` is what this node has on its disk, and
    /// `known` the bundles under which brokers have sent a name, newest first.
    ///
    /// # Errors
    /// [`NotChosen`].
    pub fn choose(
        &self,
        stored: &BundleStore,
        known: impl FnOnce(&str) -> Vec<BundleHash>,
    ) -> Result<Chosen, NotChosen> {
        let path = Path::new(self.which);
        let (name, bundle) = if path.exists() {
            load(path)?
        } else if self.which.contains('/') || self.which.ends_with(".rhai") {
            return Err(no(format!(
                "{}: there is no such file",
                printable(self.which, 200)
            )));
        } else {
            self.stored_one(stored, known)?
        };
        let scenario: ScenarioName = name.parse().map_err(|e| {
            no(format!(
                "`{}` cannot be the name of a scenario: {e}",
                printable(&name, 80)
            ))
        })?;
        let file = bundle.script_file(scenario.as_str());
        let manifest = manifest::read(&file, bundle.script()).map_err(|faults| {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            no(faults.join("\n"))
        })?;
        let function = self.function(&manifest)?;
        let mode = if self.dry_run {
            Mode::Check
        } else {
            Mode::Apply
        };
        let (params, secrets) = self.bound(&manifest)?;
        Ok(Chosen {
            call: LocalCall {
                scenario,
                bundle: bundle.hash(),
                function,
                mode,
            },
            params,
            secrets,
            timeout: manifest.timeout,
            retry: manifest.retry,
            bundle: One(bundle),
        })
    }

    fn stored_one(
        &self,
        stored: &BundleStore,
        known: impl FnOnce(&str) -> Vec<BundleHash>,
    ) -> Result<(String, Bundle), NotChosen> {
        let shown = printable(self.which, 80);
        let mut hashes = stored.beginning_with(self.which);
        if hashes.len() > 1 {
            return Err(no(format!("more than one bundle here begins with {shown}")));
        }
        let mut name = "local".to_owned();
        if hashes.is_empty() {
            hashes = known(self.which);
            hashes.retain(|hash| stored.may_have(*hash));
            name = self.which.to_owned();
        }
        let Some(hash) = hashes.first() else {
            return Err(no(format!(
                "there is no file `{shown}`, and no broker has sent a scenario of that name that is still \
                 on this node; name a script, or a directory with one"
            )));
        };
        let bundle = stored.read(*hash).map_err(|e| no(e.to_string()))?;
        Ok((name, bundle))
    }

    fn function(&self, manifest: &Manifest) -> Result<FunctionName, NotChosen> {
        let on_nodes = || {
            let names = manifest.functions.iter().filter(|f| f.params.len() == 1);
            let names = names.map(|f| f.name.as_str()).filter(|name| *name != MAIN);
            names.collect::<Vec<_>>().join(", ")
        };
        let name = match (self.function, manifest.shape) {
            (Some(name), _) => name,
            (None, Shape::Run) => RUN,
            (None, Shape::Main) => {
                return Err(no(format!(
                    "its `main` runs in a broker and leads many nodes; name what is to run on this one: \
                     --function NAME, with one of {}",
                    on_nodes()
                )));
            }
        };
        if name == MAIN || manifest.function(name).is_none() {
            return Err(no(format!(
                "the scenario has no function `{}` that runs on a node; there are: {}",
                printable(name, 60),
                on_nodes()
            )));
        }
        name.parse().map_err(|_| {
            no(format!(
                "`{}` is not the name of a function",
                printable(name, 60)
            ))
        })
    }

    /// The parameters, with everything that is wrong about them at once. The
    /// value of a secret stands in a file: who else is on this machine can see
    /// how a program was called.
    fn bound(&self, manifest: &Manifest) -> Result<(Map<String, Value>, Secrets), NotChosen> {
        let mut given = BTreeMap::new();
        for text in self.given {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                no(format!(
                    "-p takes NAME=VALUE, and not `{}`",
                    printable(text, 40)
                ))
            })?;
            let is_secret = manifest.params.iter().any(|p| p.name == name && p.secret);
            let value = if is_secret {
                secret(name, value)?
            } else {
                value.to_owned()
            };
            if given.insert(name.to_owned(), Given::Text(value)).is_some() {
                return Err(no(format!("-p {} is given twice", printable(name, 60))));
            }
        }
        let bound = bind(&manifest.params, &given).map_err(|mistakes| {
            let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            no(lines.join("\n"))
        })?;
        Ok((bound.sealed(), Secrets::new(bound.secret().clone())))
    }
}

fn secret(name: &str, value: &str) -> Result<String, NotChosen> {
    let Some(path) = value.strip_prefix('@') else {
        return Err(no(format!(
            "{name} is secret: others can see how a program was called. Put it into a file that only you can \
             read: -p {name}=@FILE"
        )));
    };
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_SECRET).read_to_string(&mut text))
        .map_err(|e| no(format!("{}: it cannot be read: {e}", printable(path, 200))))?;
    // An editor ends a file with a line's end, which is no part of it.
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// One bundle, and no other.
pub struct One(Bundle);

impl Bundles for One {
    fn may_have(&self, hash: BundleHash) -> bool {
        self.0.hash() == hash
    }

    fn get(&self, hash: BundleHash) -> BoxFuture<'_, Result<Bundle, StoreError>> {
        let found = if self.may_have(hash) {
            Ok(self.0.clone())
        } else {
            Err(StoreError::Missing(hash))
        };
        Box::pin(std::future::ready(found))
    }
}

/// A script, or a directory with one; and what it is called.
fn load(path: &Path) -> Result<(String, Bundle), NotChosen> {
    let cannot = |path: &Path, why: &dyn std::fmt::Display| {
        let path = printable(&path.to_string_lossy(), 200);
        no(format!("{path}: it cannot be read: {why}"))
    };
    let full = path.canonicalize().map_err(|e| cannot(path, &e))?;
    let (script, files, name) = if full.is_dir() {
        let mut files = BTreeMap::new();
        beside(&full, "", &mut files)?;
        (full.join(SCRIPT), files, full.file_name())
    } else {
        (full.clone(), BTreeMap::new(), full.file_stem())
    };
    let text = read(&script).map_err(|e| cannot(&script, &e))?;
    let text = String::from_utf8(text).map_err(|_| cannot(&script, &"it is no UTF-8 text"))?;
    let bundle = Bundle::new(text, files).map_err(|e| cannot(path, &e))?;
    let name = name.unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, bundle))
}

/// Everything below a directory but the script and what begins with a dot.
fn beside(
    directory: &Path,
    prefix: &str,
    files: &mut BTreeMap<BundlePath, Vec<u8>>,
) -> Result<(), NotChosen> {
    let cannot = |why: &dyn std::fmt::Display| {
        let path = printable(&directory.to_string_lossy(), 200);
        no(format!("{path}: it cannot be read: {why}"))
    };
    for entry in fs::read_dir(directory).map_err(|e| cannot(&e))? {
        let entry = entry.map_err(|e| cannot(&e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let inside = format!("{prefix}{name}");
        if name.starts_with('.') || inside == SCRIPT {
            continue;
        }
        let kind = entry.file_type().map_err(|e| cannot(&e))?;
        if kind.is_dir() {
            beside(&entry.path(), &format!("{inside}/"), files)?;
            continue;
        }
        if !kind.is_file() {
            return Err(cannot(&format!(
                "`{}` is no plain file",
                printable(&inside, 80)
            )));
        }
        if files.len() >= MAX_FILES {
            return Err(cannot(&format!("a scenario has at most {MAX_FILES} files")));
        }
        let inside: BundlePath = inside.parse().map_err(|e| cannot(&e))?;
        let data = read(&entry.path()).map_err(|e| cannot(&e))?;
        files.insert(inside, data);
    }
    Ok(())
}

/// No more of a file than a bundle may hold and one byte, which is the
/// mistake.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut data = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut data)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT_TEXT: &str = r#"
scenario("x");
param("port", #{ type: "int", default: 80 });
param("token", #{ secret: true, required: false });
timeout("7s");
fn run(p) { file("/etc/x").template("templates/x", p); }
fn other(p) { 1 }
"#;

    fn wish<'a>(which: &'a str, given: &'a [String]) -> Wish<'a> {
        Wish {
            which,
            given,
            function: None,
            dry_run: false,
        }
    }

    fn why(wish: &Wish<'_>, store: &BundleStore) -> String {
        match wish.choose(store, |_| Vec::new()) {
            Ok(chosen) => panic!("{:?}", chosen.call),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn it_is_found_where_it_lies_and_its_parameters_are_bound() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("deploy");
        fs::create_dir_all(root.join("templates")).expect("made");
        fs::write(root.join(SCRIPT), SCRIPT_TEXT).expect("written");
        fs::write(root.join("templates/x"), "{{ port }}").expect("written");
        let token = dir.path().join("token");
        fs::write(&token, "geheim-42\n").expect("written");
        let store = BundleStore::new(dir.path().join("bundles"));
        let given = ["port=81".to_owned(), format!("token=@{}", token.display())];
        let path = root.display().to_string();
        let chosen = wish(&path, &given)
            .choose(&store, |_| Vec::new())
            .expect("chosen");
        assert_eq!(chosen.call.scenario.as_str(), "deploy");
        assert_eq!(chosen.timeout, Some(Span::from_secs(7)));
        assert_eq!(chosen.params["port"], 81);
        assert!(!format!("{:?}", chosen.params).contains("geheim"));
        assert_eq!(chosen.secrets.mask("a geheim-42"), "a [redacted]");
        // The same bundle by name and by its hash, once it is on the disk.
        store.put(&chosen.bundle.0).expect("kept");
        let hash = chosen.call.bundle;
        let named = wish("deploy", &[]).choose(&store, |name| {
            assert_eq!(name, "deploy");
            vec![BundleHash::of(b"gone"), hash]
        });
        assert_eq!(named.expect("chosen").call.bundle, hash);
        let short = hash.to_string()[..9].to_owned();
        let by_hash = wish(&short, &[]).choose(&store, |_| Vec::new());
        assert_eq!(by_hash.expect("chosen").call.bundle, hash);
    }

    #[test]
    fn what_is_wrong_is_said_before_anything_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = BundleStore::new(dir.path().join("bundles"));
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("written");
            path.display().to_string()
        };
        let good = write("good.rhai", SCRIPT_TEXT);
        let given = |all: &[&str]| all.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>();
        let said = why(&wish(&good, &given(&["port=x", "prot=1"])), &store);
        assert!(
            said.contains("parameter \"port\": ") && said.contains("did you mean \"port\"?"),
            "{said}"
        );
        let said = why(&wish(&good, &given(&["token=geheim"])), &store);
        assert!(
            said.contains("-p token=@FILE") && !said.contains("geheim"),
            "{said}"
        );
        assert!(why(&wish(&good, &given(&["port"])), &store).contains("NAME=VALUE"));
        let mut other = wish(&good, &[]);
        other.function = Some("nothing");
        let said = why(&other, &store);
        assert!(
            said.contains("there are: ") && said.contains("other"),
            "{said}"
        );
        other.function = Some("other");
        assert!(other.choose(&store, |_| Vec::new()).is_ok());
        let lead = write(
            "lead.rhai",
            "scenario(\"x\"); target(\"*\"); fn main(p) {} fn up(p) {}",
        );
        let said = why(&wish(&lead, &[]), &store);
        assert!(said.contains("--function NAME, with one of up"), "{said}");
        let bad = write("bad.rhai", "fn run(p) { let }");
        assert!(why(&wish(&bad, &[]), &store).contains("bad.rhai:1:"));
        assert!(why(&wish("nowhere", &[]), &store).contains("there is no file `nowhere`"));
        assert!(why(&wish("/no/where.rhai", &[]), &store).contains("no such file"));
    }
}
