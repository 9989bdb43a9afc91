//! dkim::key - private keys: reading, judging, keeping.
//!
//! What: [`PrivateKey`] from a PEM file (PKCS#1 `RSA PRIVATE KEY`, PKCS#8 `PRIVATE KEY`), RSA of
//! 2048 to 8192 bits or Ed25519. aws-lc-rs decides whether a key is valid (primes, exponents, the
//! CRT parts); what it refuses is refused here.
//! Security: the file must not be readable by group or others; key material is wiped when the key
//! and every temporary copy is dropped; no type with secrets prints them. Reads block: the control
//! thread loads keys, shards get them in a snapshot.
//! Standards: RFC 6376 3.3 and 3.6, RFC 8301 3.2 (at least 2048 bits for signing), RFC 8463.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use zeroize::Zeroizing;

use crate::dkim::base64;
use crate::dkim::der::{self, Pkcs8};
use crate::dkim::rsa::RsaKey;
use crate::limits;

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 6376 3.3.2).
    RsaSha256,
    /// PureEdDSA over the SHA-256 of the header (RFC 8463 3).
    Ed25519Sha256,
}

impl Algorithm {
    /// The value of the `a=` tag.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RsaSha256 => "rsa-sha256",
            Self::Ed25519Sha256 => "ed25519-sha256",
        }
    }

    /// The value of the `k=` tag of the DNS record.
    #[must_use]
    pub fn key_type(self) -> &'static str {
        match self {
            Self::RsaSha256 => "rsa",
            Self::Ed25519Sha256 => "ed25519",
        }
    }
}

/// Why a key cannot be used. Each text says what the operator can do.
#[derive(Debug)]
pub enum KeyError {
    /// The file cannot be read.
    Io(io::Error),
    /// The file's mode lets others read it.
    Permissions {
        /// The permission bits found.
        mode: u32,
    },
    /// Larger than any key.
    TooLarge,
    /// No PEM block of a kind that holds a private key.
    NotPem,
    /// A PEM block that needs a passphrase.
    Encrypted,
    /// A kind of key that DKIM does not have.
    Unsupported,
    /// PEM or DER is malformed.
    Malformed,
    /// An RSA key under 2048 bits.
    TooSmall {
        /// Its size.
        bits: usize,
    },
    /// The numbers do not make a valid key.
    Rejected(&'static str),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the key file cannot be read: {error}"),
            Self::Permissions { mode } => write!(
                f,
                "the key file has mode {mode:04o}: group or others can read it; chmod 0600 it"
            ),
            Self::TooLarge => f.write_str("the file is too large to be a private key"),
            Self::NotPem => f.write_str(
                "no private key found: want PEM with BEGIN PRIVATE KEY or BEGIN RSA PRIVATE KEY",
            ),
            Self::Encrypted => f.write_str(
                "the key is encrypted; write it without a passphrase \
                 (openssl pkey -in OLD -out NEW)",
            ),
            Self::Unsupported => {
                f.write_str("not an RSA or Ed25519 key; make one with postrider keygen")
            }
            Self::Malformed => f.write_str("the PEM text is damaged"),
            Self::TooSmall { bits } => write!(
                f,
                "an RSA key of {bits} bits: receivers no longer trust it (RFC 8301); rotate: make \
                 a 2048-bit key under a new selector with postrider keygen, publish its record, \
                 point the configuration at it, and leave the old record published for a week"
            ),
            Self::Rejected(why) => write!(f, "not a valid private key: {why}"),
        }
    }
}

impl std::error::Error for KeyError {}

impl From<io::Error> for KeyError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What tells one state of a key file from another; compared on reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl FileStamp {
    /// The stamp of the file as it is now. Blocks.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from_metadata(&std::fs::metadata(path)?))
    }

    fn from_metadata(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// A private key that signs. Shared by `Arc`; wiped when the last owner drops it.
pub struct PrivateKey(pub(crate) Secret);

pub(crate) enum Secret {
    Rsa(Box<RsaKey>),
    Ed25519(Box<Ed25519KeyPair>),
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PrivateKey({}, {} bits)",
            self.algorithm().as_str(),
            self.bits()
        )
    }
}

impl PrivateKey {
    /// Reads a key file and checks its permissions. Blocks.
    ///
    /// The mode is that of the opened file, so that nobody swaps it between check and read.
    pub fn load(path: &Path) -> Result<(Self, FileStamp), KeyError> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Permissions { mode });
        }
        if metadata.len() > limits::DKIM_KEY_FILE_BYTES_MAX {
            return Err(KeyError::TooLarge);
        }
        // One allocation: a buffer that grew would leave copies of the key behind in freed memory.
        let mut pem = Zeroizing::new(Vec::with_capacity(
            limits::DKIM_KEY_FILE_BYTES_MAX as usize + 1,
        ));
        file.take(limits::DKIM_KEY_FILE_BYTES_MAX)
            .read_to_end(&mut pem)?;
        Ok((Self::from_pem(&pem)?, FileStamp::from_metadata(&metadata)))
    }

    /// Reads the first private key of a PEM text.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let (label, body) = pem_block(pem)?;
        let der = Zeroizing::new(base64::decode(body).ok_or(KeyError::Malformed)?);
        match label {
            Label::Pkcs1 => Self::from_pkcs1(&der),
            Label::Pkcs8 => match der::pkcs8(&der).ok_or(KeyError::Malformed)? {
                Pkcs8::Rsa(key) => Self::from_pkcs1(key),
                Pkcs8::Ed25519 => Self::ed25519_from_pkcs8(&der),
                Pkcs8::Other => Err(KeyError::Unsupported),
            },
        }
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, KeyError> {
        RsaKey::from_pkcs1(der).map(|key| Self(Secret::Rsa(Box::new(key))))
    }

    fn ed25519_from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map_err(|rejected| KeyError::Rejected(rejected.description_()))?;
        Ok(Self(Secret::Ed25519(Box::new(pair))))
    }

    /// How this key signs.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match &self.0 {
            Secret::Rsa(_) => Algorithm::RsaSha256,
            Secret::Ed25519(_) => Algorithm::Ed25519Sha256,
        }
    }

    /// The size of the modulus; 256 for Ed25519.
    #[must_use]
    pub fn bits(&self) -> usize {
        match &self.0 {
            Secret::Rsa(key) => key.bits(),
            Secret::Ed25519(_) => 256,
        }
    }

    /// The octets of the `p=` tag before base64: SubjectPublicKeyInfo for RSA (what the world
    /// publishes; RFC 6376 errata 3017), the bare 32 octets for Ed25519 (RFC 8463 4).
    pub fn public_key(&self) -> Result<Vec<u8>, KeyError> {
        match &self.0 {
            Secret::Rsa(key) => {
                let der: PublicKeyX509Der<'_> = key
                    .pair()
                    .public_key()
                    .as_der()
                    .map_err(|_| KeyError::Rejected("its public half cannot be written"))?;
                Ok(der.as_ref().to_vec())
            }
            Secret::Ed25519(pair) => Ok(pair.public_key().as_ref().to_vec()),
        }
    }
}

enum Label {
    Pkcs1,
    Pkcs8,
}

/// The base64 body of the first PEM block that holds a private key. Text around it is ignored, as
/// openssl does; other blocks (certificates, parameters) are skipped.
fn pem_block(pem: &[u8]) -> Result<(Label, &[u8]), KeyError> {
    let mut rest = pem;
    while let Some(at) = memchr::memmem::find(rest, b"-----BEGIN ") {
        rest = &rest[at + b"-----BEGIN ".len()..];
        let end = memchr::memmem::find(rest, b"-----").ok_or(KeyError::Malformed)?;
        let (label, after) = (&rest[..end], &rest[end + 5..]);
        let stop = memchr::memmem::find(after, b"-----END ").ok_or(KeyError::Malformed)?;
        let body = &after[..stop];
        rest = &after[stop..];
        let label = match label {
            b"RSA PRIVATE KEY" => Label::Pkcs1,
            b"PRIVATE KEY" => Label::Pkcs8,
            b"ENCRYPTED PRIVATE KEY" => return Err(KeyError::Encrypted),
            _ if label.ends_with(b"PRIVATE KEY") => return Err(KeyError::Unsupported),
            _ => continue,
        };
        // RFC 1421 headers before the base64 text mean a passphrase ("Proc-Type: 4,ENCRYPTED").
        if memchr::memchr(b':', body).is_some() {
            return Err(KeyError::Encrypted);
        }
        return Ok((label, body));
    }
    Err(KeyError::NotPem)
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, KeyError, PrivateKey};
    use crate::dkim::record::{KeyKind, keygen};

    macro_rules! pem {
        ($name:literal) => {
            &include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/data/dkim/",
                $name,
                ".pem"
            ))[..]
        };
    }

    // PKCS#1 and PKCS#8, with text and other blocks around them.
    #[test]
    fn both_wrappings_are_read() {
        let pkcs1 = PrivateKey::from_pem(pem!("limbs_sparse")).unwrap();
        assert_eq!(
            (pkcs1.algorithm(), pkcs1.bits()),
            (Algorithm::RsaSha256, 2048)
        );
        let pkcs8 = keygen(KeyKind::Rsa2048).unwrap().pem;
        let other = b"notes: x\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let around = [&other[..], &pkcs8, b"more text"].concat();
        assert_eq!(PrivateKey::from_pem(&around).unwrap().bits(), 2048);
        let crlf = String::from_utf8(pkcs8.to_vec())
            .unwrap()
            .replace('\n', "\r\n");
        assert_eq!(PrivateKey::from_pem(crlf.as_bytes()).unwrap().bits(), 2048);
    }

    // A 1024-bit key is refused, and the text says how to rotate.
    #[test]
    fn small_keys_are_refused_with_the_way_out() {
        let refused = PrivateKey::from_pem(pem!("bits_1024")).unwrap_err();
        assert!(matches!(refused, KeyError::TooSmall { bits: 1024 }));
        let text = refused.to_string();
        assert!(
            text.contains("keygen") && text.contains("selector"),
            "{text}"
        );
    }

    // Each way of being no key has its own error.
    #[test]
    fn other_files_are_refused() {
        let block = |label: &str, body: &str| {
            let text = format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
            PrivateKey::from_pem(text.as_bytes()).unwrap_err()
        };
        assert!(matches!(block("CERTIFICATE", "AAAA"), KeyError::NotPem));
        assert!(matches!(
            block("ENCRYPTED PRIVATE KEY", "AAAA"),
            KeyError::Encrypted
        ));
        assert!(matches!(
            block("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\n\nAAAA"),
            KeyError::Encrypted
        ));
        assert!(matches!(
            block("EC PRIVATE KEY", "AAAA"),
            KeyError::Unsupported
        ));
        assert!(matches!(block("PRIVATE KEY", "AAAA"), KeyError::Malformed));
        assert!(matches!(block("PRIVATE KEY", "A*AA"), KeyError::Malformed));
        assert!(matches!(
            PrivateKey::from_pem(b"").unwrap_err(),
            KeyError::NotPem
        ));
        let cut = &pem!("limbs_full")[..900];
        assert!(matches!(
            PrivateKey::from_pem(cut).unwrap_err(),
            KeyError::Malformed
        ));
    }

    // A key whose numbers do not belong together is refused by aws-lc-rs, not signed with.
    #[test]
    fn inconsistent_numbers_are_refused() {
        let text = String::from_utf8(pem!("limbs_sparse").to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        // One character in the last quarter: inside dq or qinv.
        let line = lines[lines.len() - 4];
        let other = if line.as_bytes()[10] == b'A' {
            "B"
        } else {
            "A"
        };
        let damaged = text.replace(line, &format!("{}{other}{}", &line[..10], &line[11..]));
        assert_ne!(damaged, text);
        let refused = PrivateKey::from_pem(damaged.as_bytes()).unwrap_err();
        assert!(matches!(refused, KeyError::Rejected(_)), "{refused}");
    }

    // Nothing of a key is printed.
    #[test]
    fn debug_prints_no_secrets() {
        let key = PrivateKey::from_pem(pem!("limbs_full")).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(rsa-sha256, 2048 bits)");
    }
}
