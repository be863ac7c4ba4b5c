//! The command, run as a program.

mod cache;
mod command_line;
mod database;
mod invalidation;
mod keys;
mod listing;
mod masking;
mod migrate;
mod operator;
mod output;
mod preflight;
mod rollout;
mod runbook;
mod secret;
mod sqlite_feed;
mod time_zone;
mod transfer;
