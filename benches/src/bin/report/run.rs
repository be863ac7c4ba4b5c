//! What was measured, and where.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use lexikon_auth_benches::{UNIT, machine};
use serde_json::Value;

pub struct Run {
    /// Medians in nanoseconds, by group and function.
    medians: HashMap<(String, String), f64>,
    pub bytes_a_key: f64,
    pub allocations_a_verification: f64,
    pub machine: String,
}

impl Run {
    pub fn read(folder: &Path, memory: &str) -> Result<Self, Box<dyn Error>> {
        let mut medians = HashMap::new();
        for group in folders(folder)? {
            for function in folders(&group)? {
                let read = |name| -> Result<Value, Box<dyn Error>> {
                    let path = function.join("new").join(name);
                    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
                };
                let (id, estimates) = (read("benchmark.json")?, read("estimates.json")?);
                let part = |name: &str| id[name].as_str().unwrap_or_default().to_owned();
                let median =
                    estimates["median"]["point_estimate"].as_f64().ok_or("no median estimated")?;
                medians.insert((part("group_id"), part("function_id")), median);
            }
        }
        let memory: Value = serde_json::from_str(memory)?;
        let figure = |name: &str| memory[name].as_f64().ok_or("memory printed something else");
        Ok(Self {
            medians,
            bytes_a_key: figure("bytes_a_key")?,
            allocations_a_verification: figure("allocations_a_verification")?,
            machine: machine()?,
        })
    }

    /// The median of a function, in nanoseconds.
    pub fn time(&self, group: &str, function: &str) -> Result<f64, String> {
        let key = (group.to_owned(), function.to_owned());
        self.medians.get(&key).copied().ok_or_else(|| format!("not measured: {group}/{function}"))
    }

    /// The median of a function, as a multiple of the unit measured in its group.
    pub fn ratio(&self, group: &str, function: &str) -> Result<f64, String> {
        Ok(self.time(group, function)? / self.time(group, UNIT)?)
    }
}

/// The folders in a folder, but for criterion's own reports.
fn folders(path: &Path) -> Result<Vec<std::path::PathBuf>, Box<dyn Error>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != "report" {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}
