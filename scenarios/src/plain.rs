//! Plain data on its way out of a script and into one. What leaves a script
//! goes into journals, over the wire and through JSON's parser, so it is
//! bounded here, once: in depth, in size, and to what JSON can say.

use rhai::{Array, Dynamic, Map};
use serde_json::{Number, Value};

use crate::secret::{SECRET, reference};

/// Deepest nesting of lists and maps that leaves a script. A parser of JSON
/// gives up at 128; what it is wrapped into on the way needs a few.
pub(crate) const MAX_DEPTH: usize = 32;
/// Most bytes of one value that leaves a script, as JSON, about.
pub(crate) const MAX_BYTES: usize = 256 * 1024;

/// A secret parameter in `main`: it can be handed on to a node, and that is
/// all.
#[derive(Clone, Debug)]
pub(crate) struct Secret(pub(crate) String);

/// What is wrong with a value, as the end of a sentence that begins with what
/// it was meant for.
pub(crate) fn to_json(value: &Dynamic) -> Result<Value, String> {
    let mut left = MAX_BYTES;
    out(value, MAX_DEPTH, &mut left)
}

/// The same for a map.
pub(crate) fn map_to_json(map: &Map) -> Result<serde_json::Map<String, Value>, String> {
    let mut left = MAX_BYTES;
    out_map(map, MAX_DEPTH, &mut left)
}

fn take(left: &mut usize, bytes: usize) -> Result<(), String> {
    *left = left
        .checked_sub(bytes)
        .ok_or_else(|| format!("it is larger than {MAX_BYTES} bytes"))?;
    Ok(())
}

fn out(value: &Dynamic, depth: usize, left: &mut usize) -> Result<Value, String> {
    take(left, 4)?;
    let deeper = || {
        depth
            .checked_sub(1)
            .ok_or_else(|| format!("it is nested deeper than {MAX_DEPTH}"))
    };
    if value.is_unit() {
        return Ok(Value::Null);
    }
    if let Ok(flag) = value.as_bool() {
        return Ok(flag.into());
    }
    if let Ok(number) = value.as_int() {
        return Ok(number.into());
    }
    if let Ok(number) = value.as_float() {
        return Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| format!("`{number}` is no number that can be written down"));
    }
    if let Ok(c) = value.as_char() {
        return Ok(c.to_string().into());
    }
    if value.is_string() {
        let text = value.clone().into_string().unwrap_or_default();
        take(left, text.len())?;
        return Ok(text.into());
    }
    if let Some(list) = value.read_lock::<Array>() {
        let depth = deeper()?;
        let items = list.iter().map(|item| out(item, depth, left));
        return Ok(Value::Array(items.collect::<Result<_, _>>()?));
    }
    if let Some(map) = value.read_lock::<Map>() {
        return out_map(&map, deeper()?, left).map(Value::Object);
    }
    if let Some(secret) = value.read_lock::<Secret>() {
        return Ok(reference(&secret.0));
    }
    let kind = value.type_name().rsplit("::").next().unwrap_or_default();
    Err(format!(
        "it holds a value of the kind {}, which is no plain data",
        muster_protocol::text::printable(kind, 40)
    ))
}

fn out_map(
    map: &Map,
    depth: usize,
    left: &mut usize,
) -> Result<serde_json::Map<String, Value>, String> {
    map.iter()
        .map(|(key, value)| {
            take(left, key.len() + 3)?;
            if key == SECRET {
                return Err(format!("`{SECRET}` is no name in a map"));
            }
            Ok((key.to_string(), out(value, depth, left)?))
        })
        .collect()
}

/// A script's value from plain data. A whole number too large for the
/// language becomes a fraction.
pub(crate) fn from_json(value: &Value) -> Dynamic {
    match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(flag) => (*flag).into(),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(int), _) => int.into(),
            (None, Some(float)) => float.into(),
            (None, None) => Dynamic::UNIT,
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => Dynamic::from_array(items.iter().map(from_json).collect::<Array>()),
        Value::Object(map) => Dynamic::from_map(map_from_json(map)),
    }
}

/// The same for a map.
pub(crate) fn map_from_json(map: &serde_json::Map<String, Value>) -> Map {
    map.iter()
        .map(|(key, value)| (key.as_str().into(), from_json(value)))
        .collect()
}

/// The kind of an event of a scenario; it stands behind `scenario.`.
pub(crate) fn event_kind(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if text.is_empty() || text.len() > 60 || !text.chars().all(plain) {
        return Err(format!(
            "emit: `{}` is no kind of event: 1 to 60 small letters, digits, `.`, `_` and `-`",
            muster_protocol::text::printable(text, 60)
        ));
    }
    Ok(text.to_owned())
}
