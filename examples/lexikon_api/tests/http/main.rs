//! The reference service, run as a program and asked over HTTP.

mod api;
mod client;
mod service;
mod transcripts;
