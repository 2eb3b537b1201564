//! Pages of lists.

use data_encoding::BASE64URL_NOPAD;
use muster_protocol::api::Page;
use muster_protocol::problem::Kind;
use serde::Deserialize;

use super::ApiError;

/// Items on a page when nobody says.
const DEFAULT_LIMIT: u32 = 100;
/// Most items on a page.
const MAX_LIMIT: u32 = 1_000;

/// Where a page begins, and how long it is.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Paging {
    /// `next` of the page before.
    #[serde(default)]
    pub cursor: Option<String>,
    /// Items on a page, 1 to 1000; 100 when absent.
    #[serde(default)]
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
}

impl Paging {
    /// Items on the page.
    ///
    /// # Errors
    /// An `invalid-request` problem.
    pub fn limit(&self) -> Result<usize, ApiError> {
        self.up_to(MAX_LIMIT)
    }

    /// The same where a page may be longer, since its items are short.
    ///
    /// # Errors
    /// An `invalid-request` problem.
    pub fn up_to(&self, most: u32) -> Result<usize, ApiError> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=most).contains(&limit) {
            return Err(ApiError::new(
                Kind::InvalidRequest,
                format!("`limit` must be 1 to {most}"),
            ));
        }
        Ok(limit as usize)
    }

    /// The key after which the page begins; empty for the first one.
    ///
    /// # Errors
    /// An `invalid-request` problem.
    pub fn after(&self) -> Result<String, ApiError> {
        let Some(cursor) = &self.cursor else {
            return Ok(String::new());
        };
        BASE64URL_NOPAD
            .decode(cursor.as_bytes())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| {
                ApiError::new(Kind::InvalidRequest, "this `cursor` is none")
                    .hint("pass `next` of the page before, unchanged")
            })
    }
}

/// The page of a list that is sorted by `key`, which no two items share.
///
/// # Errors
/// An `invalid-request` problem.
pub fn page<T>(
    items: impl IntoIterator<Item = T>,
    key: impl Fn(&T) -> String,
    paging: &Paging,
) -> Result<Page<T>, ApiError> {
    page_of(items, key, paging, paging.limit()?)
}

/// The same with so many items.
///
/// # Errors
/// An `invalid-request` problem.
pub fn page_of<T>(
    items: impl IntoIterator<Item = T>,
    key: impl Fn(&T) -> String,
    paging: &Paging,
    limit: usize,
) -> Result<Page<T>, ApiError> {
    let after = paging.after()?;
    let mut rest = items
        .into_iter()
        .skip_while(|item| !after.is_empty() && key(item) <= after)
        .peekable();
    let items: Vec<T> = rest.by_ref().take(limit).collect();
    let more = rest.peek().is_some();
    let next = items
        .last()
        .filter(|_| more)
        .map(|last| BASE64URL_NOPAD.encode(key(last).as_bytes()));
    Ok(Page { items, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_every_item_once() {
        let all: Vec<String> = (0..25).map(|n| format!("web-{n:02}")).collect();
        let mut seen = Vec::new();
        let mut paging = Paging {
            cursor: None,
            limit: Some(10),
        };
        loop {
            let got = page(all.clone(), Clone::clone, &paging).unwrap();
            assert!(got.items.len() <= 10);
            seen.extend(got.items);
            match got.next {
                Some(next) => paging.cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn odd_pages_are_refused() {
        for (cursor, limit) in [
            (None, Some(0)),
            (None, Some(1001)),
            (Some("!"), None),
            (Some("_w"), None),
        ] {
            let paging = Paging {
                cursor: cursor.map(str::to_owned),
                limit,
            };
            assert!(page(Vec::<String>::new(), Clone::clone, &paging).is_err());
        }
    }
}
