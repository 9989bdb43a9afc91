//! commands - the verbs that need no daemon: exit codes, help, and files that must stay right.

use std::process::Output;

use crate::harness::{Scratch, program};

fn words(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = program().args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code(), text(&stdout), text(&stderr))
}

#[test]
fn exit_codes_are_what_the_readme_says() {
    let scratch = Scratch::new();
    let good = scratch.file("good.toml", "[node]\nhostname = \"mta.example\"\n");
    let bad = scratch.file("bad.toml", "[node]\nhostnaem = \"mta.example\"\n");
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["check", "config", "--config", good], 0),
        (&["check", "config", "--describe"], 0),
        (&["check", "config", "--describe", "node.hostname"], 0),
        (&["check", "config", "--describe", "node.hostnaem"], 2),
        (&["check", "config", "--config", bad], 78),
        (&["check", "config", "--json", "--config", bad], 78),
        (&["check", "config", "--config", "/no/such/file"], 78),
        (&["ctl", "status", "--socket", "/no/such/socket"], 1),
        (&["ctl", "suspend", "--socket", "/no/such/socket"], 2),
        (&["no-such-verb"], 2),
        (&[], 2),
    ] {
        let (found, _, stderr) = words(arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {stderr}");
    }
}

#[test]
fn json_of_a_bad_configuration_has_place_and_name() {
    let scratch = Scratch::new();
    let bad = scratch.file(
        "bad.toml",
        "[node]\nhostname = \"mta.example\"\nshard = 1\n",
    );
    let (_, stdout, _) = words(&[
        "check",
        "config",
        "--json",
        "--config",
        bad.to_str().unwrap(),
    ]);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(json["errors"][0]["line"], 3);
    assert_eq!(json["errors"][0]["key"], "node.shard");
    assert_eq!(json["errors"][0]["nearest"], "shards");
}

// The example that the package installs is understood, and mentions every parameter.
#[test]
fn the_example_configuration_is_whole() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/appliance/postrider.toml");
    let (code, stdout, stderr) = words(&["check", "config", "--config", file]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!stdout.contains("warning"), "{stdout}");
    let text = std::fs::read_to_string(file).unwrap();
    for row in postrider::config::PARAMETERS {
        let key = format!("{} = ", row.name);
        assert!(text.contains(&key), "{} is not in the example", row.path());
    }
}
