//! release - a message in quarantine becomes a new one, and once only, whatever fails on the way.
//!
//! What: before the new message is written, a note names both: `release-OLD-NEW.note`, an empty
//! file. The new one is handed to nobody before the file in quarantine is gone for good. So, as
//! long as that file is there, the spool knows of each note what came of it: the new message waits,
//! and only the file is to be removed; or it was never stored.
//! Why this way: the two are in different files, and a crash may come between them.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::engine::{OpenMode, Port};
use crate::limits;
use crate::message::{Content, Envelope, MessageId};
use crate::spool::Stored;
use crate::spool::quarantine::Note;
use crate::time::Wall;

use super::{Inner, ReleaseError, Spooler};

/// How long the new message waits when the file in quarantine cannot be removed.
const FINISH_PAUSE: Duration = Duration::from_secs(5);

/// What came of a release.
#[derive(Debug)]
pub enum Released {
    /// A new message, to be sent.
    Now(Stored, Envelope, Content),
    /// An earlier try had stored this one; it is sent as what a start finds.
    Before(MessageId),
}

/// The releases of one spool.
#[derive(Debug, Default)]
pub(super) struct Releases {
    notes: BTreeSet<Note>,
    /// Notes of earlier lives that nothing is known of yet.
    unjudged: Vec<Note>,
    /// What is being released now.
    under_way: BTreeSet<MessageId>,
}

impl Releases {
    /// With the notes that a directory holds.
    pub(super) fn found(names: &[String]) -> Self {
        let notes = names.iter().filter_map(|name| Note::parse_file_name(name));
        let notes: BTreeSet<Note> = notes.collect();
        Self {
            unjudged: notes.iter().copied().collect(),
            notes,
            under_way: BTreeSet::new(),
        }
    }

    fn of(&self, old: MessageId) -> Vec<Note> {
        let notes = self.notes.iter().filter(|note| note.old == old);
        notes.copied().collect()
    }

    fn of_new(&self, new: MessageId) -> Option<Note> {
        self.notes.iter().find(|note| note.new == new).copied()
    }
}

impl<P: Port> Spooler<P> {
    /// Takes a message out of quarantine, for those who waited, as a new one with this date.
    ///
    /// # Errors
    /// See [`ReleaseError`].
    pub async fn release(&self, old: MessageId, now: Wall) -> Result<Released, ReleaseError> {
        if !self.0.releases.borrow_mut().under_way.insert(old) {
            return Err(ReleaseError::UnderWay);
        }
        let result = self.release_alone(old, now).await;
        self.0.releases.borrow_mut().under_way.remove(&old);
        result
    }

    async fn release_alone(&self, old: MessageId, now: Wall) -> Result<Released, ReleaseError> {
        let (envelope, content) = self.quarantined_message(old).await?;
        if self.has(old) {
            // That it is in quarantine is not durable yet.
            return Err(ReleaseError::UnderWay);
        }
        let notes = self.0.releases.borrow().of(old);
        if let Some(note) = notes.iter().find(|note| self.has(note.new)) {
            self.finish(*note).await;
            return Ok(Released::Before(note.new));
        }
        let unknown = !notes.is_empty() && self.0.core.borrow().hides_mail();
        if unknown || self.0.releases.borrow().notes.len() >= limits::RELEASE_NOTES_MAX {
            tracing::error!(id = %old, "not released: earlier tries are to be judged first");
            return Err(ReleaseError::Io);
        }
        let note = Note {
            old,
            new: self.next_id(),
        };
        self.0.releases.borrow_mut().notes.insert(note);
        self.0.write_note(note).await.map_err(|error| {
            tracing::error!(id = %old, %error, "not released: no note of it could be written");
            ReleaseError::Io
        })?;
        // Where this fails the note stays: the message may be there all the same after a crash.
        let stored = self.append(note.new, &envelope, &content, now).await;
        let stored = stored.map_err(|_| ReleaseError::Io)?;
        self.finish(note).await;
        Ok(Released::Now(stored, envelope, content))
    }

    /// Ends a release whose new message is stored. It is not sent before.
    async fn finish(&self, note: Note) {
        while let Err(error) = self.try_to_finish(note).await {
            tracing::error!(id = %note.old, %error, "a release waits for the disk");
            let port = &self.0.port;
            port.sleep_until(port.now().after(FINISH_PAUSE)).await;
        }
    }

    async fn try_to_finish(&self, note: Note) -> io::Result<()> {
        self.discard(note.old).await?;
        // Also where it was an earlier try that removed the file.
        self.0.port.sync_directory(&self.0.directory).await?;
        let notes = self.0.releases.borrow().of(note.old);
        for note in notes {
            self.0.forget(note).await;
        }
        Ok(())
    }

    /// A message is about to be handed over that a start found. If it was released from quarantine,
    /// that must have ended; false while the disk does not let it.
    pub(super) async fn may_be_handed_over(&self, new: MessageId) -> bool {
        let note = self.0.releases.borrow().of_new(new);
        let Some(note) = note else { return true };
        let finished = self.try_to_finish(note).await;
        if let Err(error) = &finished {
            tracing::error!(id = %note.old, %error, "a release waits for the disk");
        }
        finished.is_ok()
    }

    /// All that a start found has been handed over: forgets the notes of earlier lives whose new
    /// messages were never stored.
    pub(super) async fn judge_notes(&self) {
        if self.0.core.borrow().hides_mail() {
            return;
        }
        let unjudged = std::mem::take(&mut self.0.releases.borrow_mut().unjudged);
        for note in unjudged {
            if !self.has(note.new) {
                self.0.forget(note).await;
            }
        }
    }
}

impl<P: Port> Inner<P> {
    fn note_path(&self, note: Note) -> PathBuf {
        self.directory.join(note.file_name())
    }

    async fn write_note(&self, note: Note) -> io::Result<()> {
        self.port.open(&self.note_path(note), OpenMode::Create)?;
        self.port.sync_directory(&self.directory).await
    }

    /// Forgets a note. One that comes back after a crash says nothing: its new message is not there
    /// any more, or its old one, and ids are not given out again.
    async fn forget(&self, note: Note) {
        self.releases.borrow_mut().notes.remove(&note);
        match self.port.remove(&self.note_path(note)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(id = %note.old, %error, "a note of a release stays");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
