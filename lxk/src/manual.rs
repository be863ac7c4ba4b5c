//! What is made from the command line: completions and manual pages.

use std::path::Path;

use clap::CommandFactory;
use serde_json::json;

use crate::arguments::Arguments;
use crate::failure::Failure;
use crate::output::Output;

/// Prints completions.
pub fn completions(shell: clap_complete::Shell, output: &mut Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "lxk", &mut script);
    let script = String::from_utf8_lossy(&script);
    output.object(&json!({"shell": shell.to_string(), "script": script}));
    if !output.is_json() {
        output.write(&script);
    }
    Ok(())
}

/// Prints the manual page of the command, or writes those of all.
pub fn manual(folder: Option<&Path>, output: &mut Output) -> Result<(), Failure> {
    match folder {
        Some(folder) => {
            clap_mangen::generate_to(Arguments::command(), folder)?;
            output.object(&json!({"folder": folder.display().to_string()}));
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
            let page = String::from_utf8_lossy(&page);
            output.object(&json!({"page": page}));
            if !output.is_json() {
                output.write(&page);
            }
        }
    }
    Ok(())
}
