//! Aligned columns that fit the terminal.

use super::{Paint, cut, pad, width};

/// Between two columns.
const GAP: usize = 2;

/// A table of text; the cells hold no escape sequences.
#[derive(Clone, Debug)]
pub struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One cell.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    tone: Tone,
}

/// How a cell is painted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tone {
    /// As it is.
    Plain,
    /// Well.
    Good,
    /// To be looked at.
    Odd,
    /// Not well.
    Bad,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: muster_protocol::text::printable_line(&text.into()),
            tone: Tone::Plain,
        }
    }
}

impl Cell {
    /// A painted cell.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            tone,
            ..Self::from(text)
        }
    }
}

impl Table {
    /// With these heads.
    #[must_use]
    pub fn new(heads: &[&'static str]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// As text of at most `columns` columns: where it does not fit, the widest
    /// columns are cut.
    #[must_use]
    pub fn render(&self, paint: Paint, columns: usize) -> String {
        let mut widths: Vec<usize> = self.heads.iter().map(|h| width(h)).collect();
        for row in &self.rows {
            for (w, cell) in widths.iter_mut().zip(row) {
                *w = (*w).max(width(&cell.text));
            }
        }
        let gaps = GAP * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > columns {
            let Some(widest) = widths.iter_mut().max().filter(|w| **w > 8) else {
                break;
            };
            *widest -= 1;
        }
        let mut out = String::new();
        let mut push = |cells: &[(String, Tone)]| {
            let mut line = String::new();
            for (i, (text, tone)) in cells.iter().enumerate() {
                let Some(columns) = widths.get(i) else { break };
                let text = cut(text, *columns);
                let last = i + 1 == cells.len();
                let text = if last {
                    text
                } else {
                    pad(&text, *columns + GAP)
                };
                let bare = text.trim_end();
                let painted = match tone {
                    Tone::Plain => bare.to_owned(),
                    Tone::Good => paint.good(bare),
                    Tone::Odd => paint.odd(bare),
                    Tone::Bad => paint.bad(bare),
                };
                line.push_str(&painted);
                line.push_str(&text[bare.len()..]);
            }
            out.push_str(line.trim_end());
            out.push('\n');
        };
        let heads: Vec<_> = self
            .heads
            .iter()
            .map(|h| ((*h).to_owned(), Tone::Plain))
            .collect();
        push(&heads);
        for row in &self.rows {
            let cells: Vec<_> = row.iter().map(|c| (c.text.clone(), c.tone)).collect();
            push(&cells);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "ROLES", "STATE"]);
        table.row([
            "web-01".into(),
            "balancer,canary,web".into(),
            Cell::toned("up", Tone::Good),
        ]);
        table.row(["db-1\x1b".into(), "".into(), Cell::toned("down", Tone::Bad)]);
        table
    }

    #[test]
    fn columns_stand_under_each_other() {
        insta::assert_snapshot!(table().render(Paint::plain(), 200), @r"
        NAME      ROLES                STATE
        web-01    balancer,canary,web  up
        db-1\x1b                       down
        ");
        insta::assert_snapshot!(table().render(Paint::plain(), 30), @r"
        NAME      ROLES          STATE
        web-01    balancer,can…  up
        db-1\x1b                 down
        ");
    }

    #[test]
    fn paint_does_not_move_columns() {
        let painted = table().render(Paint::colours(), 200);
        assert!(painted.contains("\x1b[32mup\x1b[0m"), "{painted:?}");
    }
}
