//! HMAC-SHA-256 with the padded secret absorbed in advance: the only code that calls SHA-256.
//!
//! [RFC 2104] allows keeping the two states that HMAC reaches after its padded key; a key of up to
//! 55 bytes then costs exactly two compressions. The `hmac` crate offers the same saving, but hashes
//! through a general block buffer; the tests hold this file against that crate and RFC 4231.
//!
//! [RFC 2104]: https://www.rfc-editor.org/rfc/rfc2104#section-4

use sha2::block_api::compress256;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// SHA-256 digest, in bytes.
pub(crate) const DIGEST: usize = 32;
const BLOCK: usize = 64;

/// The initial hash value of SHA-256 (FIPS 180-4, section 5.3.3).
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// An HMAC key, kept only as the two states that follow its padded blocks. Wiped on drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct HmacKey {
    inner: [u32; 8],
    outer: [u32; 8],
}

impl HmacKey {
    pub(crate) fn new(key: &[u8]) -> Self {
        let mut block = [0; BLOCK];
        if key.len() <= BLOCK {
            block[..key.len()].copy_from_slice(key);
        } else {
            block[..DIGEST].copy_from_slice(&sha256(key));
        }
        let padded = |pad: u8| {
            let mut state = INITIAL;
            let mut padded = block.map(|byte| byte ^ pad);
            compress256(&mut state, &[padded]);
            padded.zeroize();
            state
        };
        let (inner, outer) = (padded(0x36), padded(0x5c));
        block.zeroize();
        Self { inner, outer }
    }

    /// The HMAC-SHA-256 of `message`.
    pub(crate) fn authenticate(&self, message: &[u8]) -> [u8; DIGEST] {
        finish(self.outer, BLOCK, &finish(self.inner, BLOCK, message))
    }
}

/// The SHA-256 of `message`.
pub(crate) fn sha256(message: &[u8]) -> [u8; DIGEST] {
    finish(INITIAL, 0, message)
}

/// Absorbs `message` into a state that has taken `absorbed` bytes, then pads and finishes.
#[inline]
fn finish(mut state: [u32; 8], absorbed: usize, message: &[u8]) -> [u8; DIGEST] {
    let (blocks, rest) = message.as_chunks::<BLOCK>();
    compress256(&mut state, blocks);

    let mut last = [[0; BLOCK]; 2];
    let bytes = last.as_flattened_mut();
    bytes[..rest.len()].copy_from_slice(rest);
    bytes[rest.len()] = 0x80;
    // The length takes the last eight bytes of a block; where it does not fit, one more follows.
    let used = if rest.len() < BLOCK - 8 { 1 } else { 2 };
    let bits = 8 * (absorbed + message.len()) as u64;
    bytes[used * BLOCK - 8..used * BLOCK].copy_from_slice(&bits.to_be_bytes());
    compress256(&mut state, &last[..used]);

    let mut digest = [0; DIGEST];
    for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    digest
}
