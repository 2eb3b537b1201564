//! What the kernel says that it holds: `nft`'s listing of our tables, taken
//! apart by object, so that two of them can be compared, and the difference
//! told in a few lines.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::text::printable;

use crate::netlink::Family;

/// Most lines of a difference.
const MOST_LINES: usize = 8;
/// Longest line of it.
const LINE: usize = 160;

/// One object of a table: what it says of itself in order, and its elements
/// without.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Object {
    lines: Vec<String>,
    elements: BTreeSet<String>,
}

/// Both tables, by family, kind and name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Listing(BTreeMap<String, Object>);

impl Listing {
    /// Reads the listing of one table, after what was read before.
    pub(crate) fn read(&mut self, family: Family, text: &str) {
        let mut name = None;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let depth = line.bytes().take_while(|b| *b == b'\t').count();
            let said = line.trim();
            match (depth, &name) {
                (_, _) if said.is_empty() => {}
                (0, _) if said.starts_with("table ") => {
                    // The table itself is an object, with its flags.
                    self.0.entry(key(family, "table")).or_default();
                }
                (0, _) => name = None,
                (1, None) if said.ends_with('{') => {
                    let object = key(family, said.trim_end_matches('{').trim());
                    self.0.entry(object.clone()).or_default();
                    name = Some(object);
                }
                (1, Some(_)) if said == "}" => name = None,
                (_, None) => self
                    .0
                    .entry(key(family, "table"))
                    .or_default()
                    .lines
                    .push(said.to_owned()),
                (_, Some(object)) => {
                    let object = self.0.entry(object.clone()).or_default();
                    let Some(first) = said.strip_prefix("elements = {") else {
                        object.lines.push(said.to_owned());
                        continue;
                    };
                    let mut part = first;
                    loop {
                        let (inner, is_last) = match part.strip_suffix('}') {
                            Some(inner) => (inner, true),
                            None => (part, false),
                        };
                        let all = inner.split(',').map(str::trim);
                        let all = all.filter(|element| !element.is_empty());
                        object.elements.extend(all.map(str::to_owned));
                        match lines.next() {
                            Some(line) if !is_last => part = line.trim(),
                            Some(_) | None => break,
                        }
                    }
                    // The line after the elements ends the object.
                    name = None;
                }
            }
        }
    }

    /// Reads listings of parts of several tables.
    pub(crate) fn read_tables(&mut self, text: &str) {
        let mut part = String::new();
        let mut family = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("table ") {
                let word = rest.split(' ').next();
                family = [Family::Bridge, Family::Inet]
                    .into_iter()
                    .find(|family| Some(family.as_str()) == word);
            }
            part.push_str(line);
            part.push('\n');
            if line == "}" {
                if let Some(family) = family.take() {
                    self.read(family, &part);
                }
                part.clear();
            }
        }
    }

    /// An object went by our own doing.
    pub(crate) fn remove(&mut self, family: Family, word: &str, name: &str) {
        self.0.remove(&key(family, &format!("{word} {name}")));
    }

    /// An element came, or went, by our own doing.
    pub(crate) fn element(&mut self, family: Family, set: &str, element: &str, comes: bool) {
        let object = self
            .0
            .entry(key(family, &format!("set {set}")))
            .or_default();
        match comes {
            true => object.elements.insert(element.to_owned()),
            false => object.elements.remove(element),
        };
    }

    /// The same text in every process, as a number.
    pub(crate) fn digest(&self) -> u128 {
        let mut sum: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        let mut take = |text: &str| {
            for byte in text.bytes().chain([0]) {
                sum = (sum ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
            }
        };
        for (name, object) in &self.0 {
            take(name);
            object.lines.iter().for_each(|line| take(line));
            take("\u{1}");
            object.elements.iter().for_each(|element| take(element));
        }
        sum
    }

    /// What somebody else made of it: `-` is missing now, `+` is new.
    pub(crate) fn difference(&self, found: &Self) -> Vec<String> {
        let mut all = Vec::new();
        let names: BTreeSet<&String> = self.0.keys().chain(found.0.keys()).collect();
        // What is in a table goes with it.
        let families = [Family::Bridge, Family::Inet].map(|family| key(family, ""));
        let gone = |name: &&&String| {
            let of = families.iter().find(|of| name.starts_with(of.as_str()));
            of.is_some_and(|of| !found.0.contains_key(&format!("{of}table")))
        };
        let tables = names
            .iter()
            .filter(gone)
            .filter(|name| name.ends_with(" table"));
        all.extend(tables.map(|name| format!("- {name}")));
        for name in names.iter().filter(|name| !gone(name)).copied() {
            match (self.0.get(name), found.0.get(name)) {
                (Some(ours), Some(theirs)) => {
                    lines(&mut all, '-', name, &ours.lines, &theirs.lines);
                    lines(&mut all, '+', name, &theirs.lines, &ours.lines);
                    let gone = ours.elements.difference(&theirs.elements);
                    all.extend(gone.map(|element| format!("- {name}: {element}")));
                    let new = theirs.elements.difference(&ours.elements);
                    all.extend(new.map(|element| format!("+ {name}: {element}")));
                    let moved = ours.lines != theirs.lines && same(&ours.lines, &theirs.lines);
                    if moved {
                        all.push(format!("+ {name}: its rules in another order"));
                    }
                }
                (Some(_), None) => all.push(format!("- {name}")),
                (None, Some(_)) => all.push(format!("+ {name}")),
                (None, None) => {}
            }
        }
        let more = all.len().saturating_sub(MOST_LINES);
        all.truncate(MOST_LINES);
        for line in &mut all {
            *line = printable(line, LINE);
        }
        if more > 0 {
            all.push(format!("and {more} more"));
        }
        all
    }
}

fn key(family: Family, name: &str) -> String {
    format!("{} {name}", family.as_str())
}

fn counts(lines: &[String]) -> BTreeMap<&str, usize> {
    let mut all = BTreeMap::new();
    for line in lines {
        *all.entry(line.as_str()).or_default() += 1;
    }
    all
}

fn same(one: &[String], other: &[String]) -> bool {
    counts(one) == counts(other)
}

/// The lines of one that the other does not have, or not as often.
fn lines(all: &mut Vec<String>, sign: char, name: &str, has: &[String], lacks: &[String]) {
    let mut left = counts(lacks);
    for line in has {
        match left.get_mut(line.as_str()) {
            Some(count) if *count > 0 => *count -= 1,
            _ => all.push(format!("{sign} {name}: {line}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "table inet muster_groups {
	counter web_1 {
		comment \"web 1\"
	}

	set m4 {
		type ipv4_addr
		elements = { 10.0.0.1, 10.0.0.2,
			     10.0.0.3 }
	}

	map v {
		type mark : verdict
		elements = { 0x00000001 : jump one, 0x00000002 : jump two }
	}

	chain web {
		type filter hook forward priority filter; policy accept;
		tcp dport { 80, 443 } counter name \"web_1\" accept
		drop
	}

	chain empty {
	}
}
";

    fn read(text: &str) -> Listing {
        let mut listing = Listing::default();
        listing.read(Family::Inet, text);
        listing
    }

    #[test]
    fn a_listing_is_taken_apart() {
        let listing = read(TEXT);
        let names: Vec<&str> = listing.0.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "inet chain empty",
                "inet chain web",
                "inet counter web_1",
                "inet map v",
                "inet set m4",
                "inet table"
            ]
        );
        assert_eq!(listing.0["inet set m4"].elements.len(), 3);
        assert_eq!(listing.0["inet map v"].elements.len(), 2);
        assert_eq!(listing.0["inet chain web"].lines.len(), 3);
        // The order of elements is nobody's; that of rules is.
        let other = TEXT.replace(
            "10.0.0.1, 10.0.0.2,\n\t\t\t     10.0.0.3",
            "10.0.0.3, 10.0.0.1, 10.0.0.2",
        );
        assert_eq!(read(&other), listing);
        assert_eq!(read(&other).digest(), listing.digest());
    }

    #[test]
    fn a_difference_is_told_in_lines() {
        let listing = read(TEXT);
        let said = |text: &str| {
            let found = read(text);
            assert_ne!(found.digest(), listing.digest());
            listing.difference(&found).join("\n")
        };
        assert!(listing.difference(&listing).is_empty());
        insta::assert_snapshot!(said(""), @"- inet table");
        let other = TEXT
            .replace("{ 80, 443 }", "22")
            .replace("10.0.0.2", "10.9.9.9");
        insta::assert_snapshot!(said(&other), @r#"
        - inet chain web: tcp dport { 80, 443 } counter name "web_1" accept
        + inet chain web: tcp dport 22 counter name "web_1" accept
        - inet set m4: 10.0.0.2
        + inet set m4: 10.9.9.9
        "#);
        insta::assert_snapshot!(said(&TEXT.replace("\tchain empty {\n\t}\n", "")), @"- inet chain empty");
        let turned = TEXT.replace(
            "tcp dport { 80, 443 } counter name \"web_1\" accept\n\t\tdrop",
            "drop\n\t\ttcp dport { 80, 443 } counter name \"web_1\" accept",
        );
        insta::assert_snapshot!(said(&turned), @"+ inet chain web: its rules in another order");
        let many = TEXT.replace("drop", &"accept\n\t\t".repeat(20));
        insta::assert_snapshot!(said(&many), @"
        - inet chain web: drop
        + inet chain web: accept
        + inet chain web: accept
        + inet chain web: accept
        + inet chain web: accept
        + inet chain web: accept
        + inet chain web: accept
        + inet chain web: accept
        and 13 more
        ");
    }

    #[test]
    fn our_own_elements_are_expected() {
        let mut listing = read(TEXT);
        listing.element(Family::Inet, "m4", "10.0.0.9", true);
        listing.element(Family::Inet, "m4", "10.0.0.1", false);
        assert_eq!(listing, read(&TEXT.replace("10.0.0.1,", "10.0.0.9,")));
    }
}
