//! Randomness, from the operating system alone.

use rand::TryRng;
use rand::rngs::{SysError, SysRng};

/// The operating system's random generator failed; try again.
#[derive(Debug, thiserror::Error)]
#[error("the operating system's random generator failed; try again")]
pub struct EntropyError(#[source] SysError);

/// Fills `out` from the operating system's random generator.
pub(crate) fn fill_random(out: &mut [u8]) -> Result<(), EntropyError> {
    SysRng.try_fill_bytes(out).map_err(EntropyError)
}
