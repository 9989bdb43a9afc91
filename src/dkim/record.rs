//! dkim::record - key pairs for operators and the DNS records that publish them.
//!
//! What: [`keygen`] makes a pair; [`PublicRecord`] reads a published TXT record (RFC 6376 3.6.1)
//! and says whether it belongs to a private key, for `postrider check dkim`.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{Ed25519KeyPair, RsaKeyPair};
use zeroize::Zeroizing;

use crate::dkim::base64;
use crate::dkim::der;
use crate::dkim::key::{Algorithm, KeyError, PrivateKey};

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA, what every receiver verifies.
    Rsa2048,
    /// RSA, for those who want more; its record needs TCP at some resolvers.
    Rsa4096,
    /// Ed25519, as the second signature; alone it is not enough (few receivers verify it).
    Ed25519,
}

/// A new pair.
pub struct NewKey {
    /// PKCS#8 in PEM. Write it with mode 0600.
    pub pem: Zeroizing<Vec<u8>>,
    /// The text of the TXT record, whole.
    pub record: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey")
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

impl NewKey {
    /// Writes the key to a new file with mode 0600; an existing file is never replaced. Blocks.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(&self.pem)?;
        file.sync_all()
    }
}

/// Makes a key pair.
pub fn keygen(kind: KeyKind) -> Result<NewKey, KeyError> {
    let failed = |_| KeyError::Rejected("the key could not be generated");
    let der: Pkcs8V1Der<'_> = match kind {
        KeyKind::Rsa2048 => RsaKeyPair::generate(KeySize::Rsa2048).and_then(|pair| pair.as_der()),
        KeyKind::Rsa4096 => RsaKeyPair::generate(KeySize::Rsa4096).and_then(|pair| pair.as_der()),
        KeyKind::Ed25519 => Ed25519KeyPair::generate().and_then(|pair| pair.as_der()),
    }
    .map_err(failed)?;
    let mut text = Zeroizing::new(Vec::with_capacity(der.as_ref().len() * 4 / 3 + 8));
    base64::encode(der.as_ref(), &mut text);
    let mut pem = Zeroizing::new(Vec::with_capacity(text.len() + text.len() / 64 + 64));
    pem.extend_from_slice(b"-----BEGIN PRIVATE KEY-----\n");
    for line in text.chunks(64) {
        pem.extend_from_slice(line);
        pem.push(b'\n');
    }
    pem.extend_from_slice(b"-----END PRIVATE KEY-----\n");
    let record = record_text(&PrivateKey::from_pem(&pem)?)?;
    Ok(NewKey { pem, record })
}

/// The text of the TXT record that publishes a key (RFC 6376 3.6.1, RFC 8463 4).
pub fn record_text(key: &PrivateKey) -> Result<String, KeyError> {
    let mut public = Vec::new();
    base64::encode(&key.public_key()?, &mut public);
    Ok(format!(
        "v=DKIM1; k={}; p={}",
        key.algorithm().key_type(),
        String::from_utf8_lossy(&public)
    ))
}

/// The record as a line of a zone file, split into strings of at most 255 octets (RFC 1035 3.3.14).
#[must_use]
pub fn zone_line(name: &str, record: &str) -> String {
    let mut line = format!("{name}. 3600 IN TXT (");
    for part in record.as_bytes().chunks(255) {
        line.push_str(" \"");
        // Records are ASCII without quotes or backslashes: base64, tags and names only.
        line.push_str(&String::from_utf8_lossy(part));
        line.push('"');
    }
    line.push_str(" )");
    line
}

/// A published key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicRecord {
    algorithm: Algorithm,
    key: Vec<u8>,
    testing: bool,
    strict: bool,
}

/// Why a published record does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// Not `tag=value; ...`, or `v=` is not DKIM1.
    Malformed,
    /// `p=` is empty: the key is revoked.
    Revoked,
    /// `k=` names an algorithm we do not sign with.
    KeyType,
    /// `h=` excludes sha256.
    Hash,
    /// `s=` excludes email.
    Service,
    /// `p=` is not the public key of the private one.
    Differs,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the record is not a DKIM key record",
            Self::Revoked => "the record says that the key is revoked (p= is empty)",
            Self::KeyType => "the record is for another kind of key (k=)",
            Self::Hash => "the record does not allow sha256 (h=)",
            Self::Service => "the record is not for email (s=)",
            Self::Differs => "the published key is not the public half of the private key",
        })
    }
}

impl std::error::Error for RecordError {}

impl PublicRecord {
    /// Reads the joined strings of a TXT record. RFC 6376 3.6.1: unknown tags are ignored.
    pub fn parse(record: &[u8]) -> Result<Self, RecordError> {
        let mut algorithm = Algorithm::RsaSha256;
        let (mut key, mut testing, mut strict) = (None, false, false);
        for (index, tag) in record.split(|byte| *byte == b';').enumerate() {
            let tag = tag.trim_ascii();
            if tag.is_empty() {
                continue;
            }
            let at = memchr::memchr(b'=', tag).ok_or(RecordError::Malformed)?;
            let (name, value) = (tag[..at].trim_ascii(), tag[at + 1..].trim_ascii());
            let mut words = value.split(|byte| *byte == b':').map(<[u8]>::trim_ascii);
            match name {
                b"v" if index == 0 && value == b"DKIM1" => {}
                b"v" => return Err(RecordError::Malformed),
                b"k" if value == b"rsa" => algorithm = Algorithm::RsaSha256,
                b"k" if value == b"ed25519" => algorithm = Algorithm::Ed25519Sha256,
                b"k" => return Err(RecordError::KeyType),
                b"h" if !words.any(|word| word == b"sha256") => return Err(RecordError::Hash),
                b"s" if !words.any(|word| word == b"*" || word == b"email") => {
                    return Err(RecordError::Service);
                }
                b"t" => {
                    let flags: Vec<_> = words.collect();
                    testing = flags.contains(&&b"y"[..]);
                    strict = flags.contains(&&b"s"[..]);
                }
                b"p" if key.is_some() => return Err(RecordError::Malformed),
                b"p" => key = Some(base64::decode(value).ok_or(RecordError::Malformed)?),
                _ => {}
            }
        }
        let key = key.ok_or(RecordError::Malformed)?;
        if key.is_empty() {
            return Err(RecordError::Revoked);
        }
        Ok(Self {
            algorithm,
            key,
            testing,
            strict,
        })
    }

    /// Proves that this record publishes the public half of `key`.
    pub fn matches(&self, key: &PrivateKey) -> Result<(), RecordError> {
        if self.algorithm != key.algorithm() {
            return Err(RecordError::KeyType);
        }
        let own = key.public_key().map_err(|_| RecordError::Differs)?;
        let same = match self.algorithm {
            // RFC 6376 says RSAPublicKey, the world publishes SubjectPublicKeyInfo: both count.
            Algorithm::RsaSha256 => {
                let published = der::rsa_public_key(&self.key).ok_or(RecordError::Malformed)?;
                Some(published) == der::rsa_public_key(&own)
            }
            Algorithm::Ed25519Sha256 => own == self.key,
        };
        same.then_some(()).ok_or(RecordError::Differs)
    }

    /// `t=y`: receivers may ignore signatures made with this key.
    #[must_use]
    pub fn is_testing(&self) -> bool {
        self.testing
    }

    /// `t=s`: the domain of `i=` must be exactly `d=`.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.strict
    }
}

/// Whether a published TXT record (strings joined) belongs to a private key.
pub fn published_key_matches(record: &[u8], key: &PrivateKey) -> Result<(), RecordError> {
    PublicRecord::parse(record)?.matches(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{
        KeyKind, PublicRecord, RecordError, base64, keygen, published_key_matches, zone_line,
    };
    use crate::dkim::key::{Algorithm, KeyError, PrivateKey};

    // A generated pair is readable, its record matches it and nobody else's.
    #[test]
    fn generated_records_match_their_keys() {
        let mut made = Vec::new();
        for (kind, bits) in [(KeyKind::Rsa2048, 2048), (KeyKind::Ed25519, 256)] {
            for _ in 0..2 {
                let new = keygen(kind).unwrap();
                let key = PrivateKey::from_pem(&new.pem).unwrap();
                assert_eq!(key.bits(), bits);
                assert_eq!(published_key_matches(new.record.as_bytes(), &key), Ok(()));
                made.push((key, new.record));
            }
        }
        for (index, (key, _)) in made.iter().enumerate() {
            for (_, record) in made
                .iter()
                .enumerate()
                .filter(|one| one.0 != index)
                .map(|one| one.1)
            {
                assert!(published_key_matches(record.as_bytes(), key).is_err());
            }
        }
    }

    // RFC 6376 text says RSAPublicKey, the world publishes SubjectPublicKeyInfo: both match.
    #[test]
    fn both_public_forms_match() {
        let new = keygen(KeyKind::Rsa2048).unwrap();
        let key = PrivateKey::from_pem(&new.pem).unwrap();
        let spki = key.public_key().unwrap();
        let mut bare = b"v=DKIM1; p=".to_vec();
        // The SubjectPublicKeyInfo of RSA-2048 has 24 octets before the RSAPublicKey.
        base64::encode(&spki[24..], &mut bare);
        assert_eq!(published_key_matches(&bare, &key), Ok(()));
    }

    // What other publishers write, and what is wrong with it.
    #[test]
    fn records_are_judged() {
        let ed = "p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
        for (text, expected) in [
            (format!("v=DKIM1; k=ed25519; {ed}"), None),
            (format!("k=ed25519;{ed};"), None),
            (
                format!(" k = ed25519 ; n=note; h=sha1:sha256; s=email; t=s:y; {ed}"),
                None,
            ),
            (format!("v=DKIM2; {ed}"), Some(RecordError::Malformed)),
            (
                format!("k=ed25519; v=DKIM1; {ed}"),
                Some(RecordError::Malformed),
            ),
            (format!("v=DKIM1; k=dsa; {ed}"), Some(RecordError::KeyType)),
            (format!("v=DKIM1; h=sha1; {ed}"), Some(RecordError::Hash)),
            (
                format!("v=DKIM1; s=tlsrpt; {ed}"),
                Some(RecordError::Service),
            ),
            (format!("v=DKIM1; {ed}; {ed}"), Some(RecordError::Malformed)),
            ("v=DKIM1; k=rsa; p=".to_owned(), Some(RecordError::Revoked)),
            ("v=DKIM1; k=rsa".to_owned(), Some(RecordError::Malformed)),
            ("v=DKIM1; p=%%".to_owned(), Some(RecordError::Malformed)),
            ("v=spf1 -all".to_owned(), Some(RecordError::Malformed)),
        ] {
            assert_eq!(
                PublicRecord::parse(text.as_bytes()).err(),
                expected,
                "{text}"
            );
        }
        let record = PublicRecord::parse(format!("k=ed25519; t=s:y; {ed}").as_bytes()).unwrap();
        assert!(record.is_strict() && record.is_testing());
    }

    // Strings of at most 255 octets that join to the record.
    #[test]
    fn zone_lines_are_split() {
        let record = keygen(KeyKind::Rsa2048).unwrap().record;
        let line = zone_line("s._domainkey.example.com", &record);
        let strings: Vec<_> = line.split('"').skip(1).step_by(2).collect();
        assert!(strings.len() > 1 && strings.iter().all(|text| text.len() <= 255));
        assert_eq!(strings.concat(), record);
    }

    // Written with mode 0600, never over another file; a file that others can read is refused.
    #[test]
    fn key_files_are_private() {
        let directory = std::env::temp_dir().join(format!("postrider-key-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("key.pem");
        let new = keygen(KeyKind::Ed25519).unwrap();
        new.write(&path).unwrap();
        assert!(new.write(&path).is_err());
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let (key, _) = PrivateKey::load(&path).unwrap();
        assert_eq!(key.algorithm(), Algorithm::Ed25519Sha256);
        for mode in [0o640, 0o604, 0o620, 0o610] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let refused = PrivateKey::load(&path).unwrap_err();
            assert!(matches!(refused, KeyError::Permissions { mode: found } if found == mode));
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
