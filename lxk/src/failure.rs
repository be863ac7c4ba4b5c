//! Why a command did not succeed, and the exit code that says so.

use std::fmt;
use std::io;
use std::process::ExitCode;

use lexikon_auth::crypto::EntropyError;
use lexikon_auth::store::{DatabaseUrlError, TimeZoneError};
use lexikon_auth::{ManageError, SecretError, StoreError};

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// What was asked for is refused, or a check failed. Exit code 1.
    Refused(String),
    /// The command, its environment or its input is wrong. Exit code 2.
    Usage(String),
    /// Something that is needed does not answer. Exit code 3.
    Unavailable(String),
    /// A signal, by its number, asked for an end before all was done. Exit code 128 and that number.
    Interrupted(u8, String),
    /// Nobody reads the list any more. No error.
    OutputClosed,
}

impl Failure {
    /// Adds what else went wrong.
    pub fn and(self, other: Result<(), Self>) -> Self {
        let Err(other) = other else { return self };
        let both = |text| format!("{text}; {other}");
        match self {
            Self::Refused(text) => Self::Refused(both(text)),
            Self::Usage(text) => Self::Usage(both(text)),
            Self::Unavailable(text) => Self::Unavailable(both(text)),
            Self::Interrupted(signal, text) => Self::Interrupted(signal, both(text)),
            Self::OutputClosed => Self::OutputClosed,
        }
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Refused(_) => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
            Self::Unavailable(_) => ExitCode::from(3),
            Self::Interrupted(signal, _) => ExitCode::from(signal_exit_code(*signal)),
        }
    }
}

/// Returns the exit code that shells give a command that a signal has ended.
pub fn signal_exit_code(signal: u8) -> u8 {
    128 + signal
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(text)
            | Self::Usage(text)
            | Self::Unavailable(text)
            | Self::Interrupted(_, text) => f.write_str(text),
            Self::OutputClosed => f.write_str("nobody reads the list"),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Schema(_) if text.contains("extend_schema") => {
                Self::Refused(text.replace("run extend_schema", "run: lxk schema apply"))
            }
            StoreError::UnknownSecret { .. } => Self::Refused(text.replace(
                "run add_secret when this one is new",
                "run `lxk secret rotate add` when this one is new",
            )),
            StoreError::NotFound(_) => Self::Refused(format!("{text}; look it up with: lxk list")),
            StoreError::Conflict
            | StoreError::UnknownOwner(_)
            | StoreError::NotInForce(_)
            | StoreError::Changed(_)
            | StoreError::TimeZoneMismatch { .. }
            | StoreError::InvalidRow { .. }
            | StoreError::Unstorable { .. } => Self::Refused(text),
            // The database's own message says which right is missing.
            StoreError::ReadOnly(source) => Self::Unavailable(format!("{text}: {source}")),
            _ => Self::Unavailable(text),
        }
    }
}

impl From<ManageError> for Failure {
    fn from(error: ManageError) -> Self {
        match error {
            ManageError::Store(error) => error.into(),
            ManageError::Invalid { .. } => Self::Usage(error.to_string()),
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<DatabaseUrlError> for Failure {
    fn from(error: DatabaseUrlError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<TimeZoneError> for Failure {
    fn from(_: TimeZoneError) -> Self {
        // Without the value: a secret may have been set there by mistake.
        let problem = "LEXIKON_TIME_ZONE is no time zone; set it to a name in the IANA database, such as \
             Europe/Paris, or to UTC";
        Self::Usage(problem.to_owned())
    }
}

impl From<EntropyError> for Failure {
    fn from(error: EntropyError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<csv::Error> for Failure {
    fn from(error: csv::Error) -> Self {
        match error.into_kind() {
            csv::ErrorKind::Io(error) => error.into(),
            kind => Self::Unavailable(format!("{kind:?}")),
        }
    }
}
