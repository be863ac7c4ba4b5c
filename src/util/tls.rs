//! Which implementation of cryptography rustls uses, where the crates that use it leave that open.

use rustls::crypto::{CryptoProvider, ring};

/// Makes ring the default of this process, unless it has one. A program that also compiles another provider,
/// such as aws-lc-rs, has none by itself, and rustls would panic.
pub(crate) fn choose_provider() {
    if CryptoProvider::get_default().is_none() {
        // An error: somebody else chose one in this moment.
        let _ = ring::default_provider().install_default();
    }
}
