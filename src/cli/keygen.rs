//! keygen - a DKIM key pair: the private half into a file, the public half as a DNS record.

use std::path::{Path, PathBuf};

use super::{Failure, print, print_json};
use crate::config::values::hostname;
use crate::dkim::record::zone_line;
use crate::dkim::{KeyKind, keygen};

/// Make a DKIM key and print the DNS record to publish
///
/// The private key goes into a new file that only its owner may read. Publish the record, add the
/// key to the configuration, wait until `postrider check dkim DOMAIN`, which reads the keys from
/// there, finds the record, then restart the daemon: it signs with the key from then on. To
/// rotate, leave the old key in the configuration beside the new one, and give the new one a
/// `not_before` at which its record is surely published everywhere (a day ahead, say) and the old
/// one a `not_after` there or later: the restart may then come at any time before.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    postrider keygen --domain example.com --selector s1\n  \
    postrider keygen --domain example.com --selector ed1 --algorithm ed25519 \
    --out /etc/postrider/dkim/ed1.pem")]
pub(super) struct Args {
    /// The domain that signs (d=)
    #[arg(long, value_name = "DOMAIN", value_parser = domain)]
    domain: String,
    /// The selector: a new one for every new key (s=)
    #[arg(long, value_name = "SELECTOR", value_parser = name)]
    selector: String,
    /// The kind of key; receivers verify RSA, few of them Ed25519 as well
    #[arg(long, value_enum, default_value = "rsa2048")]
    algorithm: Algorithm,
    /// The file of the private key, which must not exist [default: DOMAIN.SELECTOR.pem]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Algorithm {
    Rsa2048,
    Rsa4096,
    Ed25519,
}

impl Algorithm {
    fn kind(self) -> KeyKind {
        match self {
            Self::Rsa2048 => KeyKind::Rsa2048,
            Self::Rsa4096 => KeyKind::Rsa4096,
            Self::Ed25519 => KeyKind::Ed25519,
        }
    }
}

fn name(text: &str) -> Result<String, String> {
    hostname(text)
        .map(|name| name.to_string())
        .map_err(|error| error.to_string())
}

/// A name with a dot in it: a bare label signs nothing.
pub(super) fn domain(text: &str) -> Result<String, String> {
    let name = name(text)?;
    if !name.contains('.') {
        return Err("not a full domain name such as example.com".to_owned());
    }
    Ok(name)
}

pub(super) fn execute(args: &Args) -> Result<(), Failure> {
    let (domain, selector) = (&args.domain, &args.selector);
    let out = match &args.out {
        Some(path) => path.clone(),
        None => PathBuf::from(format!("{domain}.{selector}.pem")),
    };
    let file = std::path::absolute(&out).map_err(Failure::failed)?;
    let key = keygen(args.algorithm.kind()).map_err(Failure::failed)?;
    key.write(&file)
        .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", file.display())))?;
    let owner = format!("{selector}._domainkey.{domain}");
    let zone = zone_line(&owner, &key.record);
    let config = snippet(domain, selector, &file);
    if args.json {
        return print_json(&serde_json::json!({
            "file": file, "domain": domain, "selector": selector, "record_name": owner,
            "record": key.record, "zone_line": zone, "config": config,
        }));
    }
    print(&format!(
        "The private key is in {} (mode 0600; give it to the daemon's user).\n\n\
         1. Publish this record:\n\n{zone}\n\n\
         2. Add this to the configuration:\n\n{config}\n\
         Beside an older key of the domain add a not_before, when this record is surely published\n\
         everywhere, and give the older key a not_after there or later.\n\n\
         3. Prove that they match, then restart the daemon:\n\n\
         postrider check dkim {domain}\n",
        file.display()
    ))
}

/// The rows of the configuration, as they stand in the file.
fn snippet(domain: &str, selector: &str, file: &Path) -> String {
    let file = toml::Value::String(file.to_string_lossy().into_owned());
    format!("[[dkim]]\ndomain = \"{domain}\"\nselector = \"{selector}\"\nkey = {file}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    // The snippet is understood as it is, whatever the file is called.
    #[test]
    fn the_snippet_is_configuration() {
        for file in ["/etc/a.pem", "/tmp/a \"quoted\" \\ name.pem", "/tmp/a\nb"] {
            let text = format!("[node]\nhostname = \"mta.example\"\n{}", {
                snippet("example.com", "s1", Path::new(file))
            });
            let snapshot = config::parse(text.as_bytes()).unwrap().snapshot;
            assert_eq!(snapshot.dkim[0].key, Path::new(file));
            assert_eq!(&*snapshot.dkim[0].selector, "s1");
        }
    }

    #[test]
    fn names_are_judged() {
        assert_eq!(domain("Example.COM").as_deref(), Ok("example.com"));
        for text in ["", "localhost", "a b.example", "-a.example"] {
            assert!(domain(text).is_err(), "{text}");
        }
        assert!(name("2026-11").is_ok() && name("a;b").is_err());
    }
}
