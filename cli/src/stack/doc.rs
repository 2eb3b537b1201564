//! A TOML file of which everything has its place: what is wrong in it is
//! collected, so that a person sees all of it at once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;

use muster_protocol::text::printable;
use muster_protocol::vm::is_private_key;
use muster_scenarios::fault::{Fault, Place};
use serde_json::{Map, Number, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::vars::{Known, Room, Scalar, Unfilled, fill, one_of};

/// Most mistakes that are shown.
const MAX_FAULTS: usize = 50;
/// Most that are collected before they are sorted: the rest is counted.
const MAX_COLLECTED: usize = 1_000;
/// Longest source line that is shown, in characters.
const MAX_SHOWN: usize = 200;

/// A place in the text.
pub(super) type At = Range<usize>;

/// The text, and what is wrong in it.
#[derive(Debug)]
pub(super) struct Doc<'a> {
    file: &'a str,
    text: &'a str,
    faults: RefCell<Vec<(usize, Fault)>>,
    /// Mistakes that are not among them.
    unshown: Cell<usize>,
    /// Whether there is a secret in it: then none of its lines is shown.
    secret: bool,
    /// Variables, once they are known.
    pub(super) vars: Known,
    /// What they may make yet.
    pub(super) room: Room,
}

impl<'a> Doc<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self {
            file,
            text,
            faults: RefCell::default(),
            unshown: Cell::new(0),
            secret: is_private_key(text),
            vars: Known::new(),
            room: Room::new(),
        }
    }

    /// Something is wrong there.
    pub(super) fn wrong(&self, at: &At, message: impl Into<String>, hint: Option<String>) {
        if self.is_full() {
            self.unshown.set(self.unshown.get() + 1);
            return;
        }
        let start = (0..=at.start.min(self.text.len()))
            .rev()
            .find(|start| self.text.is_char_boundary(*start))
            .unwrap_or(0);
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let source = self.text[line_start..].lines().next().unwrap_or_default();
        let column = before[line_start..].chars().count();
        let end = at
            .end
            .clamp(start, line_start + source.len().max(start - line_start));
        let meant = self.text.get(start..end).unwrap_or_default();
        let fault = Fault {
            file: self.file.to_owned(),
            at: Some(Place {
                line: before.matches('\n').count() + 1,
                column: column + 1,
            }),
            width: meant.chars().count().max(1),
            source: (!self.secret).then(|| printable(&source.replace('\t', " "), MAX_SHOWN)),
            message: message.into(),
            hint,
        };
        self.faults.borrow_mut().push((start, fault));
    }

    /// An error of that place: behind its last semicolon is what to do.
    pub(super) fn refused(&self, at: &At, error: &dyn Display) {
        let text = error.to_string();
        match text.rsplit_once("; ") {
            Some((message, hint)) => self.wrong(at, message, Some(hint.to_owned())),
            None => self.wrong(at, text, None),
        }
    }

    /// Whether one more mistake is only counted.
    pub(super) fn is_full(&self) -> bool {
        self.faults.borrow().len() >= MAX_COLLECTED
    }

    /// Something is wrong, in no place of it.
    pub(super) fn wrong_anywhere(&self, message: impl Into<String>, hint: Option<String>) {
        if self.is_full() {
            self.unshown.set(self.unshown.get() + 1);
            return;
        }
        let fault = Fault {
            file: self.file.to_owned(),
            at: None,
            width: 1,
            source: None,
            message: message.into(),
            hint,
        };
        self.faults.borrow_mut().push((0, fault));
    }

    /// What is wrong, in the order of the file.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut all = self.faults.take();
        all.sort_by_key(|(start, _)| *start);
        let more = all.len().saturating_sub(MAX_FAULTS) + self.unshown.get();
        all.truncate(MAX_FAULTS);
        let mut faults: Vec<Fault> = all.into_iter().map(|(_, fault)| fault).collect();
        if more > 0 {
            faults.push(Fault {
                file: self.file.to_owned(),
                at: None,
                width: 1,
                source: None,
                message: format!("and {more} more"),
                hint: None,
            });
        }
        faults
    }

    /// A text with its variables; whether there were any.
    pub(super) fn fill(&self, text: &str, at: &At) -> Option<(Scalar, bool)> {
        match fill(text, &self.vars, &self.room) {
            Ok(filled) => Some(filled),
            Err(Unfilled::Said) => None,
            Err(Unfilled::Wrong(message, hint)) => {
                self.wrong(at, message, hint);
                None
            }
        }
    }

    /// A value that is no list and no table; whether variables were in it.
    fn scalar(&self, what: &str, value: &Spanned<DeValue<'_>>) -> Option<(Scalar, bool)> {
        let at = value.span();
        match value.get_ref() {
            DeValue::String(text) => self.fill(text, &at),
            DeValue::Integer(_) | DeValue::Boolean(_) => {
                self.plain(what, value).map(|scalar| (scalar, false))
            }
            other => {
                let is = other.type_str();
                self.wrong(&at, format!("{what} takes no {is}"), None);
                None
            }
        }
    }

    /// The same, with what is in texts as it is.
    pub(super) fn plain(&self, what: &str, value: &Spanned<DeValue<'_>>) -> Option<Scalar> {
        match value.get_ref() {
            DeValue::String(text) => Some(Scalar::Text(text.to_string())),
            DeValue::Boolean(flag) => Some(Scalar::Flag(*flag)),
            DeValue::Integer(number) => {
                let parsed = i64::from_str_radix(number.as_str(), number.radix());
                if parsed.is_err() {
                    let message = format!("{what} takes no number as large as this");
                    self.wrong(&value.span(), message, None);
                }
                parsed.ok().map(Scalar::Number)
            }
            other => {
                let is = other.type_str();
                let message = format!(
                    "{what} takes a text, a number, true or false; this is of the type {is}"
                );
                self.wrong(&value.span(), message, None);
                None
            }
        }
    }
}

/// Entries of a table, in the order of the file.
pub(super) fn entries<'t, 'd>(
    table: &'t DeTable<'d>,
) -> Vec<(&'t str, At, &'t Spanned<DeValue<'d>>)> {
    let mut all: Vec<_> = table
        .iter()
        .map(|(key, value)| (key.get_ref().as_ref(), key.span(), value))
        .collect();
    all.sort_by_key(|(_, at, _)| at.start);
    all
}

/// A table of which every key is asked for by its name.
pub(super) struct Block<'d> {
    doc: &'d Doc<'d>,
    /// As it is called in messages: `[vm.web]`.
    pub(super) title: String,
    /// Where it begins.
    pub(super) at: At,
    table: &'d DeTable<'d>,
    asked: BTreeSet<&'static str>,
}

impl<'d> Block<'d> {
    /// The table `value`; said, if it is none.
    pub(super) fn new(
        doc: &'d Doc<'d>,
        title: String,
        at: At,
        value: &'d Spanned<DeValue<'d>>,
    ) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            doc.wrong(&at, format!("{title} is a table"), None);
            return None;
        };
        Some(Self {
            doc,
            title,
            at,
            table,
            asked: BTreeSet::new(),
        })
    }

    pub(super) fn wrong(&self, at: &At, message: impl Into<String>, hint: Option<String>) {
        self.doc.wrong(at, message, hint);
    }

    /// An error of that place: behind its last semicolon is what to do.
    pub(super) fn refused(&self, at: &At, error: &dyn Display) {
        self.doc.refused(at, error);
    }

    /// The value of a key.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.asked.insert(key);
        let found = self.table.iter().find(|(name, _)| name.get_ref() == key);
        found.map(|(_, value)| value)
    }

    fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(name, _)| name.get_ref() == key)
    }

    /// The text of a key, and its place.
    pub(super) fn text(&mut self, key: &'static str) -> Option<(String, At)> {
        let value = self.value(key)?;
        let text = self.text_of(key, value)?;
        Some((text, value.span()))
    }

    fn text_of(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<String> {
        match self.doc.scalar(&format!("`{key}`"), value)? {
            (Scalar::Text(text), _) => Some(text),
            (scalar, true) => Some(scalar.to_string()),
            (scalar, false) => {
                let message = format!("`{key}` takes a text, in quotes; this is {}", scalar.kind());
                self.wrong(&value.span(), message, None);
                None
            }
        }
    }

    /// What a key's text is read as.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<T> {
        let (text, at) = self.text(key)?;
        self.parse(&text, &at)
    }

    pub(super) fn parse<T: FromStr<Err: Display>>(&self, text: &str, at: &At) -> Option<T> {
        match text.parse() {
            Ok(parsed) => Some(parsed),
            // What is wrong with it is not said: it would be shown with that.
            Err(_) if is_private_key(text) => {
                self.wrong(at, "a private key has no place here", None);
                None
            }
            Err(error) => {
                self.doc.refused(at, &error);
                None
            }
        }
    }

    /// A number.
    pub(super) fn number<T: TryFrom<i64>>(&mut self, key: &'static str) -> Option<T> {
        let value = self.value(key)?;
        let number = match self.doc.scalar(&format!("`{key}`"), value)? {
            (Scalar::Number(number), _) => Some(number),
            // A variable that is a text, from a file of variables perhaps.
            (Scalar::Text(text), true) => text.parse().ok(),
            _ => None,
        };
        let fits = number.and_then(|number| T::try_from(number).ok());
        if fits.is_none() {
            let message = match number {
                Some(number) => format!("`{key}` cannot be {number}"),
                None => format!("`{key}` takes a number"),
            };
            self.wrong(&value.span(), message, None);
        }
        fits
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let flag = match self.doc.scalar(&format!("`{key}`"), value)? {
            (Scalar::Flag(flag), _) => Some(flag),
            (Scalar::Text(text), true) => text.parse().ok(),
            _ => None,
        };
        if flag.is_none() {
            self.wrong(&value.span(), format!("`{key}` takes true or false"), None);
        }
        flag
    }

    /// A list of texts, each with its place.
    pub(super) fn texts(&mut self, key: &'static str) -> Vec<(String, At)> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(list) = value.get_ref().as_array() else {
            let hint = format!("write {key} = [\"…\"]");
            self.wrong(&value.span(), format!("`{key}` takes a list"), Some(hint));
            return Vec::new();
        };
        let texts = list.iter().filter_map(|value| {
            let text = self.text_of(key, value)?;
            Some((text, value.span()))
        });
        texts.collect()
    }

    /// A list of what texts are read as.
    pub(super) fn list<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Vec<T> {
        let texts = self.texts(key);
        let parsed = texts.iter().filter_map(|(text, at)| self.parse(text, at));
        parsed.collect()
    }

    /// A table of texts.
    pub(super) fn pairs<K, V>(&mut self, key: &'static str) -> Vec<(K, V, At)>
    where
        K: FromStr<Err: Display>,
        V: FromStr<Err: Display>,
    {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(table) = value.get_ref().as_table() else {
            let hint = format!("write {key} = {{ tier = \"front\" }}");
            self.wrong(&value.span(), format!("`{key}` takes a table"), Some(hint));
            return Vec::new();
        };
        let pairs = entries(table).into_iter().filter_map(|(name, at, value)| {
            let parsed_key = self.parse(name, &at);
            let scalar = self.doc.scalar(&format!("`{name}`"), value);
            let text = scalar?.0.to_string();
            Some((parsed_key?, self.parse(&text, &value.span())?, at))
        });
        pairs.collect()
    }

    /// A table of whatever values JSON has, too.
    pub(super) fn json(&mut self, key: &'static str) -> Option<(Map<String, Value>, At)> {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            let hint = format!("write {key} = {{ version = \"1.4.2\" }}");
            self.wrong(&value.span(), format!("`{key}` takes a table"), Some(hint));
            return None;
        };
        Some((self.json_table(table)?, value.span()))
    }

    fn json_table(&self, table: &DeTable<'_>) -> Option<Map<String, Value>> {
        let mut all = Map::new();
        let mut well = true;
        for (name, _, value) in entries(table) {
            match self.json_value(name, value) {
                Some(value) => drop(all.insert(name.to_owned(), value)),
                None => well = false,
            }
        }
        well.then_some(all)
    }

    fn json_value(&self, name: &str, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        match value.get_ref() {
            DeValue::Array(list) => {
                let all: Vec<_> = list
                    .iter()
                    .map(|value| self.json_value(name, value))
                    .collect();
                all.into_iter()
                    .collect::<Option<Vec<_>>>()
                    .map(Value::Array)
            }
            DeValue::Table(table) => self.json_table(table).map(Value::Object),
            DeValue::Float(float) => {
                let number = float.as_str().replace('_', "").parse().ok();
                let number = number.and_then(Number::from_f64);
                if number.is_none() {
                    let message = format!("`{}` takes no such number", printable(name, 60));
                    self.wrong(&value.span(), message, None);
                }
                number.map(Value::Number)
            }
            _ => {
                let what = format!("`{}`", printable(name, 60));
                Some(match self.doc.scalar(&what, value)?.0 {
                    Scalar::Text(text) => Value::String(text),
                    Scalar::Number(number) => number.into(),
                    Scalar::Flag(flag) => flag.into(),
                })
            }
        }
    }

    /// That it has the key, which it needs.
    pub(super) fn needs(&mut self, key: &'static str) {
        self.asked.insert(key);
        if !self.has(key) {
            self.wrong(&self.at, format!("{} has no `{key}`", self.title), None);
        }
    }

    /// Everything was asked for: what is left is no key that there is.
    pub(super) fn finish(self) {
        for (key, at, _) in entries(self.table) {
            if !self.asked.contains(key) {
                let message = format!("{} has no key `{}`", self.title, printable(key, 60));
                let hint = one_of(key, self.asked.iter().copied(), "it has no keys");
                self.doc.wrong(&at, message, Some(hint));
            }
        }
    }
}
