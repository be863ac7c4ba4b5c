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
/// Longest message that fits one block with its padding: a one bit and eight bytes of length.
const MAX_SINGLE: usize = 55;

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
            block[..DIGEST].copy_from_slice(&Message::new(key).sha256());
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
    #[inline]
    pub(crate) fn authenticate(&self, message: &Message<'_>) -> [u8; DIGEST] {
        let inner = message.finish(self.inner, BLOCK);
        let mut block = [0; BLOCK];
        block[..DIGEST].copy_from_slice(&inner);
        block[DIGEST] = 0x80;
        put_length(&mut block, BLOCK + DIGEST);
        let mut state = self.outer;
        compress256(&mut state, &[block]);
        to_bytes(state)
    }
}

/// A message to be hashed, possibly several times: under each secret, and plainly.
pub(crate) struct Message<'a> {
    bytes: &'a [u8],
    /// The message and the first byte of its padding, where one block holds it.
    block: [u8; BLOCK],
}

impl<'a> Message<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let mut block = [0; BLOCK];
        if bytes.len() <= MAX_SINGLE {
            block[..bytes.len()].copy_from_slice(bytes);
            block[bytes.len()] = 0x80;
        }
        Self { bytes, block }
    }

    /// The plain SHA-256 of the message.
    #[inline]
    pub(crate) fn sha256(&self) -> [u8; DIGEST] {
        self.finish(INITIAL, 0)
    }

    /// Continues a hash that has absorbed `absorbed` bytes to the end of the message.
    #[inline]
    fn finish(&self, mut state: [u32; 8], absorbed: usize) -> [u8; DIGEST] {
        if self.bytes.len() > MAX_SINGLE {
            return self.finish_long(state, absorbed);
        }
        let mut block = self.block;
        put_length(&mut block, absorbed + self.bytes.len());
        compress256(&mut state, &[block]);
        to_bytes(state)
    }

    #[cold]
    fn finish_long(&self, mut state: [u32; 8], absorbed: usize) -> [u8; DIGEST] {
        let (blocks, rest) = self.bytes.as_chunks::<BLOCK>();
        compress256(&mut state, blocks);
        let mut last = [[0; BLOCK]; 2];
        let bytes = last.as_flattened_mut();
        bytes[..rest.len()].copy_from_slice(rest);
        bytes[rest.len()] = 0x80;
        // Where the length does not fit behind the message, one more block takes it.
        let used = if rest.len() <= MAX_SINGLE { 1 } else { 2 };
        put_length(&mut last[used - 1], absorbed + self.bytes.len());
        compress256(&mut state, &last[..used]);
        to_bytes(state)
    }
}

/// Ends a padded block with the length of the whole message, in bits.
#[inline]
fn put_length(block: &mut [u8; BLOCK], bytes: usize) {
    *block.last_chunk_mut().expect("a block is longer") = (8 * bytes as u64).to_be_bytes();
}

#[inline]
fn to_bytes(state: [u32; 8]) -> [u8; DIGEST] {
    let mut digest = [0; DIGEST];
    for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    digest
}
