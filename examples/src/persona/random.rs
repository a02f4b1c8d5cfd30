//! Randomness without state: every value is a function of seed, stream, entity and field, so nobody's order of work matters.
//!
//! The idea is that of counter-based generators (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011);
//! the mixing function is the finaliser of `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014; constants of Stafford's variant 13).

/// What a value is drawn for. A new purpose takes a new stream, so that older values stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Facilities and providers.
    Reference = 1,
    /// Particulars of patients.
    Patient = 2,
    /// How care goes.
    Care = 3,
    /// When sessions begin.
    Arrival = 4,
    /// What happens in a session.
    Session = 5,
    /// Round keys of permutations.
    Permutation = 6,
    /// How the visits and claims of sessions go.
    Visit = 7,
    /// What patients have behind them.
    Past = 8,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 64 bits for a field of an entity.
#[must_use]
pub const fn draw(seed: u64, stream: Stream, entity: u64, field: u64) -> u64 {
    let mut state = mix(seed.wrapping_add(GOLDEN));
    state = mix(state ^ (stream as u64).wrapping_mul(GOLDEN));
    state = mix(state.wrapping_add(GOLDEN) ^ entity);
    mix(state.wrapping_add(GOLDEN) ^ field.wrapping_mul(GOLDEN))
}

/// A value from 0 to `bound` - 1; 0 when the bound is 0.
#[must_use]
pub const fn below(bits: u64, bound: u64) -> u64 {
    // Multiply-shift: the bias is below 2^-32 for the bounds of this lab.
    ((bits as u128 * bound as u128) >> 64) as u64
}

/// A value in (0, 1], from the upper 53 bits.
#[must_use]
pub fn unit(bits: u64) -> f64 {
    ((bits >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// A value of the exponential distribution with this mean.
#[must_use]
pub fn exponential(bits: u64, mean: f64) -> f64 {
    -unit(bits).ln() * mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_matters() {
        let one = draw(1, Stream::Patient, 1, 1);
        for other in [
            draw(2, Stream::Patient, 1, 1),
            draw(1, Stream::Care, 1, 1),
            draw(1, Stream::Patient, 2, 1),
            draw(1, Stream::Patient, 1, 2),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(one, draw(1, Stream::Patient, 1, 1));
    }

    #[test]
    fn values_are_spread_evenly() {
        let mut counts = [0_u32; 10];
        for entity in 0..10_000 {
            counts[below(draw(7, Stream::Patient, entity, 0), 10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_exponential_has_its_mean() {
        let sum: f64 = (0..20_000).map(|n| exponential(draw(3, Stream::Session, n, 0), 10.0)).sum();
        assert!((9.7..10.3).contains(&(sum / 20_000.0)));
    }
}
