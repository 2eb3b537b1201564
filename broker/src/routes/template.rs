//! Templates of bodies: over data, bounded, and without an escape of their
//! own; the filter `json` writes a value as JSON.

use std::fmt;

use serde_json::Value;

/// Largest template, in bytes.
pub const MAX_TEMPLATE: u64 = 64 * 1024;
/// Work that a template may do at a time.
const FUEL: u64 = 200_000;
/// Largest body that a template may make, in bytes.
const MAX_BODY: usize = 1 << 20;
/// Name of the template.
const TEMPLATE: &str = "template";

/// A template that was read.
pub struct Template(Box<minijinja::Environment<'static>>);

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template")
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn compile(text: String) -> Result<Self, String> {
        if text.len() as u64 > MAX_TEMPLATE {
            return Err(format!("`template` has more than {MAX_TEMPLATE} bytes"));
        }
        let mut environment = minijinja::Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(minijinja::UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_filter("json", |value: minijinja::Value| {
            serde_json::to_string(&value).map_err(|error| {
                minijinja::Error::new(minijinja::ErrorKind::BadSerialization, error.to_string())
            })
        });
        environment
            .add_template_owned(TEMPLATE, text)
            .map_err(|e| format!("`template`: {e}"))?;
        Ok(Self(Box::new(environment)))
    }

    /// What it makes of that.
    ///
    /// # Errors
    /// Why there is nothing, for people.
    pub fn fill(&self, data: &Value) -> Result<Vec<u8>, String> {
        let template = self.0.get_template(TEMPLATE).map_err(|e| e.to_string())?;
        let body = template
            .render(data)
            .map_err(|e| format!("the template cannot be filled in: {e}"))?;
        if body.len() > MAX_BODY {
            return Err("what the template makes is too large".to_owned());
        }
        Ok(body.into_bytes())
    }
}
