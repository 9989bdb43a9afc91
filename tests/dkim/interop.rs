//! dkimpy, opendkim-testmsg and Mail::DKIM as verifiers: `interop.py` runs them in a name space of
//! its own with a name server that knows our zone.

use std::path::Path;
use std::process::Command;

use postrider::dkim::{Canon, KeyKind, SignOptions};

use crate::corpus::{self, setup};

/// What the script returns when a tool is missing.
const MISSING: i32 = 77;

// All three accept the corpus, RSA and Ed25519, and none accepts a forgery.
#[test]
fn three_other_verifiers_agree() {
    let directory = std::env::temp_dir().join(format!("postrider-dkim-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    write_messages(&directory);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dkim/interop.py");
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "--mount", "python3"])
        .arg(script)
        .arg(&directory)
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
        std::fs::remove_dir_all(&directory).unwrap();
        return;
    }
    assert_eq!(
        code,
        Some(0),
        "messages are in {}\n{text}",
        directory.display()
    );
    println!("{text}");
    std::fs::remove_dir_all(&directory).unwrap();
}

fn write_messages(directory: &Path) {
    let now = corpus::now();
    let options = SignOptions::default();
    let rsa = setup(&[("rsa1", KeyKind::Rsa2048)]);
    let ed25519 = setup(&[("ed1", KeyKind::Ed25519)]);
    let zone = rsa.zone.iter().chain(&ed25519.zone);
    let lines: String = zone
        .map(|(name, text)| format!("{name}\t{text}\n"))
        .collect();
    std::fs::write(directory.join("zone"), lines).unwrap();
    let messages = corpus::messages();
    for (kind, setup, step) in [("rsa", &rsa, 1), ("ed25519", &ed25519, 7)] {
        let chosen: Vec<_> = messages.iter().step_by(step).cloned().collect();
        let signed = corpus::sign(setup, &options, Canon::Relaxed, &chosen, now);
        for (number, message) in signed.iter().enumerate() {
            // opendkim refuses what is no RFC 5322 message; the others look at signatures only.
            let odd = corpus::repeats_a_single_field(message);
            let kind = if odd {
                format!("{kind}-repeats")
            } else {
                kind.to_owned()
            };
            let name = format!("pass-{kind}-{number:03}.eml");
            std::fs::write(directory.join(name), message).unwrap();
        }
        for (number, message) in signed.iter().step_by(29).enumerate() {
            for (way, forged) in corpus::forgeries(message).iter().enumerate() {
                let name = format!("fail-{kind}-{number:03}-{way}.eml");
                std::fs::write(directory.join(name), forged).unwrap();
            }
        }
    }
}
