//! control::keys - key files that change while the node runs.
//!
//! Role: look at the files every few seconds, and at once when asked; where one has changed, load
//! all of them into a new ring and send it to every shard.
//! Limits: `limits::KEY_LOOK_EVERY` between looks; loading happens on a thread that may block.
//! Failure: what cannot be loaded leaves the old keys at work, is said once, and is tried again
//! with every look until it can (a mode that is put right does not show in the stamp).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::config::Snapshot;
use crate::dkim::{FileStamp, KeyRing};
use crate::limits;
use crate::service::mesh::{Mesh, ShardMessage};
use crate::settings;

/// The state of every key file, in the order of the configuration; none where it cannot be seen.
pub type KeyStamps = Vec<Option<FileStamp>>;

/// Looks at every key file of the configuration. Blocks.
#[must_use]
pub fn key_stamps(snapshot: &Snapshot) -> KeyStamps {
    snapshot
        .dkim
        .iter()
        .map(|entry| FileStamp::of(&entry.key).ok())
        .collect()
}

/// Watches the key files of a running node.
pub(super) struct KeyWatch {
    snapshot: Arc<Snapshot>,
    mesh: Mesh,
    /// The files as they were when they were last read.
    seen: KeyStamps,
    /// What was wrong with them, if something was.
    complaint: Option<String>,
}

impl KeyWatch {
    /// A watch over files that were as `seen` just before they were first read.
    pub(super) fn new(snapshot: Arc<Snapshot>, mesh: Mesh, seen: KeyStamps) -> Self {
        Self {
            snapshot,
            mesh,
            seen,
            complaint: None,
        }
    }

    /// Watches for ever; `asked` makes it read the files whether or not they seem to have changed.
    pub(super) async fn run(mut self, asked: Arc<Notify>) {
        loop {
            let forced = tokio::select! {
                () = tokio::time::sleep(limits::KEY_LOOK_EVERY) => false,
                () = asked.notified() => true,
            };
            if let Some(ring) = self.look(forced).await {
                self.send(&ring).await;
                tracing::info!(
                    keys = self.snapshot.dkim.len(),
                    "the DKIM keys were read again"
                );
            }
        }
    }

    /// The new ring, where there is reason for one.
    async fn look(&mut self, forced: bool) -> Option<Arc<KeyRing>> {
        let anyway = forced || self.complaint.is_some();
        let (snapshot, before) = (Arc::clone(&self.snapshot), self.seen.clone());
        let work = tokio::task::spawn_blocking(move || {
            // Stamps first: a change while the files are read is found by the next look.
            let stamps = key_stamps(&snapshot);
            let ring = (anyway || stamps != before).then(|| settings::key_ring(&snapshot));
            (stamps, ring)
        });
        let (stamps, ring) = match work.await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "reading the DKIM keys failed; the old keys stay");
                return None;
            }
        };
        self.seen = stamps;
        match ring? {
            Ok(ring) => {
                self.complaint = None;
                Some(Arc::new(ring))
            }
            Err(complaint) => {
                if forced || self.complaint.as_ref() != Some(&complaint) {
                    tracing::error!("{complaint}; the old keys stay");
                }
                self.complaint = Some(complaint);
                None
            }
        }
    }

    async fn send(&self, ring: &Arc<KeyRing>) {
        for mailbox in self.mesh.iter() {
            let mut letter = ShardMessage::Rekey(Arc::clone(ring));
            // The mailbox is full only for as long as the shard is busy; the keys must arrive.
            while let Err(returned) = mailbox.try_send(letter) {
                letter = returned;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config;
    use crate::dkim::{Choice, KeyKind, keygen};
    use crate::time::Wall;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn public_key(ring: &KeyRing) -> Vec<u8> {
        let Choice::Sign(signers) = ring.choose(Some("own.test"), Wall(0)) else {
            panic!("nobody signs")
        };
        signers[0].key().public_key().unwrap()
    }

    fn replace(path: &std::path::Path) {
        std::fs::remove_file(path).unwrap();
        keygen(KeyKind::Ed25519).unwrap().write(path).unwrap();
    }

    // An unchanged file is left alone; a new one makes a new ring; a bad one none, until it is
    // good.
    #[test]
    fn changes_are_found() {
        let name = format!("postrider-keywatch-{}", std::process::id());
        let scratch = Scratch(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&scratch.0).unwrap();
        let path = scratch.0.join("own.pem");
        keygen(KeyKind::Ed25519).unwrap().write(&path).unwrap();
        let text = format!(
            "[node]\nhostname = \"mta.own.test\"\n[[dkim]]\ndomain = \"own.test\"\n\
             selector = \"s1\"\nkey = \"{}\"\n",
            path.display()
        );
        let snapshot = Arc::new(config::parse(text.as_bytes()).unwrap().snapshot);
        let first = settings::key_ring(&snapshot).unwrap();
        let stamps = key_stamps(&snapshot);
        let mut watch = KeyWatch::new(snapshot, Arc::new([]), stamps);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut look = |forced| {
            runtime
                .block_on(watch.look(forced))
                .map(|ring| public_key(&ring))
        };
        assert_eq!(look(false), None);
        assert_eq!(look(true), Some(public_key(&first)));
        replace(&path);
        let second = look(false).unwrap();
        assert_ne!(second, public_key(&first));
        assert_eq!(look(false), None);
        std::fs::write(&path, "not a key").unwrap();
        assert_eq!(look(false), None);
        replace(&path);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .unwrap();
        assert_eq!(look(false), None);
        // The mode is no part of the stamp: a file that was refused is tried again all the same.
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        assert!(look(false).is_some_and(|third| third != second));
        assert_eq!(look(false), None);
    }
}
