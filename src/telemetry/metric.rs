//! The definitions of all metrics. A name ends in its unit, `seconds` or `bytes`; all others count.
//! The telemetry test compares them with docs/telemetry.md.
#![allow(dead_code)] // each feature uses its part, and only `metrics` reads it

pub(crate) struct Metric {
    pub(super) name: &'static str,
    pub(super) meaning: &'static str,
}

const fn metric(name: &'static str, meaning: &'static str) -> Metric {
    Metric { name, meaning }
}

// The verifier.
pub(crate) const VERIFICATIONS: Metric =
    metric("lexikon_auth_verifications_total", "Verifications, by outcome");
pub(crate) const VERIFICATION_DURATION: Metric =
    metric("lexikon_auth_verification_duration_seconds", "How long a verification took");
pub(crate) const RETIRED_SECRET: Metric = metric(
    "lexikon_auth_retired_secret_verifications_total",
    "Accepted keys whose hash is under a retired secret",
);
pub(crate) const SHADOW_REFUSALS: Metric = metric(
    "lexikon_auth_shadow_refusals_total",
    "Accepted legacy keys that the policy refuse would have refused",
);

// What it writes behind.
pub(crate) const FLUSHES: Metric =
    metric("lexikon_auth_flushes_total", "Flushes of last uses and hash upgrades, by outcome");
pub(crate) const FLUSH_DURATION: Metric =
    metric("lexikon_auth_flush_duration_seconds", "How long a flush took");
pub(crate) const DROPPED_USES: Metric = metric(
    "lexikon_auth_dropped_uses_total",
    "Uses that were not noted because too many were waiting for a flush",
);
pub(crate) const USAGE_WRITTEN: Metric =
    metric("lexikon_auth_usage_written_total", "Keys whose last use a flush wrote");
pub(crate) const HASHES_UPGRADED: Metric = metric(
    "lexikon_auth_hashes_upgraded_total",
    "Hashes that a flush replaced by the one under the current secret",
);

// The cache in memory.
pub(crate) const CACHE_HITS: Metric =
    metric("lexikon_auth_cache_hits_total", "Look-ups that the cache answered");
pub(crate) const CACHE_MISSES: Metric =
    metric("lexikon_auth_cache_misses_total", "Look-ups that the cache could not answer");
pub(crate) const CACHE_LOADS: Metric = metric(
    "lexikon_auth_cache_loads_total",
    "Look-ups in the store beneath, each on behalf of all misses that wait for it",
);
pub(crate) const CACHE_EVICTIONS: Metric =
    metric("lexikon_auth_cache_evictions_total", "Entries that had to make room for others");
pub(crate) const CACHE_INVALIDATIONS: Metric =
    metric("lexikon_auth_cache_invalidations_total", "Changes that the cache was told of");
pub(crate) const CACHE_ENTRIES: Metric =
    metric("lexikon_auth_cache_entries", "Entries in the cache");
pub(crate) const CACHE_BYTES: Metric = metric(
    "lexikon_auth_cache_bytes",
    "Memory of the entries in the cache, as its bound counts it",
);

// The tier in Redis.
pub(crate) const REDIS_HITS: Metric =
    metric("lexikon_auth_redis_hits_total", "Look-ups that Redis answered");
pub(crate) const REDIS_MISSES: Metric =
    metric("lexikon_auth_redis_misses_total", "Look-ups that Redis could not answer");
pub(crate) const REDIS_BYPASSED: Metric = metric(
    "lexikon_auth_redis_bypassed_total",
    "Look-ups without Redis, because it was down or not to be trusted",
);
pub(crate) const REDIS_REJECTIONS: Metric = metric(
    "lexikon_auth_redis_rejections_total",
    "Entries that were not used or not stored, by reason",
);
pub(crate) const REDIS_STATE: Metric =
    metric("lexikon_auth_redis_state", "1 while Redis is used, 0 while it is bypassed");
pub(crate) const REDIS_SCAN_DURATION: Metric = metric(
    "lexikon_auth_redis_scan_duration_seconds",
    "How long Redis took for one SCAN step of a clearing",
);

// The feed of changes.
pub(crate) const INVALIDATION_LAG: Metric = metric(
    "lexikon_auth_invalidation_lag_seconds",
    "How long a heartbeat took through the whole feed: how late a change arrives",
);
pub(crate) const FOLLOWER_CONNECTED: Metric =
    metric("lexikon_auth_follower_connected", "1 while changes are being reported, 0 otherwise");

// The stores in databases.
pub(crate) const STORE_DURATION: Metric =
    metric("lexikon_auth_store_duration_seconds", "How long a call of a store took");
pub(crate) const STORE_ERRORS: Metric =
    metric("lexikon_auth_store_errors_total", "Calls of a store that failed");

// The web layer.
pub(crate) const HTTP_ANSWERS: Metric =
    metric("lexikon_auth_http_answers_total", "Requests that a layer let pass or denied");
