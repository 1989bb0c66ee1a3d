//! Whether a peer computes the right thing, checked before it is timed.

use anyhow::{Result, ensure};

/// Room for another batch size's order of additions.
const TOLERANCE: f32 = 1e-4;

/// Checks that `reply` holds `expected` as consecutive little-endian values, whatever its envelope.
///
/// # Errors
/// When it does not.
pub(super) fn check(who: &str, reply: &[u8], expected: &[f32]) -> Result<()> {
    let size = size_of_val(expected);
    let found = size > 0 && reply.windows(size).any(|window| is_close(window, expected));
    ensure!(found, "{who} answers {:02x?}, which does not hold {expected:?}", &reply[..reply.len().min(256)]);
    Ok(())
}

fn is_close(bytes: &[u8], expected: &[f32]) -> bool {
    let (values, _) = bytes.as_chunks::<4>();
    values.iter().zip(expected).all(|(&bytes, &expected)| {
        (f32::from_le_bytes(bytes) - expected).abs() <= TOLERANCE * expected.abs().max(1e-3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_in_any_envelope_and_a_wrong_one_is_not() {
        let bytes = |values: [f32; 2]| values.map(f32::to_le_bytes).concat();
        let envelope = [b"head".as_slice(), &bytes([0.25, -3.0]), b"x"].concat();
        assert!(check("a peer", &envelope, &[0.25, -3.0]).is_ok());
        assert!(check("a peer", &envelope, &[0.25, -3.1]).is_err());
        assert!(check("a peer", &envelope, &[]).is_err());
        assert!(check("a peer", &bytes([f32::NAN, -3.0]), &[0.25, -3.0]).is_err());
    }
}
