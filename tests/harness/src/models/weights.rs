//! Seeded weights.

use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

use crate::onnx::TensorProto;

/// Weights drawn one after the other from a fixed seed.
///
/// ChaCha8 by name: `StdRng` may change its algorithm with any version of `rand`, and the models'
/// bytes with it.
pub(super) struct Weights(ChaCha8Rng);

impl Weights {
    pub(super) fn new() -> Self {
        Self(ChaCha8Rng::seed_from_u64(17))
    }

    /// Uniform in ±√(6/fan_in): activations keep their variance through ReLU layers (He et al. 2015, equation
    /// 10), so that rows stay told apart at the end of a deep model.
    pub(super) fn tensor(&mut self, name: &str, dims: &[usize], fan_in: usize) -> TensorProto {
        let bound = (6.0 / fan_in as f32).sqrt();
        let count = dims.iter().product();
        let values: Vec<f32> = (0..count).map(|_| self.in_unit_range() * bound).collect();
        let dims: Vec<i64> = dims.iter().map(|&dim| dim as i64).collect();
        TensorProto::of_f32(name, &dims, &values)
    }

    /// Uniform in [-1, 1): 24 bits, as many as an `f32` holds.
    fn in_unit_range(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1_u32 << 23) as f32 - 1.0
    }
}
