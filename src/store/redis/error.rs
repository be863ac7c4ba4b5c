//! Errors of Redis as those of a store.

use redis::RedisError;

use crate::error::StoreError;

pub(super) fn unavailable(error: RedisError) -> StoreError {
    StoreError::Unavailable(error.into())
}
