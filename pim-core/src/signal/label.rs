//! Closed sets of label values, and their index.

use crate::role::ClosedEnum;
use crate::shard::ShardId;

/// Up to three closed enums that label a signal together; `()` for none.
pub trait LabelSet: Copy + Send + Sync + 'static {
    /// The values of each label, in order.
    fn dimensions() -> Vec<Vec<&'static str>>;

    /// Position among all combinations, the last label running fastest.
    fn index(self) -> usize;
}

impl LabelSet for () {
    fn dimensions() -> Vec<Vec<&'static str>> {
        Vec::new()
    }

    fn index(self) -> usize {
        0
    }
}

impl<A: ClosedEnum> LabelSet for A {
    fn dimensions() -> Vec<Vec<&'static str>> {
        vec![names::<A>()]
    }

    fn index(self) -> usize {
        usize::from(self.code())
    }
}

impl<A: ClosedEnum, B: ClosedEnum> LabelSet for (A, B) {
    fn dimensions() -> Vec<Vec<&'static str>> {
        vec![names::<A>(), names::<B>()]
    }

    fn index(self) -> usize {
        usize::from(self.0.code()) * B::ALL.len() + usize::from(self.1.code())
    }
}

impl<A: ClosedEnum, B: ClosedEnum, C: ClosedEnum> LabelSet for (A, B, C) {
    fn dimensions() -> Vec<Vec<&'static str>> {
        vec![names::<A>(), names::<B>(), names::<C>()]
    }

    fn index(self) -> usize {
        (self.0, self.1).index() * C::ALL.len() + usize::from(self.2.code())
    }
}

fn names<A: ClosedEnum>() -> Vec<&'static str> {
    A::ALL.iter().map(|member| member.name()).collect()
}

crate::closed_enum! {
    /// Which kind of database a signal speaks of.
    pub enum Store {
        /// A shard.
        Shard = "shard",
        /// The control database.
        Control = "control",
    }
}

crate::closed_enum! {
    /// Which shard a signal speaks of: the first eight by their numbers, the others together.
    pub enum ShardGroup {
        /// Shard 0.
        S0 = "0",
        /// Shard 1.
        S1 = "1",
        /// Shard 2.
        S2 = "2",
        /// Shard 3.
        S3 = "3",
        /// Shard 4.
        S4 = "4",
        /// Shard 5.
        S5 = "5",
        /// Shard 6.
        S6 = "6",
        /// Shard 7.
        S7 = "7",
        /// Shard 8 and above.
        Above = "above",
    }
}

impl ShardGroup {
    /// The group of a shard.
    #[must_use]
    pub fn of(shard: ShardId) -> Self {
        Self::ALL.get(usize::from(shard.0)).copied().unwrap_or(Self::Above)
    }
}
