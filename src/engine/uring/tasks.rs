//! The tasks of a shard: a slab, polled in the order of their wakes; deliveries after everything
//! else, and for as long as everything else took.
//!
//! Why: a retry storm keeps dozens of deliveries ready at all times. In one queue with them a
//! session's turn comes after all of theirs, four times per message: the accept p99 rose from 2 to
//! 22 ms. With slices a session waits for one of those. Deliveries have half of the time at least,
//! so that mail coming in at full speed does not pile up.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use slab::Slab;

use super::remote::{Ready, Shared, TaskHeader};
use crate::engine::Class;
use crate::limits::{PATIENT_SLICE, TASKS_PER_TURN};
use crate::time::Mono;

/// How many deliveries are polled between two looks at the clock.
const PATIENT_POLLS: usize = 4;

/// The index that the main future's header carries instead of a slot.
pub(crate) const MAIN: u32 = u32::MAX;

type Work = Pin<Box<dyn Future<Output = ()>>>;

struct Slot {
    header: Arc<TaskHeader>,
    class: Class,
    // None while it is being polled.
    work: Option<Work>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Tasks {
    slots: RefCell<Slab<Slot>>,
}

impl Tasks {
    /// Adds a task and queues it for its first poll.
    pub(crate) fn spawn(&self, shared: &Arc<Shared>, class: Class, work: Work) {
        let mut slots = self.slots.borrow_mut();
        let entry = slots.vacant_entry();
        let (index, patient) = (entry.key() as u32, class.is_patient());
        let header = Arc::new(TaskHeader::new(Arc::clone(shared), index, patient));
        entry.insert(Slot {
            header: Arc::clone(&header),
            class,
            work: Some(work),
        });
        header.wake();
    }

    /// Polls what is ready, at most a batch. True when the main future is to be polled.
    pub(crate) fn run(&self, shared: &Shared, clock: impl Fn() -> Mono) -> bool {
        let mut main = false;
        let waiting = |ready: &mut Ready| (ready.prompt.len(), ready.patient.len());
        let (prompt, patient) = shared.ready.with(waiting).unwrap_or((0, 0));
        let began = if patient > 0 { clock() } else { Mono::NEVER };
        for _ in 0..prompt.min(TASKS_PER_TURN) {
            let Some(header) = shared
                .ready
                .with(|ready| ready.prompt.pop_front())
                .flatten()
            else {
                break;
            };
            header.dequeued();
            if header.index == MAIN {
                main = true;
            } else {
                self.poll(header);
            }
        }
        if patient > 0 {
            let now = clock();
            let end = now.after(now.since(began).max(PATIENT_SLICE));
            self.run_patient(shared, patient.min(TASKS_PER_TURN), end, clock);
        }
        main
    }

    /// Polls at most `most` deliveries, until `end`.
    fn run_patient(&self, shared: &Shared, most: usize, end: Mono, clock: impl Fn() -> Mono) {
        for polled in 1..=most {
            let Some(header) = shared
                .ready
                .with(|ready| ready.patient.pop_front())
                .flatten()
            else {
                return;
            };
            header.dequeued();
            self.poll(header);
            if polled % PATIENT_POLLS == 0 && clock() >= end {
                return;
            }
        }
    }

    /// Ends all tasks where they stand, and those that they start meanwhile.
    pub(crate) fn drop_all(&self) {
        loop {
            let slots = std::mem::take(&mut *self.slots.borrow_mut());
            if slots.is_empty() {
                return;
            }
            for (_, slot) in slots {
                let class = slot.class;
                report(
                    class,
                    catch_unwind(AssertUnwindSafe(|| drop(slot.work))).err(),
                );
            }
        }
    }

    fn poll(&self, header: Arc<TaskHeader>) {
        let index = header.index as usize;
        let (mut work, class) = {
            let mut slots = self.slots.borrow_mut();
            // A wake that outlived its task must not poll the slot's next one.
            let slot = slots
                .get_mut(index)
                .filter(|slot| Arc::ptr_eq(&slot.header, &header));
            let Some((work, class)) = slot.and_then(|slot| Some((slot.work.take()?, slot.class)))
            else {
                return;
            };
            (work, class)
        };
        let waker = Waker::from(header);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
            match polled {
                Poll::Pending => Some(work),
                Poll::Ready(()) => {
                    drop(work);
                    None
                }
            }
        }));
        let mut slots = self.slots.borrow_mut();
        match polled {
            Ok(Some(work)) => match slots.get_mut(index) {
                Some(slot) => slot.work = Some(work),
                None => debug_assert!(false, "a slot lives as long as its task"),
            },
            Ok(None) => drop(slots.try_remove(index)),
            Err(panic) => {
                drop(slots.try_remove(index));
                drop(slots);
                report(class, Some(panic));
            }
        }
    }
}

/// Logs a panic. Where the node cannot do without the task the process ends: a spool whose
/// bookkeeping is wrong could acknowledge mail that is not stored, and without its signer, its
/// clock or its mailbox a shard would stand still with everybody's mail.
fn report(class: Class, panic: Option<Box<dyn Any + Send>>) {
    let Some(panic) = panic else { return };
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    tracing::error!(?class, panic = text, "a task panicked");
    if !class.is_expendable() {
        std::process::abort();
    }
}
