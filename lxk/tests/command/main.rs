//! The command, run as a program.

mod lxk;
mod lxk_caches;
mod lxk_masking;
mod lxk_output;
mod lxk_time_zone;
mod operator;
mod programme;
mod runbook;
mod sqlite_feed;
