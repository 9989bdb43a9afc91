//! spooler::copy - reads a message that is to be copied forward.

use crate::engine::Port;
use crate::message::MessageId;
use crate::spool::{Extent, Place, ReadError};

use super::Spooler;
use super::read::Rescue;

impl<P: Port> Spooler<P> {
    /// The record of a message that was to be copied is damaged: what to say of it.
    async fn damaged_copy(&self, id: MessageId, extent: &Extent) -> ReadError {
        match self.0.rescue(id, extent).await {
            // Not there any more.
            Rescue::Moved => ReadError::Gone,
            Rescue::Later => ReadError::Io,
            Rescue::None => {
                if let Err(error) = self.0.quarantine(id, extent).await {
                    tracing::warn!(
                        %id, %error, "a damaged message could not be put into quarantine"
                    );
                }
                ReadError::Damaged
            }
        }
    }

    pub(super) async fn copy(&self, id: MessageId, from: Place) {
        let extent = self.0.core.borrow().copy_source(from);
        let read = match &extent {
            Some(extent) => self.0.record(id, extent).await,
            None => Err(ReadError::Gone),
        };
        let read = match (read, &extent) {
            (Err(ReadError::Damaged), Some(extent)) => Err(self.damaged_copy(id, extent).await),
            (read, _) => read,
        };
        let now = self.0.port.now();
        let mut core = self.0.core.borrow_mut();
        match &read {
            Ok(record) => {
                let read = (
                    record.envelope(),
                    record.content.clone(),
                    record.fixed.received_at,
                );
                core.copied(id, from, Ok(read), now);
            }
            Err(error) => core.copied(id, from, Err(*error), now),
        }
        drop(core);
        self.0.wake.raise();
    }
}
