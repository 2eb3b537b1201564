//! A line that comes twice does something once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_protocol::api::Say;
use muster_protocol::names::NetworkName;
use muster_protocol::units::{Timestamp, elapsed};
use tokio::sync::OnceCell;

use crate::http::ApiError;

/// How long a line is known: longer than it counts.
const KNOWN: Duration = Duration::from_secs(300);
/// Most lines that are known; the oldest go.
const MOST: usize = 20_000;

/// Which network, and which line of it.
type Key = (NetworkName, String);
type Cell = Arc<OnceCell<Vec<Say>>>;

#[derive(Debug, Default)]
struct Table {
    cells: HashMap<Key, Cell>,
    order: VecDeque<(Timestamp, Key)>,
}

/// The last lines, and what was answered. In memory: a line is too old to
/// count soon after it was written, and a run that was begun is known by its
/// id for ever.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<Table>);

impl Heard {
    fn cell(&self, key: &Key, now: Timestamp) -> Cell {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((at, old)) = table.order.front().cloned() {
            if table.order.len() < MOST && elapsed(at, now) < KNOWN {
                break;
            }
            table.order.pop_front();
            table.cells.remove(&old);
        }
        if let Some(cell) = table.cells.get(key) {
            return Arc::clone(cell);
        }
        let cell = Cell::default();
        table.cells.insert(key.clone(), Arc::clone(&cell));
        table.order.push_back((now, key.clone()));
        cell
    }

    /// What came of a line; who asks again waits for the first one, and is
    /// told the same.
    pub(super) async fn once<F>(
        &self,
        key: Key,
        now: Timestamp,
        work: impl FnOnce() -> F,
    ) -> Result<Vec<Say>, ApiError>
    where
        F: Future<Output = Result<Vec<Say>, ApiError>>,
    {
        let cell = self.cell(&key, now);
        let says = cell.get_or_try_init(work).await?;
        Ok(says.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_answered_once() {
        let heard = Heard::default();
        let key = || ("ops".parse().unwrap(), "m1".to_owned());
        let now = Timestamp::now();
        let said = |text: &str| vec![super::super::say::plain(text.to_owned())];
        let first = heard
            .once(key(), now, || async { Ok(said("one")) })
            .await
            .unwrap();
        let again = heard
            .once(key(), now, || async { Ok(said("two")) })
            .await
            .unwrap();
        assert_eq!(first, again);
        let later = muster_protocol::units::after(now, KNOWN);
        let late = heard
            .once(key(), later, || async { Ok(said("two")) })
            .await
            .unwrap();
        assert_eq!(late, said("two"));
    }
}
