//! room - what a brain does where other shards send on the same path: ask for room, and make it.
//!
//! What: the rules of [`super::grants`] applied to connections. A shard that finds no room tells
//! the others once (`AskForRoom`) and looks again each `limits::QUEUE_ROOM_LOOK`, by the path's own
//! timer, until it has what it lacks or its mail is gone. A shard that is asked closes idle
//! connections; busy ones end after their message (`Free`).

use crate::limits::QUEUE_ROOM_LOOK;
use crate::time::Mono;

use super::Queue;
use super::connection::{Available, Phase};
use super::event::{Action, PathId};

impl<T> Queue<T> {
    /// A path would open `lacks` connections, but other shards hold them.
    pub(super) fn wait_for_room(
        &mut self,
        index: u32,
        lacks: u64,
        now: Mono,
        actions: &mut Vec<Action>,
    ) {
        let Some(share) = &mut self.paths.at_mut(index).share else {
            return;
        };
        if share.wait(u32::try_from(lacks).unwrap_or(u32::MAX)) {
            let path = self.paths.id(index);
            actions.push(Action::AskForRoom { path });
        }
        self.schedule(index, now.after(QUEUE_ROOM_LOOK));
    }

    /// A path's timer has come.
    pub(super) fn look(&mut self, index: u32, now: Mono, actions: &mut Vec<Action>) {
        if let Some(share) = &mut self.paths.at_mut(index).share {
            share.begin_look();
        }
        self.pump(index, now, actions);
        if let Some(share) = &mut self.paths.at_mut(index).share {
            share.end_look();
        }
        self.make_room(index, now, actions);
    }

    /// Another shard asks for room.
    pub(super) fn asked_for_room(&mut self, id: PathId, now: Mono, actions: &mut Vec<Action>) {
        match self.paths.find(id) {
            Some(index) => self.make_room(index, now, actions),
            None => self.stale_events += 1,
        }
    }

    /// Closes idle connections that others need: at once where this shard has more than its fair
    /// share, else those that have been idle for a look. At most `QUEUE_PATH_CONNECTIONS_MAX` are
    /// looked at, and nothing where nobody waits.
    fn make_room(&mut self, index: u32, now: Mono, actions: &mut Vec<Action>) {
        if !self.is_waited_for(index) {
            return;
        }
        let mut rest = false;
        // From the back: the longest unused one first.
        let mut next = self.paths.at(index).available.last();
        while let Some(connection) = next {
            let available = self.paths.at(index).available;
            next = available.before(&mut Available(&mut self.connections), connection);
            if !self.connections.is_idle(connection) {
                continue;
            }
            let idle_since = self.connections.at(connection).idle_since;
            let is_old = idle_since.after(QUEUE_ROOM_LOOK) <= now;
            if self.gives_way(index) || (is_old && self.is_wanted(index)) {
                self.close(connection, actions);
            } else {
                rest = true;
            }
        }
        if rest {
            self.schedule(index, now.after(QUEUE_ROOM_LOOK));
        }
    }

    /// Looks later at a connection that has become idle, where others may need it by then.
    pub(super) fn watch_idle(&mut self, connection: u32, path: u32, now: Mono) {
        if self.connections.is_idle(connection) && self.is_waited_for(path) {
            self.schedule(path, now.after(QUEUE_ROOM_LOOK));
        }
    }

    /// Whether a busy connection of this path must end after its message, for another shard.
    pub(super) fn gives_way(&self, index: u32) -> bool {
        let path = self.paths.at(index);
        let share = path.share.as_ref();
        share.is_some_and(|share| share.gives_way(path.leaving))
    }

    fn is_wanted(&self, index: u32) -> bool {
        let path = self.paths.at(index);
        let share = path.share.as_ref();
        share.is_some_and(|share| share.is_wanted(path.leaving))
    }

    fn is_waited_for(&self, index: u32) -> bool {
        let share = self.paths.at(index).share.as_ref();
        share.is_some_and(|share| share.others_lack() > 0)
    }

    /// Nothing more is assigned to a connection.
    pub(super) fn leave(&mut self, index: u32) {
        let place = self.connections.at_mut(index);
        assert!(
            place.phase == Phase::Open || place.phase == Phase::Closing,
            "only what is open can leave"
        );
        if !place.leaving {
            place.leaving = true;
            let path = place.path;
            self.paths.at_mut(path).leaving += 1;
        }
    }
}
