//! Server secrets: what is refused and how it is said, files, rings, and the pinned derivations.
//!
//! The pinned values below come from this definition, in Python, and must never change: a new
//! fingerprint would be reported as a wrong secret, and a new tag would refuse every key issued so far.
//!
//! ```python
//! import hashlib, hmac
//! DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
//! def subkey(secret, purpose):
//!     return hmac.new(secret, b"lexikon-auth v1 " + purpose, hashlib.sha256).digest()
//! def fingerprint(secret):
//!     return subkey(secret, b"fingerprint")[:8].hex()
//! def tag(secret, signed):  # signed: `lxk_` and 43 characters
//!     mac = hmac.new(subkey(secret, b"key tag"), signed, hashlib.sha256).digest()
//!     words = [int.from_bytes(mac[4 * i:4 * i + 4], "big") for i in range(8)]
//!     return "".join(DIGITS[word * 62 >> 32] for word in words)
//! ```
#![cfg(unix)] // where variables and paths are any bytes

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Command;

use lexikon_auth::crypto::{Candidates, PresentedKey};
use lexikon_auth::{SecretError, SecretRing, ServerSecret};
use lexikon_auth_tests::{SECRETS, assert_reveals_nothing, hmac_hash, printed, ring, secret};
use secrecy::ExposeSecret;

/// What the message of a refused secret tells the operator to run.
const COMMAND: &str = "openssl rand -hex 32";

/// A secret whose bytes are not all ASCII.
const ACCENTED: &str = "clé-secrète-très-longue-à-trente-deux-caractères";

type IsExpected = fn(&SecretError) -> bool;
const MISSING: IsExpected = |error| matches!(error, SecretError::Missing { .. });
const EMPTY_FILE: IsExpected = |error| matches!(error, SecretError::EmptyFile { .. });
const TOO_SHORT: IsExpected = |error| matches!(error, SecretError::TooShort { .. });
const PLACEHOLDER: IsExpected = |error| matches!(error, SecretError::Placeholder { .. });
const REPETITIVE: IsExpected = |error| matches!(error, SecretError::Repetitive { .. });
const NOT_UTF8: IsExpected = |error| matches!(error, SecretError::NotUtf8 { .. });

const WEAK: [(&str, IsExpected); 22] = [
    ("", MISSING),
    ("x", TOO_SHORT),
    ("5f1d7a9c3be84e60a2c4f7d8190b6e3", TOO_SHORT),
    ("                               ", TOO_SHORT),
    ("changeme", PLACEHOLDER),
    ("ChangeMe!", PLACEHOLDER),
    ("CHANGE_ME", PLACEHOLDER),
    ("change-this-to-a-long-random-string", PLACEHOLDER),
    ("your-api-key-secret-here", PLACEHOLDER),
    ("Your Api Key, of 32 characters at least", PLACEHOLDER),
    ("your_secret_key_of_at_least_32_bytes", PLACEHOLDER),
    ("dev-secret-change-in-production", PLACEHOLDER),
    ("dev-secret-change-in-production-5f1d7a9c3be84e60", PLACEHOLDER),
    ("replace-me-with-32-random-characters", PLACEHOLDER),
    ("insecure-secret-for-local-development", PLACEHOLDER),
    ("PLACEHOLDER 5f1d7a9c3be84e60a2c4f7d8", PLACEHOLDER),
    ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", REPETITIVE),
    ("0000000000000000000000000000000000000000000000000000000000000000", REPETITIVE),
    ("abababababababababababababababababababab", REPETITIVE),
    ("1234567123456712345671234567123456712345", REPETITIVE),
    ("                                        ", REPETITIVE),
    ("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", REPETITIVE),
];

/// A ring from these variables instead of those of the process.
fn load(variables: &[(&str, &[u8])]) -> Result<SecretRing, SecretError> {
    SecretRing::from_variables(|name| {
        let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
        Some(OsString::from_vec(value.to_vec()))
    })
}

fn fingerprints(ring: &SecretRing) -> Vec<String> {
    ring.fingerprints().map(|fingerprint| fingerprint.to_string()).collect()
}

fn fingerprint(text: &str) -> String {
    secret(text).fingerprint().to_string()
}

/// A path as the value of a variable.
fn value(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

/// The refusal of `text` under this name: the kind, the name, the command, and not the secret.
#[track_caller]
fn assert_refusal(error: &SecretError, name: &str, text: &str, is_expected: IsExpected) {
    assert!(is_expected(error), "{text:?}: {error:?}");
    let message = error.to_string();
    assert!(message.starts_with(&format!("{name} ")), "{message}");
    assert!(message.ends_with(COMMAND), "{message}");
    assert_reveals_nothing(&printed(error), text);
    // The short ones as well, where they are not a word of the message.
    assert!(text.len() < 8 || !printed(error).contains(text), "{message}");
}

#[test]
fn weak_secrets_are_refused_with_the_name_and_the_command() {
    for (text, is_expected) in WEAK {
        let error = ServerSecret::new(&text.into()).unwrap_err();
        assert_refusal(&error, "the server secret", text, is_expected);
    }
}

#[test]
fn weak_variables_are_refused_with_the_name_and_the_command() {
    for (text, is_expected) in WEAK {
        let error = load(&[("API_KEY_SECRET", text.as_bytes())]).unwrap_err();
        assert_refusal(&error, "API_KEY_SECRET", text, is_expected);
        if text.is_empty() {
            continue;
        }
        let good = ("API_KEY_SECRET", SECRETS[0].as_bytes());
        let error = load(&[good, ("API_KEY_SECRET_PREVIOUS", text.as_bytes())]).unwrap_err();
        assert_refusal(&error, "API_KEY_SECRET_PREVIOUS", text, is_expected);
    }
}

#[test]
fn weak_files_are_refused_with_the_name_and_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mounted");
    for (text, is_expected) in WEAK {
        std::fs::write(&path, text).unwrap();
        let error = load(&[("API_KEY_SECRET_FILE", value(&path))]).unwrap_err();
        let is_expected = if text.is_empty() { EMPTY_FILE } else { is_expected };
        assert_refusal(&error, "API_KEY_SECRET_FILE", text, is_expected);
        let good = ("API_KEY_SECRET", SECRETS[0].as_bytes());
        let error = load(&[good, ("API_KEY_SECRET_PREVIOUS_FILE", value(&path))]).unwrap_err();
        assert_refusal(&error, "API_KEY_SECRET_PREVIOUS_FILE", text, is_expected);
    }
}

#[test]
fn no_variable_at_all_is_refused_with_the_name_and_the_command() {
    for variables in [&[][..], &[("API_KEY_SECRET_PREVIOUS", SECRETS[0].as_bytes())]] {
        let error = load(variables).unwrap_err();
        assert_refusal(&error, "API_KEY_SECRET", SECRETS[0], MISSING);
    }
}

#[test]
fn good_secrets_are_taken() {
    let good = [
        // Exactly 32 bytes, exactly 8 different ones, 32 bytes in 16 characters.
        "5f1d7a9c3be84e60a2c4f7d8190b6e3d",
        "12345678123456781234567812345678",
        "éàèùçâêîôûëïüÿñõ",
        "correct horse battery staple, and more of them",
        "K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=",
    ];
    for text in good {
        assert!(ServerSecret::new(&text.into()).is_ok(), "{text}");
        assert!(load(&[("API_KEY_SECRET", text.as_bytes())]).is_ok(), "{text}");
    }
    assert!(ServerSecret::new(&"0123456789abcdef".repeat(4096).into()).is_ok());
}

#[test]
fn generated_secrets_are_good_and_distinct() {
    let generated: Vec<_> = (0..100).map(|_| ServerSecret::generate().unwrap()).collect();
    let mut fingerprints = std::collections::HashSet::new();
    for text in &generated {
        assert_eq!(text.expose_secret().len(), 64);
        assert!(text.expose_secret().bytes().all(|byte| b"0123456789abcdef".contains(&byte)));
        fingerprints.insert(ServerSecret::new(text).unwrap().fingerprint());
    }
    assert_eq!(fingerprints.len(), generated.len());
}

/// Not hex-decoded, not trimmed, not normalised: the hash is the one under the very bytes.
#[test]
fn the_utf8_bytes_of_a_secret_are_taken_as_they_are() {
    let key = "lxk_44rQs5133TjGnNDmwXAtfSDHbSEC5QVayizcFowerMs";
    let upper = SECRETS[0].to_uppercase();
    let spaced = format!(" {}\n", SECRETS[0]);
    for text in [SECRETS[0], ACCENTED, &upper, &spaced] {
        let ring = load(&[("API_KEY_SECRET", text.as_bytes())]).unwrap();
        let candidates = Candidates::compute(&PresentedKey::parse(key).unwrap(), &ring).unwrap();
        assert_eq!(candidates.as_slice()[0], hmac_hash(text, key), "{text:?}");
    }
    // By CPython: hmac.new(ACCENTED.encode(), key.encode(), hashlib.sha256).hexdigest()
    let expected = "ed3089766b3c3eae8975515ccca2ab42d865711a145e59c889c8f169f51e4ba8";
    assert_eq!(hmac_hash(ACCENTED, key).to_hex(), expected);
}

#[test]
fn one_newline_at_the_end_of_a_file_is_dropped() {
    let secret = SECRETS[0];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mounted");
    let endings = [
        ("", ""),
        ("\n", ""),
        ("\r\n", ""),
        ("\n\n", "\n"),
        ("\r\n\r\n", "\r\n"),
        ("\n\r\n", "\n"),
        ("\r", "\r"),
        (" \n", " "),
        ("\n ", "\n "),
        ("\0\n", "\0"),
    ];
    for (written, kept) in endings {
        std::fs::write(&path, format!("{secret}{written}")).unwrap();
        let ring = load(&[("API_KEY_SECRET_FILE", value(&path))]).unwrap();
        assert_eq!(fingerprints(&ring), [fingerprint(&format!("{secret}{kept}"))], "{written:?}");
    }
    std::fs::write(&path, format!("\n{secret}")).unwrap();
    let ring = load(&[("API_KEY_SECRET_FILE", value(&path))]).unwrap();
    assert_eq!(fingerprints(&ring), [fingerprint(&format!("\n{secret}"))]);
}

#[test]
fn a_file_of_only_a_newline_is_called_empty() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mounted");
    for text in ["\n", "\r\n"] {
        std::fs::write(&path, text).unwrap();
        let error = load(&[("API_KEY_SECRET_FILE", value(&path))]).unwrap_err();
        assert_refusal(&error, "API_KEY_SECRET_FILE", "", EMPTY_FILE);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused_with_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let too_large = folder.path().join("too large");
    std::fs::write(&too_large, SECRETS[0].repeat(1025)).unwrap();
    let largest = folder.path().join("largest");
    std::fs::write(&largest, SECRETS[0].repeat(1024)).unwrap();
    assert!(load(&[("API_KEY_SECRET_FILE", value(&largest))]).is_ok());

    let nowhere = folder.path().join("nowhere");
    let endless = Path::new("/dev/zero");
    for path in [&nowhere, folder.path(), &too_large, endless, Path::new("a\0b")] {
        let error = load(&[("API_KEY_SECRET_FILE", value(path))]).unwrap_err();
        assert!(matches!(error, SecretError::Unreadable { .. }), "{error:?}");
        assert!(error.to_string().starts_with("API_KEY_SECRET_FILE "), "{error}");
        assert_reveals_nothing(&printed(&error), SECRETS[0]);
    }
}

/// Somebody will put the secret itself where the path belongs.
#[test]
fn a_secret_in_the_place_of_a_path_is_not_printed() {
    let error = load(&[("API_KEY_SECRET_FILE", SECRETS[0].as_bytes())]).unwrap_err();
    assert!(matches!(error, SecretError::Unreadable { .. }), "{error:?}");
    assert_reveals_nothing(&printed(&error), SECRETS[0]);
}

#[test]
fn a_secret_that_is_not_utf8_is_refused() {
    let secret = [SECRETS[0].as_bytes(), &[0xff]].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mounted");
    std::fs::write(&path, &secret).unwrap();
    for (name, value) in
        [("API_KEY_SECRET", secret.as_slice()), ("API_KEY_SECRET_FILE", value(&path))]
    {
        assert_refusal(&load(&[(name, value)]).unwrap_err(), name, SECRETS[0], NOT_UTF8);
    }
}

#[test]
fn a_variable_and_its_file_together_are_ambiguous() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mounted");
    std::fs::write(&path, SECRETS[1]).unwrap();
    let good = ("API_KEY_SECRET", SECRETS[0].as_bytes());
    let both = [good, ("API_KEY_SECRET_FILE", value(&path))];
    let previous = [
        good,
        ("API_KEY_SECRET_PREVIOUS", SECRETS[1].as_bytes()),
        ("API_KEY_SECRET_PREVIOUS_FILE", value(&path)),
    ];
    for (variables, name) in
        [(&both[..], "API_KEY_SECRET"), (&previous[..], "API_KEY_SECRET_PREVIOUS")]
    {
        let error = load(variables).unwrap_err();
        assert!(matches!(error, SecretError::Ambiguous { .. }), "{error:?}");
        let expected = format!("{name} and {name}_FILE are both set; unset one of them");
        assert_eq!(error.to_string(), expected);
        assert_reveals_nothing(&printed(&error), SECRETS[0]);
        assert_reveals_nothing(&printed(&error), SECRETS[1]);
    }
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mounted");
    std::fs::write(&path, SECRETS[0]).unwrap();
    let in_variable = ("API_KEY_SECRET", SECRETS[0].as_bytes());
    let in_file = ("API_KEY_SECRET_FILE", value(&path));
    let cases = [
        vec![in_variable, ("API_KEY_SECRET_FILE", b"")],
        vec![in_file, ("API_KEY_SECRET", b"")],
        vec![in_variable, ("API_KEY_SECRET_PREVIOUS", b"")],
        vec![in_variable, ("API_KEY_SECRET_PREVIOUS_FILE", b"")],
    ];
    for variables in cases {
        assert_eq!(fingerprints(&load(&variables).unwrap()), [fingerprint(SECRETS[0])]);
    }
}

#[test]
fn the_previous_secret_joins_the_ring_behind_the_current_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mounted");
    std::fs::write(&path, format!("{}\n", SECRETS[1])).unwrap();
    let current = ("API_KEY_SECRET", SECRETS[0].as_bytes());
    let expected = [fingerprint(SECRETS[0]), fingerprint(SECRETS[1])];
    for previous in [
        ("API_KEY_SECRET_PREVIOUS", SECRETS[1].as_bytes()),
        ("API_KEY_SECRET_PREVIOUS_FILE", value(&path)),
    ] {
        assert_eq!(fingerprints(&load(&[current, previous]).unwrap()), expected);
    }
    let same = ("API_KEY_SECRET_PREVIOUS", SECRETS[0].as_bytes());
    let error = load(&[current, same]).unwrap_err();
    assert!(matches!(error, SecretError::Repeated { .. }), "{error:?}");
}

#[test]
fn a_ring_holds_four_different_secrets() {
    let full = ring(&SECRETS[..4]);
    assert_eq!(SecretRing::MAX_SECRETS, 4);
    assert_eq!(
        fingerprints(&full),
        SECRETS[..4].iter().map(|text| fingerprint(text)).collect::<Vec<_>>()
    );
    assert_eq!(full.current().fingerprint(), secret(SECRETS[0]).fingerprint());

    let error = full.clone().with_retired(secret(SECRETS[4])).unwrap_err();
    assert!(matches!(error, SecretError::RingFull), "{error:?}");
    for text in &SECRETS[..4] {
        let error = full.clone().with_retired(secret(text)).unwrap_err();
        assert!(matches!(error, SecretError::Repeated { .. }), "{error:?}");
        assert!(error.to_string().contains(&fingerprint(text)), "{error}");
    }
}

#[test]
fn fingerprints_are_pinned() {
    let pinned = [
        (SECRETS[0], "bc0e68ef4b17a55f"),
        (SECRETS[1], "873e362d8807e276"),
        (SECRETS[2], "cc75bdbb324442a5"),
        (SECRETS[3], "89b5d4a803f19bee"),
        // Begins with a zero, which has to be printed.
        (SECRETS[4], "0d2cc1389773c481"),
        (ACCENTED, "30086eb93b3c05d2"),
    ];
    for (text, expected) in pinned {
        let (one, again) = (secret(text).fingerprint(), secret(text).fingerprint());
        assert_eq!(one.to_string(), expected);
        assert_eq!(format!("{one:?}"), format!("SecretFingerprint({expected})"));
        assert_eq!(one, again);
        let same = |other: &&(&str, &str)| secret(other.0).fingerprint() == one;
        assert_eq!(pinned.iter().filter(same).count(), 1);
    }
}

#[test]
fn key_tags_are_pinned() {
    let signed = "lxk_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg";
    let pinned = [
        (SECRETS[0], "iX8OIpAP"),
        (SECRETS[1], "5rP1PD2S"),
        (SECRETS[2], "YusgiAsS"),
        (SECRETS[3], "oAauPhsk"),
        (SECRETS[4], "cuAxjN55"),
        (ACCENTED, "P1krGNGi"),
    ];
    for (signer, tag) in pinned {
        let key = format!("{signed}{tag}");
        let presented = PresentedKey::parse(&key).unwrap();
        for (text, _) in pinned {
            let accepted = Candidates::compute(&presented, &ring(&[text])).is_some();
            assert_eq!(accepted, text == signer, "{tag} under {text}");
        }
    }
}

/// The environment of a process is shared by its threads, so a child reads it: this test, run again
/// by itself with the marker set.
#[test]
fn from_env_reads_the_environment_of_the_process() {
    const MARKER: &str = "LEXIKON_AUTH_TEST_CHILD";
    const VARIABLES: [&str; 4] = [
        "API_KEY_SECRET",
        "API_KEY_SECRET_FILE",
        "API_KEY_SECRET_PREVIOUS",
        "API_KEY_SECRET_PREVIOUS_FILE",
    ];
    if std::env::var_os(MARKER).is_some() {
        match SecretRing::from_env() {
            Ok(ring) => println!("the ring is {}", fingerprints(&ring).join(" ")),
            Err(error) => println!("refused: {}", printed(&error)),
        }
        return;
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mounted");
    std::fs::write(&path, format!("{}\n", SECRETS[1])).unwrap();
    let file = path.to_str().expect("a UTF-8 path");
    let both = format!("the ring is {} {}", fingerprint(SECRETS[0]), fingerprint(SECRETS[1]));
    let cases = [
        (vec![], "refused: API_KEY_SECRET is not set".to_owned()),
        (vec![(VARIABLES[0], "changeme")], "refused: API_KEY_SECRET holds a placeholder".into()),
        (vec![(VARIABLES[0], SECRETS[0]), (VARIABLES[2], SECRETS[1])], both.clone()),
        (vec![(VARIABLES[0], SECRETS[0]), (VARIABLES[3], file)], both),
        (vec![(VARIABLES[1], file)], format!("the ring is {}\n", fingerprint(SECRETS[1]))),
    ];
    for (variables, expected) in cases {
        let mut child = Command::new(std::env::current_exe().unwrap());
        VARIABLES.iter().for_each(|name| _ = child.env_remove(name));
        let child = child
            .args([
                "--exact",
                "secrets::from_env_reads_the_environment_of_the_process",
                "--nocapture",
            ])
            .env(MARKER, "1")
            .envs(variables);
        let output = child.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(&expected), "{expected}: {text}");
        SECRETS.iter().for_each(|secret| assert_reveals_nothing(&text, secret));
    }
}
