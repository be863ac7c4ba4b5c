//! Turns a run of the benches into `results.md` and `results.svg`, and prints the first.
//!
//! Arguments: the folder that criterion wrote to, and what `memory` printed.

mod plot;
mod run;
mod table;

use std::error::Error;
use std::{env, fs};

use run::Run;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(folder), Some(memory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: report <criterion's folder> <what memory printed>".into());
    };
    let run = Run::read(folder.as_ref(), &memory)?;
    let table = table::markdown(&run)?;
    fs::write("results.md", &table)?;
    fs::write("results.svg", plot::svg(&run)?)?;
    print!("{table}");
    Ok(())
}
