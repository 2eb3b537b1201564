//! Functions on texts that the language has, and that could grow far beyond
//! its limits before anybody looks: the engine measures what a function gave
//! back, which is too late. These look first.

use rhai::{Array, Engine, EvalAltResult, ImmutableString, Position};

use crate::engine::Limits;

type Said<T> = Result<T, Box<EvalAltResult>>;

fn too_large(what: &str) -> Box<EvalAltResult> {
    EvalAltResult::ErrorDataTooLarge(what.to_owned(), Position::NONE).into()
}

/// Gives the engine these functions in place of its own.
pub(crate) fn register(engine: &mut Engine, limits: Limits) {
    let replaced = move |text: &mut ImmutableString, old: &str, new: &str| -> Said<()> {
        let found = text.matches(old).count();
        let grown = found.saturating_mul(new.len()).saturating_add(text.len());
        if grown.saturating_sub(found.saturating_mul(old.len())) > limits.string {
            return Err(too_large("Length of string"));
        }
        *text = text.replace(old, new).into();
        Ok(())
    };
    engine.register_fn("replace", replaced).register_fn(
        "replace",
        move |text: &mut ImmutableString, old: char, new: &str| {
            replaced(text, old.encode_utf8(&mut [0; 4]), new)
        },
    );

    let most = limits.array;
    let all = move |parts: &mut dyn Iterator<Item = &str>| -> Said<Array> {
        let parts: Array = parts.take(most + 1).map(Into::into).collect();
        if parts.len() > most {
            return Err(too_large("Size of array"));
        }
        Ok(parts)
    };
    // As many as are asked for, never more than the limit and one, which is
    // the mistake.
    let some = move |segments: i64| {
        usize::try_from(segments)
            .unwrap_or(1)
            .clamp(1, most.saturating_add(1))
    };
    engine
        .register_fn("split", move |text: &mut ImmutableString| {
            all(&mut text.split_whitespace())
        })
        .register_fn("split", move |text: &mut ImmutableString, by: &str| {
            all(&mut text.split(by))
        })
        .register_fn("split", move |text: &mut ImmutableString, by: char| {
            all(&mut text.split(by))
        })
        .register_fn(
            "split",
            move |text: &mut ImmutableString, by: &str, segments: i64| {
                all(&mut text.splitn(some(segments), by))
            },
        )
        .register_fn(
            "split",
            move |text: &mut ImmutableString, by: char, segments: i64| {
                all(&mut text.splitn(some(segments), by))
            },
        )
        .register_fn("split_rev", move |text: &mut ImmutableString, by: &str| {
            all(&mut text.rsplit(by))
        })
        .register_fn("split_rev", move |text: &mut ImmutableString, by: char| {
            all(&mut text.rsplit(by))
        })
        .register_fn(
            "split_rev",
            move |text: &mut ImmutableString, by: &str, segments: i64| {
                all(&mut text.rsplitn(some(segments), by))
            },
        )
        .register_fn(
            "split_rev",
            move |text: &mut ImmutableString, by: char, segments: i64| {
                all(&mut text.rsplitn(some(segments), by))
            },
        );
}
