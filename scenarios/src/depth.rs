//! How deep a script nests: its values in each other, and its calls and
//! expressions on the stack of its thread.
//!
//! Values are compared, copied and dropped by functions that call themselves,
//! once for each level. Sizes of lists and maps are bounded, and count what is
//! in them; what a closure has captured counts nowhere. So a variable is
//! looked at where it is used.

use std::cell::Cell;
use std::hint::black_box;

use rhai::{Array, Dynamic, FnPtr, Map};

/// Deepest nesting of a value that a script works with.
pub(crate) const MAX_NESTED: usize = 256;
/// Parts of a value that are looked at each time, beside the first one of each
/// list and map. Of what is larger all is
/// looked at only sometimes, so rarely that it costs the same in the end, and
/// not in turn, so that nothing grows between two looks.
const LOOKED_AT: usize = 32;
/// Parts of a value that are looked at where all of it has to be known; of
/// what is larger it is not known that it is not too deep.
const ALL: usize = 1_000_000;

thread_local! {
    /// Where this thread's stack begins, and how much of it a script may use;
    /// 0 on a thread that is none of a script.
    static ROOM: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    static GIVEN_UP: Cell<bool> = const { Cell::new(false) };
    static DICE: Cell<u64> = const { Cell::new(SEED) };
}

/// The dice fall alike each time: a script that runs again, as `main` does
/// after each answer, ends where it ended before.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// About where the stack is now.
#[inline(never)]
fn here() -> usize {
    let mark = 0_u8;
    std::ptr::from_ref(black_box(&mark)).addr()
}

/// From here on this thread's script may use so many bytes of stack.
pub(crate) fn begin(room: usize) {
    ROOM.set((here(), room));
    DICE.set(SEED);
    GIVEN_UP.set(false);
}

/// A value was too deep: this thread's script ends, also when it catches that.
pub(crate) fn give_up() {
    GIVEN_UP.set(true);
}

/// Whether one was.
pub(crate) fn is_given_up() -> bool {
    GIVEN_UP.get()
}

/// How many bytes of stack are in use since [`begin`].
pub(crate) fn used() -> usize {
    match ROOM.get() {
        (0, _) => 0,
        (begun, _) => begun.saturating_sub(here()),
    }
}

/// Whether a script has used more of its stack than it may.
pub(crate) fn is_used_up() -> bool {
    let (_, room) = ROOM.get();
    #[cfg(test)]
    PEAK.set(PEAK.get().max(used()));
    room > 0 && used() > room
}

#[cfg(test)]
thread_local! {
    /// Most that was seen in use on this thread.
    pub(crate) static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// What ends a script that used up its stack.
#[derive(Clone, Debug)]
pub(crate) struct UsedUp;

/// What ends a script whose value is nested too deep.
#[derive(Clone, Debug)]
pub(crate) struct TooDeep;

/// Whether a value is nested too deep to be worked with, or holds itself.
pub(crate) fn is_too_deep(value: &Dynamic) -> bool {
    if value.is_int() || value.is_string() || value.is_unit() || value.is_bool() {
        return false;
    }
    let mut look = Look {
        left: LOOKED_AT,
        spent: LOOKED_AT,
    };
    look.is_too_deep(value, MAX_NESTED)
}

/// The same, and nothing of it is passed over; or it is larger than anybody
/// could look through.
pub(crate) fn is_too_deep_anywhere(value: &Dynamic) -> bool {
    let mut look = Look {
        left: ALL,
        spent: 0,
    };
    look.is_too_deep(value, MAX_NESTED) || look.left == 0
}

struct Look {
    left: usize,
    spent: usize,
}

impl Look {
    /// Whether one more part is looked at.
    fn goes_on(&mut self) -> bool {
        if self.left == 0 {
            if self.spent == 0 || coin() {
                return false;
            }
            self.left = self.spent;
            self.spent *= 2;
        }
        self.left -= 1;
        true
    }

    fn is_too_deep(&mut self, value: &Dynamic, levels: usize) -> bool {
        if value.is_int() || value.is_string() {
            return false;
        }
        if value.is_shared() {
            // One that is being written to is looked at by whoever does.
            let inner = value.read_lock::<Dynamic>();
            return inner.is_some_and(|inner| self.is_too_deep(&inner, levels));
        }
        if let Some(list) = value.read_lock::<Array>() {
            self.any(list.iter(), levels)
        } else if let Some(map) = value.read_lock::<Map>() {
            self.any(map.values(), levels)
        } else if let Some(closure) = value.read_lock::<FnPtr>() {
            self.any(closure.curry().iter(), levels)
        } else {
            false
        }
    }

    fn any<'a>(&mut self, parts: impl Iterator<Item = &'a Dynamic>, levels: usize) -> bool {
        for (number, part) in parts.enumerate() {
            let Some(levels) = levels.checked_sub(1) else {
                return true;
            };
            if number > 0 && !self.goes_on() {
                return false;
            }
            if self.is_too_deep(part, levels) {
                return true;
            }
        }
        false
    }
}

/// Heads or tails.
fn coin() -> bool {
    let mut dice = DICE.get();
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    DICE.set(dice);
    dice & (1 << 40) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> Dynamic {
        (0..levels).fold(Dynamic::UNIT, |inner, n| {
            if n % 2 == 0 {
                Dynamic::from_array(vec![inner])
            } else {
                Dynamic::from_map(Map::from([("in".into(), inner)]))
            }
        })
    }

    #[test]
    fn what_is_nested_too_deep_is_seen_also_behind_much_that_is_not() {
        assert!(!is_too_deep(&nested(MAX_NESTED)));
        assert!(is_too_deep(&nested(MAX_NESTED + 1)));
        let wide: Array = (0..10_000).map(Dynamic::from_int).collect();
        let mut hidden = wide.clone();
        hidden.push(nested(MAX_NESTED));
        let (wide, hidden) = (Dynamic::from_array(wide), Dynamic::from_array(hidden));
        assert!(!is_too_deep(&wide));
        // Each look finds it with a chance of about 32/10,000; most of them
        // cost little.
        let found = (0..100_000).filter(|_| is_too_deep(&hidden)).count();
        assert!((1..4_000).contains(&found), "{found}");
        // All closures in it are one, and 2^60 ways lead to its end.
        let shared = (0..60).fold(Dynamic::from_int(1), |inner, _| {
            let list = Dynamic::from_array(vec![inner]).into_shared();
            Dynamic::from_array(vec![list.clone(), list])
        });
        assert!(is_too_deep_anywhere(&shared));
    }

    #[test]
    fn a_thread_that_runs_no_script_uses_nothing() {
        std::thread::spawn(|| {
            assert_eq!(used(), 0);
            assert!(!is_used_up());
            begin(1 << 16);
            assert!(used() < 1 << 12);
            assert!(!is_used_up());
        })
        .join()
        .expect("it ends");
    }
}
