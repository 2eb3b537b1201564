//! `vm::…`: the machines of a hypervisor.

use muster_protocol::names::SnapshotName;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::vm::{ImageRef, Machine, Size, VmCall, VmId};
use rhai::{Array, Dynamic, Engine, FuncRegistration, Map, Module, NativeCallContext};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::effect::{Change, Effect};
use super::engine::{Said, perform, wrong};
use super::resources::{Options, allowed, texts};
use crate::engine::VM;
use crate::plain;

type Context<'a> = NativeCallContext<'a>;

/// How long a machine has to end by itself when nothing is said.
const GRACE: Span = Span::from_secs(30);
/// The same for a program in one.
const TIMEOUT: Span = Span::from_secs(60);
/// Lines of a console's log.
const LINES: u32 = 50;

/// What a map has to be; what is wrong with it is said with the field's name.
fn read<T: DeserializeOwned>(context: &Context<'_>, what: &str, map: &Map) -> Said<T> {
    let value = plain::map_to_json(map).map_err(|e| wrong(context, format!("{what}: {e}")))?;
    serde_path_to_error::deserialize(Value::Object(value)).map_err(|error| {
        let at = error.path().to_string();
        let why = printable(&error.inner().to_string(), 200);
        let at = match at.as_str() {
            "." => String::new(),
            at => format!(" `{}`:", printable(at, 80)),
        };
        wrong(context, format!("{what}:{at} {why}"))
    })
}

fn id(context: &Context<'_>, text: &str) -> Said<VmId> {
    text.parse()
        .map_err(|e: muster_protocol::vm::VmIdError| wrong(context, e.to_string()))
}

fn snapshot_name(context: &Context<'_>, text: &str) -> Said<SnapshotName> {
    text.parse().map_err(|e| wrong(context, format!("{e}")))
}

/// `2147483648`, or `"2GiB"`.
fn size(
    context: &Context<'_>,
    options: &mut Options<'_, '_>,
    key: &'static str,
) -> Said<Option<Size>> {
    let bad = |why: String| wrong(context, format!("`{key}` of `vm::resize`: {why}"));
    match options.take::<Value>(key)? {
        None => Ok(None),
        Some(Value::String(text)) => text.parse().map(Some).map_err(|e| bad(format!("{e}"))),
        Some(other) => match other.as_u64() {
            Some(bytes) => Ok(Some(Size(bytes))),
            None => Err(bad(
                "a number of bytes, or a text such as \"2GiB\"".to_owned()
            )),
        },
    }
}

/// What a call gave.
fn value(context: &Context<'_>, call: VmCall) -> Said<Dynamic> {
    Ok(plain::from_json(
        &perform(context, &Effect::Vm(call))?.value,
    ))
}

/// Whether a call changed something, and what else it said.
fn changed(context: &Context<'_>, call: VmCall) -> Said<Map> {
    let performed = perform(context, &Effect::Vm(call))?;
    let mut map = match &performed.value {
        Value::Object(more) => plain::map_from_json(more),
        _ => Map::new(),
    };
    let changed = matches!(
        performed.change,
        Some(Change::Changed { .. } | Change::WouldChange { .. })
    );
    map.insert("changed".into(), changed.into());
    Ok(map)
}

fn stop(context: &Context<'_>, text: &str, options: Map) -> Said<Map> {
    let mut options = Options::new(context, "vm::stop", options);
    let grace = options.take("grace")?.unwrap_or(GRACE);
    options.end()?;
    let id = id(context, text)?;
    changed(context, VmCall::Stop { id, grace })
}

fn reboot(context: &Context<'_>, text: &str, options: Map) -> Said<Map> {
    let mut options = Options::new(context, "vm::reboot", options);
    let grace = options.take("grace")?.unwrap_or(GRACE);
    options.end()?;
    let id = id(context, text)?;
    changed(context, VmCall::Reboot { id, grace })
}

fn destroy(context: &Context<'_>, text: &str, options: Map) -> Said<Map> {
    let mut options = Options::new(context, "vm::destroy", options);
    let purge = options.take("purge")?.unwrap_or(false);
    options.end()?;
    let id = id(context, text)?;
    changed(context, VmCall::Destroy { id, purge })
}

fn resize(context: &Context<'_>, text: &str, options: Map) -> Said<Map> {
    let mut options = Options::new(context, "vm::resize", options);
    let cpus = options.take("cpus")?;
    let memory = size(context, &mut options, "memory")?;
    let disk = size(context, &mut options, "disk")?;
    options.end()?;
    let id = id(context, text)?;
    changed(
        context,
        VmCall::Resize {
            id,
            cpus,
            memory,
            disk,
        },
    )
}

fn console_log(context: &Context<'_>, text: &str, options: Map) -> Said<Dynamic> {
    let mut options = Options::new(context, "vm::console_log", options);
    let lines = options.take("lines")?.unwrap_or(LINES);
    options.end()?;
    let id = id(context, text)?;
    value(context, VmCall::ConsoleLog { id, lines })
}

fn guest_exec(context: &Context<'_>, text: &str, words: Array, options: Map) -> Said<Dynamic> {
    let mut options = Options::new(context, "vm::guest_exec", options);
    let timeout = options.take("timeout")?.unwrap_or(TIMEOUT);
    options.end()?;
    let id = id(context, text)?;
    let argv = texts(context, words)?;
    allowed(context, &argv)?;
    value(context, VmCall::GuestExec { id, argv, timeout })
}

/// Gives an engine the words about machines.
pub(super) fn register(engine: &mut Engine) {
    let mut vm = Module::new();
    macro_rules! words {
        ($($name:literal => $function:expr;)+) => {
            $(FuncRegistration::new($name).set_into_module(&mut vm, $function);)+
        };
    }
    words! {
        "image" => |c: Context<'_>, image: Map| -> Said<Map> {
            let image: ImageRef = read(&c, "vm::image", &image)?;
            changed(&c, VmCall::Image { image })
        };
        "create" => |c: Context<'_>, machine: Map| -> Said<Map> {
            let machine: Machine = read(&c, "vm::create", &machine)?;
            machine.check().map_err(|e| wrong(&c, format!("vm::create: {e}")))?;
            changed(&c, VmCall::Create { machine: Box::new(machine) })
        };
        "start" => |c: Context<'_>, text: &str| -> Said<Map> {
            let id = id(&c, text)?;
            changed(&c, VmCall::Start { id })
        };
        "stop" => |c: Context<'_>, id: &str| stop(&c, id, Map::new());
        "stop" => |c: Context<'_>, id: &str, options: Map| stop(&c, id, options);
        "reboot" => |c: Context<'_>, id: &str| reboot(&c, id, Map::new());
        "reboot" => |c: Context<'_>, id: &str, options: Map| reboot(&c, id, options);
        "destroy" => |c: Context<'_>, id: &str| destroy(&c, id, Map::new());
        "destroy" => |c: Context<'_>, id: &str, options: Map| destroy(&c, id, options);
        "resize" => |c: Context<'_>, id: &str, options: Map| resize(&c, id, options);
        "snapshot" => |c: Context<'_>, text: &str, name: &str| -> Said<Map> {
            let (id, snapshot) = (id(&c, text)?, snapshot_name(&c, name)?);
            changed(&c, VmCall::Snapshot { id, snapshot })
        };
        "restore" => |c: Context<'_>, text: &str, name: &str| -> Said<Map> {
            let (id, snapshot) = (id(&c, text)?, snapshot_name(&c, name)?);
            changed(&c, VmCall::Restore { id, snapshot })
        };
        "unseed" => |c: Context<'_>, text: &str| -> Said<Map> {
            let id = id(&c, text)?;
            changed(&c, VmCall::Unseed { id })
        };
        "list" => |c: Context<'_>| value(&c, VmCall::List);
        "info" => |c: Context<'_>, text: &str| -> Said<Dynamic> {
            let id = id(&c, text)?;
            value(&c, VmCall::Info { id })
        };
        "console_log" => |c: Context<'_>, id: &str| console_log(&c, id, Map::new());
        "console_log" => |c: Context<'_>, id: &str, options: Map| console_log(&c, id, options);
        "guest_exec" => |c: Context<'_>, id: &str, argv: Array| guest_exec(&c, id, argv, Map::new());
        "guest_exec" => |c: Context<'_>, id: &str, argv: Array, options: Map| guest_exec(&c, id, argv, options);
        "guest_ping" => |c: Context<'_>, text: &str| -> Said<Dynamic> {
            let id = id(&c, text)?;
            value(&c, VmCall::GuestPing { id })
        };
    }
    engine.register_static_module(VM, vm.into());
}
