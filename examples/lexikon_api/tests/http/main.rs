//! The reference service, run as a program and asked over HTTP.

mod answers;
mod client;
mod keys;
mod lifecycle;
mod service;
mod transcripts;
