//! Commands about single keys, and lists of them.

mod id;
mod issue;
mod list;
mod print_once;
mod revoke;
mod rotate;
mod verify;

pub use self::issue::{Issue, issue};
pub use self::list::{List, Show, list, show};
pub use self::revoke::{Expire, Revoke, expire, revoke};
pub use self::rotate::{Rotate, rotate};
pub use self::verify::verify;
