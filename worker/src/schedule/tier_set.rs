//! Which tiers an instance serves. Plain data.

/// A set of tier numbers, of which there are 16 at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierSet(u32);

impl TierSet {
    /// Every tier.
    pub const ALL: Self = Self(u32::MAX);

    /// None.
    pub const NONE: Self = Self(0);

    /// These tiers only.
    pub fn of(tiers: impl IntoIterator<Item = usize>) -> Self {
        Self(tiers.into_iter().fold(0, |set, tier| set | (1 << tier)))
    }

    /// The tiers that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The tiers that are in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The tiers that are not in the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the tier is one of them.
    pub fn contains(self, tier: usize) -> bool {
        self.0 & (1 << tier) != 0
    }
}
