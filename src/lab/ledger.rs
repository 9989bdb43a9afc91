//! lab::ledger - what was acknowledged, and what arrived, as append-only files.
//!
//! What: two kinds of file with records of fixed width, integers little-endian.
//!
//! | file | header | record, in bytes |
//! |---|---|---|
//! | injector | `PRLEDGA1` | id 8, at 8, fingerprint 16, recipients 2, kind 1, five 0: 40 |
//! | receiver | `PRLEDGB1` | id 8, at 8, fingerprint 16, source 16, domain 4, recipient 2, kind 1, 0: 56 |
//!
//! Times are nanoseconds of CLOCK_MONOTONIC, so that the two files of one host can be compared.
//! Why this way: a million records are read in a tenth of a second, and a file cut in the middle of
//! a record loses that record only.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use crate::lab::error::LabError;
use crate::lab::fingerprint::Fingerprint;
use crate::lab::identity::LoadId;
use crate::limits::LAB_LEDGER_BATCH;
use crate::time::Mono;

/// What the injector knows about a message it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SentKind {
    /// The final 250 was read: from now on the receiver is responsible.
    Acknowledged,
    /// The connection was lost between the end of the message and its reply: it may arrive, once.
    Unanswered,
}

/// One message, as its injector saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Which message.
    pub id: LoadId,
    /// When the reply was read, or the connection lost.
    pub at: Mono,
    /// Of the whole message as injected.
    pub fingerprint: Fingerprint,
    /// How many recipients were accepted; they are the first ones where some were refused: never,
    /// a message with a refused recipient is not sent.
    pub recipients: u16,
    /// What is known.
    pub kind: SentKind,
}

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrivalKind {
    /// The message, and the sink replied 250.
    Delivered,
    /// The message, but the sink hung up on purpose without a reply: the sender must try again.
    Unanswered,
    /// A delivery status notification: this recipient failed for good.
    Bounced,
    /// A delivery status notification: this recipient is late.
    Delayed,
}

/// One recipient of one message, as the sink saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Which message.
    pub id: LoadId,
    /// When its last byte was read.
    pub at: Mono,
    /// Of the message without the trace fields above it; zeros for a notification.
    pub fingerprint: Fingerprint,
    /// The address it came from.
    pub source: IpAddr,
    /// Which domain of the zone.
    pub domain: u32,
    /// Which recipient of the message.
    pub recipient: u16,
    /// What arrived.
    pub kind: ArrivalKind,
}

/// A record of fixed width.
pub trait Record: Sized {
    /// The first bytes of a file of such records.
    const MAGIC: [u8; 8];
    /// Bytes of one record.
    const LEN: usize;
    /// Appends the record.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads a record of exactly [`Record::LEN`] bytes; `None` where it cannot be one.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl Record for Sent {
    const MAGIC: [u8; 8] = *b"PRLEDGA1";
    const LEN: usize = 40;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.bits().to_le_bytes());
        out.extend_from_slice(&self.at.0.to_le_bytes());
        out.extend_from_slice(&self.fingerprint);
        out.extend_from_slice(&self.recipients.to_le_bytes());
        let kind = match self.kind {
            SentKind::Acknowledged => 1,
            SentKind::Unanswered => 2,
        };
        out.extend_from_slice(&[kind, 0, 0, 0, 0, 0]);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = bytes;
        let record = Self {
            id: LoadId::from_bits(u64::from_le_bytes(take(&mut at)?)),
            at: Mono(u64::from_le_bytes(take(&mut at)?)),
            fingerprint: take(&mut at)?,
            recipients: u16::from_le_bytes(take(&mut at)?),
            kind: match take::<1>(&mut at)? {
                [1] => SentKind::Acknowledged,
                [2] => SentKind::Unanswered,
                _ => return None,
            },
        };
        (take::<5>(&mut at)? == [0; 5] && at.is_empty()).then_some(record)
    }
}

impl Record for Arrival {
    const MAGIC: [u8; 8] = *b"PRLEDGB1";
    const LEN: usize = 56;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.bits().to_le_bytes());
        out.extend_from_slice(&self.at.0.to_le_bytes());
        out.extend_from_slice(&self.fingerprint);
        let source = match self.source {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        out.extend_from_slice(&source.octets());
        out.extend_from_slice(&self.domain.to_le_bytes());
        out.extend_from_slice(&self.recipient.to_le_bytes());
        let kind = match self.kind {
            ArrivalKind::Delivered => 1,
            ArrivalKind::Unanswered => 2,
            ArrivalKind::Bounced => 3,
            ArrivalKind::Delayed => 4,
        };
        out.extend_from_slice(&[kind, 0]);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = bytes;
        let record = Self {
            id: LoadId::from_bits(u64::from_le_bytes(take(&mut at)?)),
            at: Mono(u64::from_le_bytes(take(&mut at)?)),
            fingerprint: take(&mut at)?,
            source: IpAddr::V6(Ipv6Addr::from(take::<16>(&mut at)?)).to_canonical(),
            domain: u32::from_le_bytes(take(&mut at)?),
            recipient: u16::from_le_bytes(take(&mut at)?),
            kind: match take::<1>(&mut at)? {
                [1] => ArrivalKind::Delivered,
                [2] => ArrivalKind::Unanswered,
                [3] => ArrivalKind::Bounced,
                [4] => ArrivalKind::Delayed,
                _ => return None,
            },
        };
        (take::<1>(&mut at)? == [0] && at.is_empty()).then_some(record)
    }
}

fn take<const N: usize>(at: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = at.split_first_chunk::<N>()?;
    *at = rest;
    Some(*first)
}

/// Appends records to a file, in batches.
#[derive(Debug)]
pub struct LedgerWriter {
    file: File,
    batch: Vec<u8>,
}

impl LedgerWriter {
    /// Creates the file of records `R`, or empties it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create<R: Record>(path: &Path) -> io::Result<Self> {
        let mut file = File::create(path)?;
        file.write_all(&R::MAGIC)?;
        let batch = Vec::with_capacity(LAB_LEDGER_BATCH + R::LEN);
        Ok(Self { file, batch })
    }

    /// Appends one record; it is in the file after [`LedgerWriter::flush`], or when the batch is
    /// full.
    ///
    /// # Errors
    /// What the file system says.
    pub fn append<R: Record>(&mut self, record: &R) -> io::Result<()> {
        record.encode(&mut self.batch);
        if self.batch.len() >= LAB_LEDGER_BATCH {
            return self.flush();
        }
        Ok(())
    }

    /// Hands everything to the operating system. Not synced: the laboratory kills daemons, not
    /// hosts.
    ///
    /// # Errors
    /// What the file system says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.batch)?;
        self.batch.clear();
        Ok(())
    }
}

/// Reads the records of a file one by one, in little memory. A record cut at the end is not there.
#[derive(Debug)]
pub struct LedgerReader<R> {
    input: BufReader<File>,
    record: Vec<u8>,
    kind: std::marker::PhantomData<R>,
}

impl<R: Record> LedgerReader<R> {
    /// Opens a ledger.
    ///
    /// # Errors
    /// [`LabError::File`], or [`LabError::Ledger`] where the file is not a ledger of such records.
    pub fn open(path: &Path) -> Result<Self, LabError> {
        let failed = |error| LabError::File(path.to_owned(), error);
        let file = File::open(path).map_err(failed)?;
        let mut input = BufReader::with_capacity(1 << 20, file);
        let mut magic = [0; 8];
        match input.read_exact(&mut magic) {
            Ok(()) if magic == R::MAGIC => {}
            Ok(()) => return Err(LabError::Ledger(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(LabError::Ledger(path.to_owned()));
            }
            Err(error) => return Err(failed(error)),
        }
        let record = vec![0; R::LEN];
        Ok(Self {
            input,
            record,
            kind: std::marker::PhantomData,
        })
    }
}

impl<R: Record> Iterator for LedgerReader<R> {
    type Item = io::Result<R>;

    fn next(&mut self) -> Option<io::Result<R>> {
        match self.input.read_exact(&mut self.record) {
            Ok(()) => Some(R::decode(&self.record).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a record of the ledger is damaged",
                )
            })),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A directory of this test's own, removed afterwards.
    pub(crate) struct Scratch(pub(crate) PathBuf);

    impl Scratch {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("postrider-lab-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            if let Err(error) = std::fs::remove_dir_all(&self.0) {
                eprintln!("{}: {error}", self.0.display());
            }
        }
    }

    pub(crate) fn sent(number: u64) -> Sent {
        Sent {
            id: LoadId::new(7, number),
            at: Mono(1_000 * number),
            fingerprint: [number as u8; 16],
            recipients: 2,
            kind: SentKind::Acknowledged,
        }
    }

    pub(crate) fn arrival(number: u64, recipient: u16) -> Arrival {
        Arrival {
            id: LoadId::new(7, number),
            at: Mono(1_000 * number + 500),
            fingerprint: [number as u8; 16],
            source: IpAddr::from([127, 0, 0, 9]),
            domain: 3,
            recipient,
            kind: ArrivalKind::Delivered,
        }
    }

    // Every field of both records comes back, and records that no encoder makes are refused.
    #[test]
    fn records_round_trip() {
        let mut bytes = Vec::new();
        for kind in [SentKind::Acknowledged, SentKind::Unanswered] {
            let record = Sent { kind, ..sent(99) };
            bytes.clear();
            record.encode(&mut bytes);
            assert_eq!(bytes.len(), Sent::LEN);
            assert_eq!(Sent::decode(&bytes), Some(record));
        }
        bytes[34] = 9;
        assert_eq!(Sent::decode(&bytes), None);
        assert_eq!(Sent::decode(&bytes[..39]), None);

        for (kind, source) in [
            (ArrivalKind::Delivered, IpAddr::from([127, 0, 0, 1])),
            (
                ArrivalKind::Unanswered,
                IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            ),
            (ArrivalKind::Bounced, IpAddr::from([10, 9, 8, 7])),
            (ArrivalKind::Delayed, IpAddr::from([10, 9, 8, 7])),
        ] {
            let record = Arrival {
                kind,
                source,
                ..arrival(5, 1)
            };
            bytes.clear();
            record.encode(&mut bytes);
            assert_eq!(bytes.len(), Arrival::LEN);
            assert_eq!(Arrival::decode(&bytes), Some(record));
        }
        bytes[54] = 0;
        assert_eq!(Arrival::decode(&bytes), None);
    }

    // A file reads back whole; cut in the middle of a record it loses that record only; a ledger of
    // the other kind is refused.
    #[test]
    fn files_round_trip_and_survive_a_cut() {
        let scratch = Scratch::new();
        let path = scratch.0.join("ledger");
        let mut writer = LedgerWriter::create::<Sent>(&path).unwrap();
        for number in 0..5_000 {
            writer.append(&sent(number)).unwrap();
        }
        writer.flush().unwrap();
        let read = |path: &Path| -> Vec<Sent> {
            LedgerReader::open(path)
                .unwrap()
                .collect::<io::Result<_>>()
                .unwrap()
        };
        let whole = read(&path);
        assert_eq!(whole, (0..5_000).map(sent).collect::<Vec<_>>());

        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(read(&path).len(), 4_999);
        assert!(matches!(
            LedgerReader::<Arrival>::open(&path),
            Err(LabError::Ledger(_))
        ));
        std::fs::write(&path, b"PR").unwrap();
        assert!(matches!(
            LedgerReader::<Sent>::open(&path),
            Err(LabError::Ledger(_))
        ));
    }
}
