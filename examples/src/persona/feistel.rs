//! Natural keys without collisions: a Feistel permutation, walked until it stays within the range.

use super::random::{Stream, draw};

const ROUNDS: u64 = 4;

/// A permutation of the numbers below a bound, chosen by a seed.
///
/// ```
/// use pim_lab::persona::Permutation;
///
/// let numbers = Permutation::new(42, 100);
/// let mut all: Vec<u64> = (0..100).map(|n| numbers.of(n)).collect();
/// all.sort_unstable();
/// assert!(all.into_iter().eq(0..100));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    keys: [u64; ROUNDS as usize],
    bound: u64,
    half_bits: u32,
}

impl Permutation {
    /// A permutation of the numbers below `bound`; a bound of 0 counts as 1.
    #[must_use]
    pub fn new(seed: u64, bound: u64) -> Self {
        let bound = bound.max(1);
        let bits = u64::BITS - (bound - 1).leading_zeros();
        let mut keys = [0; ROUNDS as usize];
        for (round, key) in keys.iter_mut().enumerate() {
            *key = draw(seed, Stream::Permutation, round as u64, 0);
        }
        Self { keys, bound, half_bits: bits.div_ceil(2).max(1) }
    }

    /// Where a number goes; numbers from the bound on are folded into the range first.
    #[must_use]
    pub fn of(&self, number: u64) -> u64 {
        let mut walked = number % self.bound;
        // The walk leaves the range for at most three numbers in four on average, and a cycle always comes back.
        loop {
            walked = self.once(walked);
            if walked < self.bound {
                return walked;
            }
        }
    }

    fn once(&self, number: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for key in self.keys {
            let mixed = draw(key, Stream::Permutation, right, 1) & mask;
            (left, right) = (right, left ^ mixed);
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::Permutation;

    #[test]
    fn it_is_a_permutation_for_any_bound() {
        for bound in [1, 2, 3, 7, 64, 1000, 4099] {
            let permutation = Permutation::new(9, bound);
            let mut all: Vec<u64> = (0..bound).map(|n| permutation.of(n)).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..bound), "{bound}");
        }
    }

    #[test]
    fn another_seed_is_another_permutation() {
        let (a, b) = (Permutation::new(1, 100_000_000), Permutation::new(2, 100_000_000));
        assert!((0..100).any(|n| a.of(n) != b.of(n)));
    }
}
