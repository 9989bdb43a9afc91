//! held - a message in memory on its way out.
//!
//! What: the envelope and the content of one stored message, shared by reference between the shard
//! that stores it and the shards that deliver it, with what is made once per message (signatures).
//! Why this way: a fresh message is delivered from the memory it arrived in; a cold one borrows the
//! spool's map. Either way the bytes are never copied, and the memory that fresh messages hold is
//! bounded per shard: beyond the bound an entry carries no message and delivery reads the spool.

use std::sync::Arc;
use std::sync::OnceLock;

use bytes::Bytes;

use crate::engine::yield_now;
use crate::message::seven_bit::{self, Unconvertible};
use crate::message::{ArrivedBody, BodyType, Envelope, MessageId};
use crate::service::budget::{Budget, Charge, Turns};
use crate::time::Wall;

/// A message in memory, for as long as a delivery needs it.
#[derive(Debug)]
pub struct Held {
    /// Its queue id.
    pub id: MessageId,
    /// Who sent it, to whom.
    pub envelope: Envelope,
    /// Our trace field, the header and the body.
    pub content: Bytes,
    /// When it was accepted.
    pub received_at: Wall,
    /// The signature fields to put in front, made before the first attempt.
    pub signature: OnceLock<Bytes>,
    /// Whether any octet of the content is above 127.
    pub eight_bit: bool,
    /// The hash of the body, if it was taken while the message arrived. A body that was converted,
    /// or comes from the spool, has none.
    pub body: Option<ArrivedBody>,
    seven_bit: OnceLock<Result<Arc<Self>, Unconvertible>>,
    charge: Option<Charge>,
}

impl Held {
    /// A message whose content lies in the spool's map: it costs no memory of ours.
    #[must_use]
    pub fn mapped(id: MessageId, envelope: Envelope, content: Bytes, received_at: Wall) -> Self {
        let eight_bit = !content.is_ascii();
        Self::new(id, envelope, content, received_at, eight_bit)
    }

    /// A message of which it is known whether any octet of the content is above 127.
    #[must_use]
    pub fn new(
        id: MessageId,
        envelope: Envelope,
        content: Bytes,
        received_at: Wall,
        eight_bit: bool,
    ) -> Self {
        debug_assert_eq!(eight_bit, !content.is_ascii(), "told wrong about {id:?}");
        let signature = OnceLock::new();
        Self {
            id,
            envelope,
            content,
            received_at,
            signature,
            eight_bit,
            body: None,
            seven_bit: OnceLock::new(),
            charge: None,
        }
    }

    /// The message as a receiver with or without 8BITMIME takes it. It is converted in slices, one
    /// message at a time by `turns`: connections that wait for the same one do it once. A converted
    /// one has a signature of its own, and an envelope with nothing but the sender; it lives as
    /// long as the message.
    ///
    /// # Errors
    /// The message has octets above 127 that must stay, and the receiver does not take them.
    pub async fn for_receiver(
        self: &Arc<Self>,
        eight_bit_mime: bool,
        turns: &Turns,
    ) -> Result<Arc<Self>, Unconvertible> {
        if eight_bit_mime || !self.eight_bit {
            return Ok(Arc::clone(self));
        }
        // Boxed, so that the connections of receivers with 8BITMIME do not carry the room for it.
        Box::pin(self.convert(turns)).await
    }

    async fn convert(self: &Arc<Self>, turns: &Turns) -> Result<Arc<Self>, Unconvertible> {
        let _turn = turns.take(1).await;
        if let Some(form) = self.seven_bit.get() {
            return form.clone();
        }
        let pause: &seven_bit::Pause<'_> = &|| Box::pin(yield_now());
        let form = seven_bit::convert(&self.content, pause)
            .await
            .map(|content| {
                let envelope = Envelope {
                    sender: self.envelope.sender.clone(),
                    body: BodyType::SevenBit,
                    ..Envelope::default()
                };
                let content = Bytes::from(content);
                Arc::new(Self::new(
                    self.id,
                    envelope,
                    content,
                    self.received_at,
                    false,
                ))
            });
        // Another shard may have been first: both made the same, and its signature is there.
        drop(self.seven_bit.set(form.clone()));
        self.seven_bit.get().cloned().unwrap_or(form)
    }

    /// The converted form, where [`Self::for_receiver`] has made one.
    #[must_use]
    pub fn converted(&self) -> Option<&Arc<Self>> {
        self.seven_bit.get()?.as_ref().ok()
    }

    /// Makes a fresh message ready to share, and says whether the shard's budget has room to keep
    /// it in memory until its first attempt.
    #[must_use]
    pub fn fresh(mut self, budget: &Arc<Budget>) -> (Arc<Self>, bool) {
        self.charge = budget.charge(self.content.len());
        let room = self.charge.is_some();
        (Arc::new(self), room)
    }
}
