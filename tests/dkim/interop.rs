//! dkimpy, opendkim-testmsg and Mail::DKIM as verifiers: `interop.py` runs them in a name space of
//! its own with a name server that knows our zone.

use std::path::Path;
use std::process::Command;

use postrider::dkim::{Canon, KeyKind, SignOptions};

use crate::corpus::{self, Zone, setup};

/// What the script returns when a tool is missing.
const MISSING: i32 = 77;

// All three accept the corpus, RSA and Ed25519, and none accepts a forgery.
#[test]
fn three_other_verifiers_agree() {
    let directory = std::env::temp_dir().join(format!("postrider-dkim-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let zone = write_messages(&directory);
    judge(&directory, &zone);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Runs the three over the files of a directory, with these records published: all must be as their
/// names say.
pub(crate) fn judge(directory: &Path, zone: &Zone) {
    let lines: String = zone
        .iter()
        .map(|(name, text)| format!("{name}\t{text}\n"))
        .collect();
    std::fs::write(directory.join("zone"), lines).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dkim/interop.py");
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "--mount", "python3"])
        .arg(script)
        .arg(directory)
        .output();
    let (code, text) = match &output {
        Ok(output) => (
            output.status.code(),
            String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned(),
        ),
        Err(error) => (Some(MISSING), format!("unshare: {error}")),
    };
    // Wherever a tool is missing, it is said; in CI, where all must be there, it is a failure.
    let missing = code == Some(MISSING) || text.contains("unshare failed");
    if missing && std::env::var_os("CI").is_none_or(|value| value != "true") {
        eprintln!("SKIPPED: {text}");
        return;
    }
    assert_eq!(
        code,
        Some(0),
        "messages are in {}\n{text}",
        directory.display()
    );
    println!("{text}");
}

/// A file that must verify.
pub(crate) fn write_pass(directory: &Path, kind: &str, number: usize, message: &[u8]) {
    // opendkim refuses what is no RFC 5322 message; the others look at signatures only.
    let odd = if corpus::repeats_a_single_field(message) {
        "-repeats"
    } else {
        ""
    };
    let name = format!("pass-{kind}{odd}-{number:03}.eml");
    std::fs::write(directory.join(name), message).unwrap();
}

/// Files that must not verify.
pub(crate) fn write_fail(directory: &Path, kind: &str, number: usize, forgeries: &[Vec<u8>]) {
    for (way, forged) in forgeries.iter().enumerate() {
        let name = format!("fail-{kind}-{number:03}-{way}.eml");
        std::fs::write(directory.join(name), forged).unwrap();
    }
}

fn write_messages(directory: &Path) -> Zone {
    let now = corpus::now();
    let options = SignOptions::default();
    let rsa = setup(&[("rsa1", KeyKind::Rsa2048)]);
    let ed25519 = setup(&[("ed1", KeyKind::Ed25519)]);
    let messages = corpus::messages();
    for (kind, setup, step) in [("rsa", &rsa, 1), ("ed25519", &ed25519, 7)] {
        let chosen: Vec<_> = messages.iter().step_by(step).cloned().collect();
        let signed = corpus::sign(setup, &options, Canon::Relaxed, &chosen, now);
        for (number, message) in signed.iter().enumerate() {
            write_pass(directory, kind, number, message);
        }
        for (number, message) in signed.iter().step_by(29).enumerate() {
            write_fail(directory, kind, number, &corpus::forgeries(message));
        }
    }
    [rsa.zone, ed25519.zone].concat()
}
