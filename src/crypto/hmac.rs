//! HMAC-SHA-256 with the padded secret absorbed in advance: the only code that calls SHA-256.
//!
//! [RFC 2104] allows keeping the two states that HMAC reaches after its padded key; a key of up to
//! 55 bytes then costs exactly two compressions. The `hmac` crate offers the same saving, but hashes
//! through a general block buffer; the tests hold this file against that crate and RFC 4231.
//!
//! [RFC 2104]: https://www.rfc-editor.org/rfc/rfc2104#section-4

use std::slice::from_ref;

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
            let digest = block.first_chunk_mut().expect("a block is longer");
            Message::new(key, &mut Blocks::empty()).sha256(digest);
        }
        let padded = |pad: u8| {
            let mut padded = block.map(|byte| byte ^ pad);
            let mut state = INITIAL;
            compress256(&mut state, from_ref(&padded));
            padded.zeroize();
            state
        };
        let (inner, outer) = (padded(0x36), padded(0x5c));
        block.zeroize();
        Self { inner, outer }
    }

    /// Returns the HMAC-SHA-256 of `message`.
    #[inline]
    pub(crate) fn authenticate(&self, message: &Message<'_>) -> [u8; DIGEST] {
        let mut digest = [0; DIGEST];
        self.finish(&self.begin(message), &mut digest);
        digest
    }

    /// Returns the inner hash, ready for the outer one. Work that stands between the two halves is done while
    /// the inner hash is on its way through memory.
    #[inline]
    pub(crate) fn begin(&self, message: &Message<'_>) -> InnerHash {
        let mut state = self.inner;
        message.absorb(&mut state, BLOCK);
        InnerHash(state)
    }

    /// Returns the outer hash.
    #[inline]
    pub(crate) fn finish(&self, inner: &InnerHash, digest: &mut [u8; DIGEST]) {
        let mut block = INNER_PADDING;
        put_state(&mut block, &inner.0);
        let mut state = self.outer;
        compress256(&mut state, from_ref(&block));
        put_state(digest, &state);
    }
}

/// The state after an inner hash.
pub(crate) struct InnerHash([u32; 8]);

/// What follows an inner hash in its block. A constant, because that is copied in whole vectors: a
/// compression has to wait for a vector that was written in pieces.
const INNER_PADDING: [u8; BLOCK] = {
    let mut block = [0; BLOCK];
    block[DIGEST] = 0x80;
    [block[BLOCK - 2], block[BLOCK - 1]] = (8 * (BLOCK + DIGEST) as u16).to_be_bytes();
    block
};

/// Room for a message padded to one block: behind a key's block, and alone. The caller's, because to
/// move a block that was just written costs more than to write it.
pub(crate) struct Blocks([[u8; BLOCK]; 2]);

impl Blocks {
    pub(crate) const fn empty() -> Self {
        Self([[0; BLOCK]; 2])
    }
}

/// A message to be hashed, possibly several times: under each secret, and plainly.
pub(crate) struct Message<'a> {
    bytes: &'a [u8],
    /// The message padded, where one block holds it.
    blocks: &'a Blocks,
}

impl<'a> Message<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8], blocks: &'a mut Blocks) -> Self {
        if bytes.len() <= MAX_SINGLE {
            for (block, absorbed) in blocks.0.iter_mut().zip([BLOCK, 0]) {
                pad(block, bytes, absorbed);
            }
        }
        Self { bytes, blocks }
    }

    /// Returns the plain SHA-256 of the message.
    #[inline]
    pub(crate) fn sha256(&self, digest: &mut [u8; DIGEST]) {
        let mut state = INITIAL;
        self.absorb(&mut state, 0);
        put_state(digest, &state);
    }

    /// Continues a hash that has absorbed nothing, or a key's block, to the end of the message.
    #[inline]
    fn absorb(&self, state: &mut [u32; 8], absorbed: usize) {
        if self.bytes.len() <= MAX_SINGLE {
            let [keyed, plain] = &self.blocks.0;
            compress256(state, from_ref(if absorbed == 0 { plain } else { keyed }));
        } else {
            self.absorb_long(state, absorbed);
        }
    }

    #[cold]
    fn absorb_long(&self, state: &mut [u32; 8], absorbed: usize) {
        let (blocks, rest) = self.bytes.as_chunks::<BLOCK>();
        let mut last = [[0; BLOCK]; 2];
        let bytes = last.as_flattened_mut();
        bytes[..rest.len()].copy_from_slice(rest);
        bytes[rest.len()] = 0x80;
        // Where the length does not fit behind the message, one more block takes it.
        let used = if rest.len() <= MAX_SINGLE { 1 } else { 2 };
        put_length(&mut last[used - 1], absorbed + self.bytes.len());
        compress256(state, blocks);
        compress256(state, &last[..used]);
    }
}

/// Pads a message in a block of zeros. The whole vectors come last: the compression needs them first,
/// and has to wait for a vector that was written in pieces.
#[inline]
fn pad(block: &mut [u8; BLOCK], bytes: &[u8], absorbed: usize) {
    match bytes.last_chunk::<16>() {
        Some(last) => block[bytes.len() - last.len()..bytes.len()].copy_from_slice(last),
        None => block[..bytes.len()].copy_from_slice(bytes),
    }
    block[bytes.len()] = 0x80;
    put_length(block, absorbed + bytes.len());
    for (to, from) in block.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks::<16>().0) {
        *to = *from;
    }
}

/// Ends a padded block with the length of the whole message, in bits.
#[inline]
fn put_length(block: &mut [u8; BLOCK], bytes: usize) {
    *block.last_chunk_mut().expect("a block is longer") = (8 * bytes as u64).to_be_bytes();
}

/// Writes a state to the start of a buffer.
#[inline]
fn put_state(buffer: &mut [u8], state: &[u32; 8]) {
    for (bytes, word) in buffer.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use hmac::{Hmac, KeyInit, Mac};
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;

    /// HMAC-SHA-256 by the `hmac` crate.
    fn reference_hmac(key: &[u8], message: &[u8]) -> [u8; DIGEST] {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
        mac.update(message);
        mac.finalize().into_bytes().into()
    }

    fn reference_sha256(message: &[u8]) -> [u8; DIGEST] {
        Sha256::digest(message).into()
    }

    fn our_hmac(key: &[u8], message: &[u8]) -> [u8; DIGEST] {
        HmacKey::new(key).authenticate(&Message::new(message, &mut Blocks::empty()))
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn our_sha256(message: &[u8]) -> [u8; DIGEST] {
        let mut digest = [0; DIGEST];
        Message::new(message, &mut Blocks::empty()).sha256(&mut digest);
        digest
    }

    #[test]
    fn every_hash_of_the_lexikon_service_is_matched() {
        let file: Value =
            serde_json::from_str(include_str!("hash_vectors.json")).expect("the file is JSON");
        let vectors = file["vectors"].as_array().expect("a list of vectors");
        assert_eq!(vectors.len(), 122);
        for vector in vectors {
            let text = |field: &str| vector[field].as_str().expect("a text");
            let (secret, key) = (text("secret").as_bytes(), text("key").as_bytes());
            assert_eq!(hex(&our_hmac(secret, key)), text("hmac_sha256"), "{vector}");
            assert_eq!(hex(&our_sha256(key)), text("sha256"), "{vector}");
        }
    }

    /// RFC 4231, sections 4.2 to 4.8. Case 5 gives only the first 128 bits.
    #[test]
    fn the_cases_of_rfc_4231_are_matched() {
        let counting: Vec<u8> = (1..=25).collect();
        let larger_than_block = b"Test Using Larger Than Block-Size Key - Hash Key First";
        let both_larger = b"This is a test using a larger than block-size key and a larger than \
            block-size data. The key needs to be hashed before being used by the HMAC algorithm.";
        let cases: [(&[u8], &[u8], &str); 7] = [
            (
                &[0x0b; 20],
                b"Hi There",
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 20],
                &[0xdd; 50],
                "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
            ),
            (
                &counting,
                &[0xcd; 50],
                "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
            ),
            (&[0x0c; 20], b"Test With Truncation", "a3b6167473100ee06e0c796c2955552b"),
            (
                &[0xaa; 131],
                larger_than_block,
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
            (
                &[0xaa; 131],
                both_larger,
                "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
            ),
        ];
        for (number, (key, message, expected)) in (1..).zip(cases) {
            let mac = hex(&our_hmac(key, message));
            assert_eq!(&mac[..expected.len()], expected, "case {number}");
        }
    }

    /// Every length passes each boundary of padding: 55, 56, 63, 64, 119, 120 and so on.
    #[test]
    fn every_length_of_key_and_message_agrees_with_the_reference() {
        let bytes: Vec<u8> = (0..300).map(|index| (index * 7 % 251) as u8).collect();
        for length in 0..=bytes.len() {
            let (message, key) = (&bytes[..length], &bytes[300 - length..]);
            assert_eq!(our_sha256(message), reference_sha256(message), "{length}");
            for key in [key, b"short"] {
                assert_eq!(our_hmac(key, message), reference_hmac(key, message), "{length}");
            }
        }
    }

    #[test]
    fn one_message_can_be_hashed_several_times() {
        let mut blocks = Blocks::empty();
        let message = Message::new(b"lxk_", &mut blocks);
        let (one, other) = (HmacKey::new(b"one"), HmacKey::new(b"other"));
        for _ in 0..2 {
            assert_eq!(one.authenticate(&message), reference_hmac(b"one", b"lxk_"));
            assert_eq!(other.authenticate(&message), reference_hmac(b"other", b"lxk_"));
            let mut digest = [0; DIGEST];
            message.sha256(&mut digest);
            assert_eq!(digest, reference_sha256(b"lxk_"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_key_and_message_agree_with_the_reference(
            key in vec(any::<u8>(), 0..200),
            message in vec(any::<u8>(), 0..300),
        ) {
            prop_assert_eq!(our_hmac(&key, &message), reference_hmac(&key, &message));
            prop_assert_eq!(our_sha256(&message), reference_sha256(&message));
        }
    }
}
