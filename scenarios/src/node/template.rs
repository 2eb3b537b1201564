//! Templates: text with places, filled from plain data.

use std::collections::BTreeMap;

use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::Value;

use crate::bundle::BundlePath;

/// Instructions of one rendering.
const FUEL: u64 = 1_000_000;
/// Largest result.
const MAX_TEXT: usize = 4 * 1024 * 1024;

/// Fills a template of the bundle; templates may include each other.
///
/// # Errors
/// What is wrong, with file and line.
pub(super) fn render(
    files: &BTreeMap<BundlePath, Vec<u8>>,
    name: &str,
    values: &Value,
) -> Result<String, String> {
    let mut environment = Environment::new();
    // A name that is missing is a mistake, never an empty text in a
    // configuration file.
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_keep_trailing_newline(true);
    environment.set_fuel(Some(FUEL));
    for (path, data) in files {
        if let Ok(text) = std::str::from_utf8(data) {
            // One that does not parse is said when it is used.
            let _ = environment.add_template(path.as_str(), text);
        }
    }
    let known = files.keys().any(|path| path.as_str() == name);
    if !known {
        let near = crate::fault::nearest(name, files.keys().map(BundlePath::as_str));
        let hint = near.map_or(String::new(), |near| format!(", did you mean `{near}`?"));
        return Err(format!("the scenario has no file `{name}`{hint}"));
    }
    let text = files
        .iter()
        .find(|(path, _)| path.as_str() == name)
        .and_then(|(_, data)| std::str::from_utf8(data).ok())
        .ok_or_else(|| format!("`{name}` is not UTF-8 text"))?;
    let rendered = environment
        .render_named_str(name, text, values)
        .map_err(|error| said(name, &error))?;
    if rendered.len() > MAX_TEXT {
        return Err(format!(
            "{name}: the result is longer than {MAX_TEXT} bytes"
        ));
    }
    Ok(rendered)
}

/// What is wrong in a template, where.
fn said(name: &str, error: &minijinja::Error) -> String {
    let place = error
        .line()
        .map_or(String::new(), |line| format!(":{line}"));
    let detail = error
        .detail()
        .map_or(String::new(), |detail| format!(": {detail}"));
    format!("{name}{place}: {}{detail}", error.kind())
}

/// Why a template cannot be read, if so; whether it can be filled depends on
/// the values.
pub(crate) fn broken(path: &BundlePath, data: &[u8]) -> Option<String> {
    let Ok(text) = std::str::from_utf8(data) else {
        return Some(format!("`{path}` is not UTF-8 text"));
    };
    let error = Environment::new()
        .template_from_named_str(path.as_str(), text)
        .err()?;
    Some(said(path.as_str(), &error))
}
