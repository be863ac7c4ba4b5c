//! Scopes: what a key may do.

use std::collections::HashSet;
use std::fmt;

/// The scope that satisfies every other.
const ADMIN: &str = "admin";

/// The scopes of a key, as one comma-separated text: `read,write`.
///
/// Spaces around names are dropped, and so are empty and repeated names; unknown names are kept and
/// names are case-sensitive. No scopes grant nothing, and `admin` grants everything.
///
/// ```
/// use lexikon_auth::Scopes;
/// let scopes = Scopes::parse("read, write");
/// assert!(scopes.allows("write"));
/// assert!(!scopes.allows("admin"));
/// assert!(Scopes::parse("admin").allows("write"));
/// assert!(!Scopes::default().allows("read"));
/// assert_eq!(scopes.to_string(), "read,write");
/// assert_eq!(Scopes::from_iter(["read", "write"]), scopes);
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Scopes(Box<str>);

impl Scopes {
    /// Reads a comma-separated list. Every text is one; what it does not name is not granted.
    pub fn parse(text: &str) -> Self {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let mut seen = HashSet::new();
        let names: Vec<&str> = names.filter(|&name| seen.insert(name)).collect();
        Self(names.join(",").into())
    }

    /// Whether these scopes hold `scope`, or `admin`. `scope` is one name: `allows("read,write")` is
    /// false unless a key holds `admin`.
    #[must_use]
    pub fn allows(&self, scope: &str) -> bool {
        self.iter().any(|name| name == scope || name == ADMIN)
    }

    /// The names, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(',').filter(|name| !name.is_empty())
    }

    /// The comma-separated text, as it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Scopes {
    fn from(text: &str) -> Self {
        Self::parse(text)
    }
}

impl From<String> for Scopes {
    fn from(text: String) -> Self {
        text.as_str().into()
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
        Self::parse(&names.into_iter().collect::<Vec<_>>().join(","))
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
