//! Scopes: what a key may do.

use std::collections::HashSet;
use std::fmt;

/// The scope that satisfies every other.
const ADMIN: &str = "admin";

/// The scopes of a key, as one comma-separated text: `read,write`.
///
/// What a row says is compared as it stands, as the lexikon service does: split at commas, without
/// trimming. A row with `read, write` grants `read`, and not `write`. A
/// [`KeyManager`](crate::KeyManager) writes only what [`parse`](Self::parse) has read.
///
/// Unknown names are kept, and names are case-sensitive. No scopes grant nothing, and `admin` grants
/// everything.
///
/// ```
/// use lexikon_auth::Scopes;
/// # fn run() -> Result<(), lexikon_auth::InvalidScopes> {
/// let scopes = Scopes::parse("read, write")?;
/// assert!(scopes.allows("write"));
/// assert!(!scopes.allows("admin"));
/// assert_eq!(scopes.to_string(), "read,write");
/// assert_eq!(Scopes::from_iter(["read", "write"]), scopes);
///
/// assert!(!Scopes::from("read, write").allows("write")); // of a row
/// assert!(Scopes::from("admin").allows("write"));
/// assert!(!Scopes::default().allows("read"));
/// # Ok(()) }
/// # run().unwrap();
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Scopes(Box<str>);

impl Scopes {
    /// Reads a list as people write it: spaces around names are dropped, and so are empty and repeated
    /// names.
    ///
    /// # Errors
    /// [`InvalidScopes`] for a name with white space or a control character in it: nothing asks for such
    /// a scope, and whoever wrote `read write` meant two.
    pub fn parse(text: &str) -> Result<Self, InvalidScopes> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let mut seen = HashSet::new();
        let names: Vec<&str> = names.filter(|&name| seen.insert(name)).collect();
        let splits = |character: char| character.is_whitespace() || character.is_control();
        if names.iter().any(|name| name.contains(splits)) {
            return Err(InvalidScopes);
        }
        Ok(Self(names.join(",").into()))
    }

    /// Returns whether these scopes hold `scope`, or `admin`. `scope` is one name: `allows("read,write")` is
    /// false unless a key holds `admin`.
    #[must_use]
    pub fn allows(&self, scope: &str) -> bool {
        self.iter().any(|name| name == scope || name == ADMIN)
    }

    /// Returns the names, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(',').filter(|name| !name.is_empty())
    }

    /// Returns the comma-separated text, as it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text as it stands in a row.
impl From<&str> for Scopes {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Scopes {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&String> for Scopes {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

/// The names as if they stood in one list: a name with a comma in it is several.
impl<'a> FromIterator<&'a str> for Scopes {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        Self(names.into_iter().collect::<Vec<_>>().join(",").into())
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scopes({:?})", &*self.0)
    }
}

/// A scope has white space or a control character in it; separate scopes by commas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the scopes {}", Self::PROBLEM)]
#[non_exhaustive]
pub struct InvalidScopes;

impl InvalidScopes {
    pub(crate) const PROBLEM: &str =
        "hold a name with white space or a control character in it; separate names by commas";
}
