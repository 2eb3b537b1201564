//! The functions that a script may call on a node.
//!
//! A resource (`file`, `package`, `service`, `user`) is named first and then
//! told how to be; each of these is one effect. `changed` says whether any of
//! them changed something, or would: `if file(…).content(…).changed { … }`.

use std::collections::BTreeMap;

use muster_protocol::units::Span;
use rhai::{Array, Dynamic, Engine, Map, NativeCallContext};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::effect::{
    Change, Effect, FileAttributes, FileWish, HttpCall, HttpWish, PackageWish, PuppetRun, Run,
    RunWhat, ServiceWish, UserWish,
};
use super::engine::{Said, facts, fill, perform, secrets, wrong};
use crate::fault::nearest;
use crate::plain;

type Context<'a> = NativeCallContext<'a>;

/// Something that can be so or not.
#[derive(Clone)]
struct Resource<K> {
    name: String,
    changed: bool,
    kind: K,
}

#[derive(Clone)]
struct File;
#[derive(Clone)]
struct Package {
    /// How long the package manager may be busy.
    wait: Option<Span>,
}
#[derive(Clone)]
struct Service;
#[derive(Clone)]
struct User;
#[derive(Clone)]
struct Http(Map);

impl<K: Clone> Resource<K> {
    fn new(kind: K, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            changed: false,
            kind,
        }
    }

    /// Has it so, and remembers whether that changed anything.
    fn be(&mut self, context: &Context<'_>, effect: &Effect) -> Said<Self> {
        let performed = perform(context, effect)?;
        self.changed |= matches!(
            performed.change,
            Some(Change::Changed { .. } | Change::WouldChange { .. })
        );
        Ok(self.clone())
    }
}

/// The options of a call: each is taken once, what is left is a mistake.
pub(super) struct Options<'a, 'c> {
    context: &'a Context<'c>,
    what: &'static str,
    map: Map,
    known: Vec<&'static str>,
}

impl<'a, 'c> Options<'a, 'c> {
    pub(super) fn new(context: &'a Context<'c>, what: &'static str, map: Map) -> Self {
        Self {
            context,
            what,
            map,
            known: Vec::new(),
        }
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, key: &'static str) -> Said<Option<T>> {
        self.known.push(key);
        let Some(value) = self.map.remove(key) else {
            return Ok(None);
        };
        let what = self.what;
        let read = plain::to_json(&value)
            .and_then(|value| serde_json::from_value(value).map_err(|e| e.to_string()));
        read.map(Some).map_err(|why| {
            let why = muster_protocol::text::printable(&why, 200);
            wrong(self.context, format!("`{key}` of `{what}`: {why}"))
        })
    }

    fn attributes(&mut self) -> Said<FileAttributes> {
        let mode: Option<String> = self.take("mode")?;
        Ok(FileAttributes {
            mode: mode.map(|text| mode_of(self.context, &text)).transpose()?,
            owner: self.take("owner")?,
            group: self.take("group")?,
        })
    }

    pub(super) fn end(self) -> Said<()> {
        let Some(key) = self.map.keys().next() else {
            return Ok(());
        };
        let key = muster_protocol::text::printable(key, 40);
        let what = self.what;
        let hint = match nearest(&key, self.known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are: {}", self.known.join(", ")),
        };
        Err(wrong(
            self.context,
            format!("`{what}` has no option `{key}`; {hint}"),
        ))
    }
}

/// Permission bits from their octal text.
fn mode_of(context: &Context<'_>, text: &str) -> Said<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777 && (3..=5).contains(&text.len()))
        .ok_or_else(|| {
            let text = muster_protocol::text::printable(text, 20);
            wrong(
                context,
                format!("`{text}` is not a mode; write it like \"0644\""),
            )
        })
}

fn absolute(context: &Context<'_>, path: &str) -> Said<()> {
    if path.starts_with('/') && !path.contains('\0') && path.len() <= 4096 {
        return Ok(());
    }
    let path = muster_protocol::text::printable(path, 80);
    Err(wrong(context, format!("`{path}` is not an absolute path")))
}

fn data(context: &Context<'_>, what: &str, map: &Map) -> Said<Value> {
    plain::map_to_json(map)
        .map(Value::Object)
        .map_err(|e| wrong(context, format!("{what}: {e}")))
}

/// Gives the engine everything that a function on a node may call.
pub(crate) fn register(engine: &mut Engine) {
    commands(engine);
    files(engine);
    packages(engine);
    services(engine);
    users(engine);
    http(engine);
    super::machines::register(engine);
    super::firewall::register(engine);
    rest(engine);
}

fn run(context: &Context<'_>, name: &'static str, what: RunWhat, options: Map) -> Said<Dynamic> {
    let mut options = Options::new(context, name, options);
    let run = Run {
        what,
        ok: options.take("ok")?.unwrap_or_else(|| vec![0]),
        cwd: options.take("cwd")?,
        env: options.take("env")?.unwrap_or_default(),
        timeout: options.take("timeout")?,
        user: options.take("user")?,
        stdin: options.take("stdin")?,
        creates: options.take("creates")?,
        only_if: options.take("only_if")?,
        changes: options.take("changes")?.unwrap_or(true),
    };
    options.end()?;
    for path in run.cwd.iter().chain(&run.creates) {
        absolute(context, path)?;
    }
    let performed = perform(context, &Effect::Run(run))?;
    Ok(plain::from_json(&performed.value))
}

fn argv(context: &Context<'_>, words: Array) -> Said<RunWhat> {
    let argv = texts(context, words)?;
    allowed(context, &argv)?;
    Ok(RunWhat::Argv(argv))
}

/// The words of a command.
pub(super) fn texts(context: &Context<'_>, words: Array) -> Said<Vec<String>> {
    words
        .into_iter()
        .map(|word| {
            // A number is a fine argument.
            match word.as_int() {
                Ok(number) => Ok(number.to_string()),
                Err(_) => word.into_string(),
            }
        })
        .collect::<Result<_, _>>()
        .map_err(|kind| wrong(context, format!("an argument is a text, not a {kind}")))
}

/// The same rules as for a command that a person types.
pub(super) fn allowed(context: &Context<'_>, argv: &[String]) -> Said<()> {
    let params = serde_json::json!({ "argv": argv });
    crate::command::Command::from_params(&params)
        .map(|_| ())
        .map_err(|e| wrong(context, e.to_string()))
}

fn commands(engine: &mut Engine) {
    engine
        .register_fn("command", |c: Context<'_>, words: Array| {
            run(&c, "command", argv(&c, words)?, Map::new())
        })
        .register_fn("command", |c: Context<'_>, words: Array, options: Map| {
            run(&c, "command", argv(&c, words)?, options)
        })
        .register_fn("shell", |c: Context<'_>, line: &str| {
            run(&c, "shell", RunWhat::Shell(line.to_owned()), Map::new())
        })
        .register_fn("shell", |c: Context<'_>, line: &str, options: Map| {
            run(&c, "shell", RunWhat::Shell(line.to_owned()), options)
        });
}

fn files(engine: &mut Engine) {
    type It = Resource<File>;
    fn wish(context: &Context<'_>, file: &mut It, wish: FileWish) -> Said<It> {
        let path = file.name.clone();
        file.be(context, &Effect::File { path, wish })
    }
    fn content(context: &Context<'_>, file: &mut It, text: String, options: Map) -> Said<It> {
        let mut options = Options::new(context, "content", options);
        let attributes = options.attributes()?;
        let backup = options.take("backup")?.unwrap_or(false);
        let diff = options.take("diff")?.unwrap_or(true);
        options.end()?;
        let content = FileWish::Content {
            text,
            attributes,
            backup,
            diff,
        };
        wish(context, file, content)
    }
    fn line(context: &Context<'_>, file: &mut It, text: &str, options: Map) -> Said<It> {
        if text.contains('\n') {
            return Err(wrong(context, "`line` takes one line"));
        }
        let mut options = Options::new(context, "line", options);
        let replaces: Option<String> = options.take("replaces")?;
        let backup = options.take("backup")?.unwrap_or(false);
        let diff = options.take("diff")?.unwrap_or(true);
        options.end()?;
        if let Some(pattern) = &replaces {
            regex::Regex::new(pattern)
                .map_err(|e| wrong(context, format!("`replaces` of `line`: {e}")))?;
        }
        let line = FileWish::Line {
            text: text.to_owned(),
            replaces,
            backup,
            diff,
        };
        wish(context, file, line)
    }
    fn no_line(context: &Context<'_>, file: &mut It, text: &str, options: Map) -> Said<It> {
        if text.contains('\n') {
            return Err(wrong(context, "`no_line` takes one line"));
        }
        let mut options = Options::new(context, "no_line", options);
        let pattern = options.take("pattern")?.unwrap_or(false);
        let backup = options.take("backup")?.unwrap_or(false);
        let diff = options.take("diff")?.unwrap_or(true);
        options.end()?;
        if pattern {
            regex::Regex::new(text)
                .map_err(|e| wrong(context, format!("the pattern of `no_line`: {e}")))?;
        }
        let gone = FileWish::NoLine {
            text: text.to_owned(),
            pattern,
            backup,
            diff,
        };
        wish(context, file, gone)
    }
    fn restore(context: &Context<'_>, file: &mut It, options: Map) -> Said<It> {
        let mut options = Options::new(context, "restore", options);
        let diff = options.take("diff")?.unwrap_or(true);
        options.end()?;
        wish(context, file, FileWish::Restore { diff })
    }
    fn directory(context: &Context<'_>, file: &mut It, options: Map) -> Said<It> {
        let mut options = Options::new(context, "directory", options);
        let attributes = options.attributes()?;
        options.end()?;
        wish(context, file, FileWish::Directory(attributes))
    }

    engine
        .register_type_with_name::<It>("File")
        .register_get("changed", |file: &mut It| file.changed)
        .register_fn("file", |c: Context<'_>, path: &str| -> Said<It> {
            absolute(&c, path)?;
            Ok(It::new(File, path))
        })
        .register_fn("content", |c: Context<'_>, file: &mut It, text: &str| {
            content(&c, file, text.to_owned(), Map::new())
        })
        .register_fn(
            "content",
            |c: Context<'_>, file: &mut It, text: &str, options: Map| {
                content(&c, file, text.to_owned(), options)
            },
        )
        .register_fn(
            "template",
            |c: Context<'_>, file: &mut It, name: &str, values: Map| {
                let text = fill(&c, name, &data(&c, "the values", &values)?)?;
                content(&c, file, text, Map::new())
            },
        )
        .register_fn(
            "template",
            |c: Context<'_>, file: &mut It, name: &str, values: Map, options: Map| {
                let text = fill(&c, name, &data(&c, "the values", &values)?)?;
                content(&c, file, text, options)
            },
        )
        .register_fn("line", |c: Context<'_>, file: &mut It, text: &str| {
            line(&c, file, text, Map::new())
        })
        .register_fn(
            "line",
            |c: Context<'_>, file: &mut It, text: &str, options: Map| line(&c, file, text, options),
        )
        .register_fn("no_line", |c: Context<'_>, file: &mut It, text: &str| {
            no_line(&c, file, text, Map::new())
        })
        .register_fn(
            "no_line",
            |c: Context<'_>, file: &mut It, text: &str, options: Map| {
                no_line(&c, file, text, options)
            },
        )
        .register_fn("restore", |c: Context<'_>, file: &mut It| {
            restore(&c, file, Map::new())
        })
        .register_fn("restore", |c: Context<'_>, file: &mut It, options: Map| {
            restore(&c, file, options)
        })
        .register_fn("mode", |c: Context<'_>, file: &mut It, mode: &str| {
            let attributes = FileAttributes {
                mode: Some(mode_of(&c, mode)?),
                ..FileAttributes::default()
            };
            wish(&c, file, FileWish::Attributes(attributes))
        })
        .register_fn("owner", |c: Context<'_>, file: &mut It, owner: &str| {
            let (owner, group) = match owner.split_once(':') {
                Some((owner, group)) => (owner, Some(group.to_owned())),
                None => (owner, None),
            };
            let attributes = FileAttributes {
                mode: None,
                owner: Some(owner.to_owned()),
                group,
            };
            wish(&c, file, FileWish::Attributes(attributes))
        })
        .register_fn("directory", |c: Context<'_>, file: &mut It| {
            directory(&c, file, Map::new())
        })
        .register_fn(
            "directory",
            |c: Context<'_>, file: &mut It, options: Map| directory(&c, file, options),
        )
        .register_fn("absent", |c: Context<'_>, file: &mut It| {
            wish(&c, file, FileWish::Absent)
        })
        .register_fn("template", |c: Context<'_>, name: &str, values: Map| {
            fill(&c, name, &data(&c, "the values", &values)?)
        });
}

fn packages(engine: &mut Engine) {
    type It = Resource<Package>;
    fn wish(context: &Context<'_>, package: &mut It, wish: PackageWish) -> Said<It> {
        let (name, wait) = (package.name.clone(), package.kind.wait);
        package.be(context, &Effect::Package { name, wish, wait })
    }
    fn package(context: &Context<'_>, name: &str, options: Map) -> Said<It> {
        let mut options = Options::new(context, "package", options);
        let wait = options.take("wait")?;
        options.end()?;
        Ok(It::new(Package { wait }, name))
    }
    engine
        .register_type_with_name::<It>("Package")
        .register_get("changed", |package: &mut It| package.changed)
        .register_fn("package", |name: &str| {
            It::new(Package { wait: None }, name)
        })
        .register_fn("package", |c: Context<'_>, name: &str, options: Map| {
            package(&c, name, options)
        })
        .register_fn("installed", |c: Context<'_>, it: &mut It| {
            wish(&c, it, PackageWish::Installed)
        })
        .register_fn("version", |c: Context<'_>, it: &mut It, version: &str| {
            let version = version.to_owned();
            wish(&c, it, PackageWish::Version { version })
        })
        .register_fn("latest", |c: Context<'_>, it: &mut It| {
            wish(&c, it, PackageWish::Latest)
        })
        .register_fn("absent", |c: Context<'_>, it: &mut It| {
            wish(&c, it, PackageWish::Absent)
        });
}

fn services(engine: &mut Engine) {
    type It = Resource<Service>;
    engine
        .register_type_with_name::<It>("Service")
        .register_get("changed", |service: &mut It| service.changed)
        .register_fn("service", |name: &str| It::new(Service, name));
    for (name, wish) in [
        ("running", ServiceWish::Running),
        ("stopped", ServiceWish::Stopped),
        ("restarted", ServiceWish::Restarted),
        ("reloaded", ServiceWish::Reloaded),
        ("enabled", ServiceWish::Enabled),
        ("disabled", ServiceWish::Disabled),
    ] {
        engine.register_fn(name, move |c: Context<'_>, it: &mut It| {
            let name = it.name.clone();
            it.be(&c, &Effect::Service { name, wish })
        });
    }
}

fn users(engine: &mut Engine) {
    type It = Resource<User>;
    fn present(context: &Context<'_>, user: &mut It, options: Map) -> Said<It> {
        let mut options = Options::new(context, "present", options);
        let wish = UserWish::Present {
            shell: options.take("shell")?,
            home: options.take("home")?,
            groups: options.take("groups")?.unwrap_or_default(),
            system: options.take("system")?.unwrap_or(false),
        };
        options.end()?;
        let name = user.name.clone();
        user.be(context, &Effect::User { name, wish })
    }
    engine
        .register_type_with_name::<It>("User")
        .register_get("changed", |user: &mut It| user.changed)
        .register_fn("user", |name: &str| It::new(User, name))
        .register_fn("present", |c: Context<'_>, it: &mut It| {
            present(&c, it, Map::new())
        })
        .register_fn("present", |c: Context<'_>, it: &mut It, options: Map| {
            present(&c, it, options)
        })
        .register_fn("absent", |c: Context<'_>, it: &mut It| {
            let (name, wish) = (it.name.clone(), UserWish::Absent);
            it.be(&c, &Effect::User { name, wish })
        });
}

fn http(engine: &mut Engine) {
    type It = Resource<Http>;
    fn call(context: &Context<'_>, it: &mut It, wish: HttpWish) -> Said<Dynamic> {
        let mut options = Options::new(context, "http", it.kind.0.clone());
        let headers: BTreeMap<String, String> = options.take("headers")?.unwrap_or_default();
        let timeout = options.take("timeout")?;
        options.end()?;
        let effect = Effect::Http(HttpCall {
            url: it.name.clone(),
            wish,
            headers,
            timeout,
        });
        Ok(plain::from_json(&perform(context, &effect)?.value))
    }
    fn until(context: &Context<'_>, it: &mut It, status: i64, options: Map) -> Said<Dynamic> {
        let mut options = Options::new(context, "until", options);
        let wish = HttpWish::Until {
            status: u16::try_from(status)
                .map_err(|_| wrong(context, "`until` takes an HTTP status such as 200"))?,
            tries: options.take("tries")?.unwrap_or(10),
            every: options
                .take("every")?
                .unwrap_or(muster_protocol::units::Span::from_secs(2)),
        };
        options.end()?;
        call(context, it, wish)
    }
    engine
        .register_type_with_name::<It>("Http")
        .register_fn("http", |url: &str| It::new(Http(Map::new()), url))
        .register_fn("http", |url: &str, options: Map| {
            It::new(Http(options), url)
        })
        .register_fn("get", |c: Context<'_>, it: &mut It| {
            call(&c, it, HttpWish::Get)
        })
        .register_fn("post", |c: Context<'_>, it: &mut It, body: Dynamic| {
            let body = plain::to_json(&body).map_err(|e| wrong(&c, format!("the body: {e}")))?;
            call(&c, it, HttpWish::Post { body })
        })
        .register_fn("until", |c: Context<'_>, it: &mut It, status: i64| {
            until(&c, it, status, Map::new())
        })
        .register_fn(
            "until",
            |c: Context<'_>, it: &mut It, status: i64, options: Map| until(&c, it, status, options),
        );
}

fn rest(engine: &mut Engine) {
    fn emit(context: &Context<'_>, kind: &str, fields: Map) -> Said<()> {
        // What nobody may see is gone before anybody can.
        let fields = match secrets(context)?.mask_value(data(context, "the fields", &fields)?) {
            Value::Object(fields) => fields,
            _ => serde_json::Map::new(),
        };
        let kind = plain::event_kind(kind).map_err(|e| wrong(context, e))?;
        perform(context, &Effect::Emit { kind, fields }).map(|_| ())
    }
    fn puppet(context: &Context<'_>, run: PuppetRun) -> Said<Dynamic> {
        let performed = perform(context, &Effect::Puppet(run))?;
        Ok(plain::from_json(&performed.value))
    }
    engine
        .register_fn("node", |c: Context<'_>| -> Said<Dynamic> {
            Ok(Dynamic::from_map(plain::map_from_json(&facts(&c)?.node)))
        })
        .register_fn("fact", |c: Context<'_>, path: &str| -> Said<Dynamic> {
            let facts = facts(&c)?;
            let found = muster_protocol::predicate::fact_at(&facts.facts, path);
            match found {
                Some(value) => Ok(plain::from_json(value)),
                None => {
                    let path = muster_protocol::text::printable(path, 80);
                    Err(wrong(&c, format!("this node has no fact `{path}`")))
                }
            }
        })
        .register_fn("log", |c: Context<'_>, text: &str| -> Said<()> {
            let text = secrets(&c)?.mask(text);
            perform(&c, &Effect::Log { text }).map(|_| ())
        })
        .register_fn("emit", |c: Context<'_>, kind: &str| {
            emit(&c, kind, Map::new())
        })
        .register_fn("emit", |c: Context<'_>, kind: &str, fields: Map| {
            emit(&c, kind, fields)
        })
        .register_fn("sleep", |c: Context<'_>, text: &str| -> Said<()> {
            let span = text.parse().map_err(|e| wrong(&c, format!("sleep: {e}")))?;
            perform(&c, &Effect::Sleep { span }).map(|_| ())
        })
        .register_fn("reboot", |c: Context<'_>| -> Said<()> {
            perform(&c, &Effect::Reboot).map(|_| ())
        })
        .register_fn("puppet_apply", |c: Context<'_>, manifest: &str| {
            let manifest = manifest.to_owned();
            puppet(&c, PuppetRun::Apply { manifest })
        })
        .register_fn("puppet_agent", |c: Context<'_>| {
            puppet(&c, PuppetRun::Agent)
        });
}
