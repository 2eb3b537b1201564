//! Chance that can be had again: tests that draw say their seed when they
//! fail, and take it from `MUSTER_TEST_SEED`.

/// Numbers that look random, the same for the same seed (splitmix64).
#[derive(Debug)]
pub(super) struct Draw(pub(super) u64);

impl Draw {
    /// From 0 to below the bound.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bound = u64::try_from(bound.max(1)).expect("a bound");
        usize::try_from((z ^ (z >> 31)) % bound).expect("below it")
    }

    /// Another order.
    pub(super) fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.below(i + 1));
        }
    }
}

/// The seed that somebody gave, else these.
pub(super) fn seeds(usual: &[u64]) -> Vec<u64> {
    match std::env::var("MUSTER_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("MUSTER_TEST_SEED is a number")],
        Err(_) => usual.to_vec(),
    }
}
