//! The language: which part of Rhai there is, and its limits. All engines of
//! muster are made here, so that a script means the same wherever it is read
//! or run, in debug and release builds alike.
//!
//! A script is read and run on a thread of its own whose stack is known
//! ([`apart`]): what it nests ends in a message ([`crate::depth`]), never in a
//! process that is gone, and a panic below it is an error of that one call.

use std::any::Any;
use std::cell::RefCell;
use std::sync::Arc;
use std::thread;

use rhai::packages::{
    BasicArrayPackage, BasicBlobPackage, BasicMapPackage, BasicMathPackage, BitFieldPackage,
    CorePackage, LogicPackage, MoreStringPackage, Package as _,
};
use rhai::{AST, Dynamic, Engine, EvalAltResult, Module, OptimizationLevel, Token};

use crate::depth::{self, TooDeep, UsedUp};
use crate::fault::{Fault, Place};
use crate::text;

/// Bounds of a script's execution.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Operations, as the engine counts them: about one for each node of the
    /// syntax tree that is evaluated.
    pub operations: u64,
    /// Functions that call each other.
    pub call_depth: usize,
    /// Bytes of one string, and of all strings in one value.
    pub string: usize,
    /// Elements of one array, with those inside its elements.
    pub array: usize,
    /// Properties of one map, with those inside.
    pub map: usize,
    /// Stack of the thread that a script runs on, in bytes. Only what is
    /// touched of it takes memory; but a kernel gives no more at once than
    /// the machine has, and nodes are small.
    pub stack: usize,
}

impl Limits {
    /// For reading a manifest.
    pub const MANIFEST: Self = Self {
        operations: 20_000,
        call_depth: 8,
        string: 64 * 1024,
        array: 1_000,
        map: 1_000,
        stack: 8 << 20,
    };
    /// For a function on a node.
    pub const NODE: Self = Self {
        operations: 3_000_000,
        call_depth: 32,
        string: 4 * 1024 * 1024,
        array: 20_000,
        map: 20_000,
        stack: 32 << 20,
    };
    /// For `main` in the broker: 20,000 nodes must fit into an array.
    pub const MAIN: Self = Self {
        operations: 5_000_000,
        call_depth: 32,
        string: 4 * 1024 * 1024,
        array: 100_000,
        map: 100_000,
        stack: 256 << 20,
    };
}

/// How much of its stack a script's calls and expressions may use, in bytes:
/// about three times what the deepest ones that are let through need. The rest
/// is for what is done to one value: it takes up to 400 bytes for each level,
/// and a value may be nested as deep as it is large, where no variable holds
/// it while it grows.
const ROOM: usize = 4 << 20;
/// How many operations pass between two looks at whether to stop.
const LOOK_EVERY: u64 = 64;

/// Says whether a script is to end now.
pub(crate) type Stopped = Arc<dyn Fn() -> bool + Send + Sync>;

thread_local! {
    /// Of the script that this thread runs: the engine asks about progress
    /// without saying for whom.
    static STOPPED: RefCell<Option<Stopped>> = const { RefCell::new(None) };
}

/// Does something with a script on a thread of its own, and waits for it.
///
/// # Errors
/// There is no thread to be had, or the work panicked: one line that says so.
pub(crate) fn apart<T: Send>(
    limits: Limits,
    stopped: Option<Stopped>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("scenario".to_owned())
            .stack_size(limits.stack)
            .spawn_scoped(scope, move || {
                depth::begin(ROOM.min(limits.stack / 2));
                STOPPED.set(stopped);
                work()
            })
            .map_err(|e| format!("there is no thread for the script: {e}"))?;
        thread.join().map_err(|panic| {
            let what = muster_protocol::text::printable(message(&*panic), 200);
            format!("a function of muster failed, and not of the scenario: {what}")
        })
    })
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("it panicked")
}

/// Depth of expressions outside and inside of functions.
const EXPRESSION_DEPTH: (usize, usize) = (48, 48);
/// Functions that one script may define.
const MAX_FUNCTIONS: usize = 256;
/// Variables in one scope chain.
const MAX_VARIABLES: usize = 512;
/// Of a value that cannot be worked with.
const TOO_DEEP: &str = "a value is nested deeper than 256 levels, or holds itself";
/// Words that Rhai keeps for a later day, and that are names here.
const FREED: [&str; 2] = ["package", "default"];

/// In front of every word about machines: `vm::create`.
pub(crate) const VM: &str = "vm";
/// In front of every word about a node's own firewall: `firewall::host`.
pub(crate) const FIREWALL: &str = "firewall";

/// An engine that has the language and nothing of muster yet.
#[must_use]
pub fn engine(limits: Limits) -> Engine {
    let mut engine = Engine::new_raw();
    // Chosen one by one: no time (a replay must see what the first pass saw),
    // no debugger.
    CorePackage::new().register_into_engine(&mut engine);
    LogicPackage::new().register_into_engine(&mut engine);
    BasicMathPackage::new().register_into_engine(&mut engine);
    BasicArrayPackage::new().register_into_engine(&mut engine);
    BasicBlobPackage::new().register_into_engine(&mut engine);
    BasicMapPackage::new().register_into_engine(&mut engine);
    BitFieldPackage::new().register_into_engine(&mut engine);
    MoreStringPackage::new().register_into_engine(&mut engine);

    engine
        .set_max_operations(limits.operations)
        .set_max_call_levels(limits.call_depth)
        .set_max_string_size(limits.string)
        .set_max_array_size(limits.array)
        .set_max_map_size(limits.map)
        .set_max_expr_depths(EXPRESSION_DEPTH.0, EXPRESSION_DEPTH.1)
        .set_max_functions(MAX_FUNCTIONS)
        .set_max_variables(MAX_VARIABLES)
        .set_max_modules(0);
    engine
        .set_strict_variables(true)
        .set_fail_on_invalid_map_property(true)
        // What runs is what was written: places in errors stay true, and a
        // check sees every line.
        .set_optimization_level(OptimizationLevel::None)
        .disable_symbol("eval")
        .disable_symbol("import")
        .disable_symbol("export")
        // What is bound to a function, and what it is called on, is counted in
        // no size, and `this` is looked at nowhere.
        .disable_symbol("curry")
        .disable_symbol("this")
        // Nobody would see it; `log` is for that.
        .disable_symbol("print")
        .disable_symbol("debug");
    engine.on_progress(|operations| {
        if depth::is_used_up() {
            return Some(Dynamic::from(UsedUp));
        }
        if depth::is_given_up() {
            return Some(Dynamic::from(TooDeep));
        }
        if operations % LOOK_EVERY != 0 {
            return None;
        }
        let stopped = STOPPED.with_borrow(|stopped| stopped.as_ref().is_some_and(|s| s()));
        stopped.then_some(Dynamic::UNIT)
    });
    // Known wherever a script is read; what is in it is for nodes only.
    engine.register_static_module(VM, Module::new().into());
    engine.register_static_module(FIREWALL, Module::new().into());
    text::register(&mut engine, limits);
    // Rhai's own would hold its thread, and nothing could end it.
    engine.register_fn("sleep", |_: i64| no_number());
    engine.register_fn("sleep", |_: f64| no_number());
    #[allow(
        deprecated,
        reason = "not deprecated but marked as subject to change; the version is pinned by Cargo.lock and the tests hold it"
    )]
    engine.on_var(|name, _, context| {
        match context.scope().get(name).is_some_and(depth::is_too_deep) {
            // It has its place; whoever catches it is ended after it.
            true => {
                depth::give_up();
                Err(TOO_DEEP.into())
            }
            false => Ok(None),
        }
    });
    #[allow(
        deprecated,
        reason = "not deprecated but marked as subject to change; the version is pinned by Cargo.lock and the tests hold it"
    )]
    engine.on_parse_token(|token, _, _| match token {
        Token::Reserved(word) if FREED.contains(&word.as_str()) => Token::Identifier(word),
        // `http(…).until(200)`; a loop has `do … while`.
        Token::Until => Token::Identifier(Box::new("until".into())),
        token => token,
    });
    engine
}

/// Whether a script ended because it was told to; else it failed.
pub(crate) fn is_stopped(error: &EvalAltResult) -> bool {
    matches!(error, EvalAltResult::ErrorTerminated(token, _)
        if !token.is::<UsedUp>() && !token.is::<TooDeep>())
}

fn no_number() -> Result<(), Box<EvalAltResult>> {
    Err("`sleep` takes a duration with its unit: sleep(\"5s\")".into())
}

/// Reads a script.
///
/// # Errors
/// The one syntax error at which the parser stopped.
pub(crate) fn parse(engine: &Engine, file: &str, text: &str) -> Result<AST, Box<Fault>> {
    engine.compile(text).map_err(|error| {
        let place = Place::of(error.position());
        let (place, message) = match error.err_type() {
            // Found out at the token after it.
            rhai::ParseErrorType::VariableUndefined(name) => (
                place.map(|at| last_before(text, at, name)),
                format!("there is no variable `{name}` here"),
            ),
            other => (place, plain(&other.to_string())),
        };
        let source = place.and_then(|at| text.lines().nth(at.line - 1).map(|line| (at, line)));
        let word = source.map(|(at, line)| {
            let rest = line.chars().skip(at.column - 1);
            rest.take_while(|c| c.is_alphanumeric()).collect::<String>()
        });
        let instead = word
            .as_deref()
            .and_then(|word| Some((word, instead(word)?)));
        Box::new(match instead {
            Some((word, hint)) => {
                let message = format!("there is no `{word}` in scenarios");
                Fault::new(file, text, place, message).hint(hint)
            }
            None => Fault::new(file, text, place, message),
        })
    })
}

/// What to write instead of a word of Rhai that is not there.
fn instead(word: &str) -> Option<&'static str> {
    Some(match word {
        "print" | "debug" => "write log(\"…\"): it stands in the run's log",
        "eval" => "what a scenario does stands in its text",
        "this" => "give the function what it works with, and use what it returns",
        "curry" => "write a closure: |x| work(1, x)",
        "import" | "export" => "a scenario is one script, with templates and files beside it",
        _ => return None,
    })
}

/// What an error of the engine says, as the middle of a sentence of ours;
/// `endless` is for a script that used up its operations.
pub(crate) fn said(error: &EvalAltResult, endless: &str) -> String {
    muster_protocol::text::printable(&raw(error, endless), 1_000)
}

/// The same where its lines are shown as lines.
pub(crate) fn said_in_lines(error: &EvalAltResult, endless: &str) -> String {
    let text = raw(error, endless);
    let lines = text.lines().take(100);
    let lines: Vec<String> = lines
        .map(|line| muster_protocol::text::printable(line, 1_000))
        .collect();
    lines.join("\n")
}

fn raw(error: &EvalAltResult, endless: &str) -> String {
    match error {
        EvalAltResult::ErrorRuntime(value, _) => match value.clone().into_string() {
            Ok(text) => text,
            Err(_) if depth::is_too_deep_anywhere(value) => TOO_DEEP.to_owned(),
            Err(_) => value.to_string(),
        },
        EvalAltResult::ErrorTerminated(token, _) if token.is::<TooDeep>() => TOO_DEEP.to_owned(),
        EvalAltResult::ErrorTerminated(token, _) if token.is::<UsedUp>() => {
            "calls and expressions are nested too deep here".to_owned()
        }
        EvalAltResult::ErrorTooManyOperations(_) => endless.to_owned(),
        EvalAltResult::ErrorStackOverflow(_) => {
            "functions call each other too deep: a loop does the same".to_owned()
        }
        EvalAltResult::ErrorDataTooLarge(what, _) => {
            format!("{} grows larger than a script may have it", plain(what))
        }
        EvalAltResult::ErrorPropertyNotFound(name, _) => {
            format!("there is no property `{name}` here")
        }
        EvalAltResult::ErrorFunctionNotFound(signature, _) => {
            format!("there is no function {}", readable(signature))
        }
        other => {
            let text = other.to_string();
            text.split(" (line ").next().unwrap_or_default().to_owned()
        }
    }
}

/// Where a word stands last before a place, on the same line; else the place.
fn last_before(text: &str, at: Place, word: &str) -> Place {
    let Some(line) = text.lines().nth(at.line - 1) else {
        return at;
    };
    let upto: String = line.chars().take(at.column - 1).collect();
    upto.rfind(word).map_or(at, |byte| Place {
        line: at.line,
        column: upto[..byte].chars().count() + 1,
    })
}

/// A call with the types of its arguments, as people write them:
/// `ask(string, map)`.
fn readable(signature: &str) -> String {
    let words = signature
        .replace("&str | ImmutableString | String", "string")
        .replace("i64", "int")
        .replace("f64", "float");
    words.replacen(" (", "(", 1)
}

/// The engine's words as the middle of a sentence of ours.
fn plain(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        // `Expecting`, not `I` or an acronym.
        Some(first) if chars.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(script: &str) -> String {
        let engine = engine(Limits::MANIFEST);
        engine
            .eval::<rhai::Dynamic>(script)
            .map(|v| format!("gave {v}"))
            .expect_err(script)
            .to_string()
    }

    #[test]
    fn nothing_runs_without_an_end() {
        for script in [
            "loop {}",
            "let x = 0; while true { x += 1; }",
            "fn f() { f() } f()",
            "let s = \"x\"; loop { s += s; }",
            "let a = [0]; loop { a += a; }",
            "let m = #{}; let i = 0; loop { m[`k${i}`] = i; i += 1; }",
            "\"\".pad(1000000000, \"x\")",
            "let a = []; a.pad(1000000000, 0);",
            "blob(1000000000)",
        ] {
            fails(script);
        }
    }

    /// What a script came to on its thread, and how much of the stack was in
    /// use at most.
    fn apart_from(limits: Limits, script: &str) -> (Result<String, String>, usize) {
        apart(limits, None, || {
            let engine = engine(limits);
            let ended = engine.eval::<Dynamic>(script);
            let said = ended.map(|value| value.to_string()).map_err(|error| {
                let inner = error.unwrap_inner();
                let at = Place::of(inner.position());
                let at = at.map_or("?".to_owned(), |at| format!("{}:{}", at.line, at.column));
                format!("{at} {}", said(inner, "without an end"))
            });
            (said, depth::PEAK.get())
        })
        .expect("it does not panic")
    }

    /// As deep as the parser lets it be.
    fn deepest(limits: Limits, around: impl Fn(usize) -> String) -> String {
        let mut found = None;
        for levels in 1..200 {
            let script = around(levels);
            if engine(limits).compile(&script).is_err() {
                break;
            }
            found = Some(script);
        }
        found.expect("some are read")
    }

    #[test]
    fn all_that_may_be_nested_fits_the_stack() {
        let call = "f(n - 1)";
        let calls: [(&str, &str); 8] = [
            ("(1+", ")"),
            ("[", "]"),
            ("#{a:", "}"),
            ("{", "}"),
            ("if true {", "}"),
            ("switch 1 { 1 => ", "}"),
            ("[1].map(|x| ", ")"),
            ("`${", "}`"),
        ];
        for limits in [Limits::MANIFEST, Limits::NODE, Limits::MAIN] {
            for (open, close) in calls {
                let script = deepest(limits, |levels| {
                    let depth = limits.call_depth - 2;
                    let (open, close) = (open.repeat(levels), close.repeat(levels));
                    format!(
                        "fn f(n) {{ if n <= 0 {{ return 0; }} {open}{call}{close}; n }}\nf({depth})"
                    )
                });
                let (ended, used) = apart_from(limits, &script);
                if open.contains("map") {
                    // Each of them is a call, too.
                    let said = ended.expect_err(open);
                    assert!(
                        said.starts_with("1:") && said.contains("call each other"),
                        "{said}"
                    );
                } else {
                    assert_eq!(
                        ended.as_deref(),
                        Ok(&*(limits.call_depth - 2).to_string()),
                        "{open}"
                    );
                }
                assert!(used < ROOM / 2, "{open} uses {used}");
            }
        }
    }

    #[test]
    fn there_is_no_way_out_of_the_language() {
        for script in [
            "eval(\"1\")",
            "import \"x\" as x;",
            "timestamp()",
            "sleep(3600)",
            "sleep(3600.0)",
            "let x = 1; undeclared",
            "#{a: 1}.b",
            "open_file(\"/etc/passwd\")",
        ] {
            fails(script);
        }
    }

    #[test]
    fn words_that_muster_needs_are_names() {
        let mut engine = engine(Limits::MANIFEST);
        engine.register_fn("package", |name: &str| format!("package {name}"));
        let said: String = engine
            .eval("let p = #{default: 1}; package(`x${p.default}`)")
            .expect("it runs");
        assert_eq!(said, "package x1");
    }
}
