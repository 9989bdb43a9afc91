//! shard - wires one core: the engine, the spools, the brain, the services.
//!
//! Everything here lives on one thread and is reached from others only through its mailbox. Generic
//! over the port, so that the simulator boots the very same shard.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::AlarmText;
use crate::config::Snapshot;
use crate::engine::mesh::MailReceiver;
use crate::engine::{Class, NetError, Port};
use crate::limits;
use crate::queue::Queue;
use crate::service::dispatch::{Dispatch, Settings};
use crate::service::mesh::{Mesh, OperatorRequest, ShardMessage, ShardStatus};
use crate::service::resolver::{Ask, Resolver};
use crate::service::smtpd::{self, Listener, Sessions};
use crate::service::spooler::{LoadCursor, Spooler, SpoolerConfig, SpoolError};
use crate::settings;
use crate::time::Mono;

/// What one shard is told at boot.
pub struct Plan {
    /// Its number, from 0.
    pub number: u16,
    /// How many shards the node has.
    pub shards: u16,
    /// Spools in its care: its own number first, then those of shards that are no more.
    pub spools: Vec<u16>,
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// The mailboxes of all shards.
    pub mesh: Mesh,
    /// How to put a question to the DNS.
    pub ask: Ask,
}

/// Why a shard could not start.
#[derive(Debug)]
pub enum BootError {
    /// A spool could not be opened or recovered.
    Spool(SpoolError),
    /// A listener could not be opened.
    Listen(SocketAddr, NetError),
}

/// A shard that is ready to run.
pub struct Shard<P: Port> {
    port: P,
    dispatch: Rc<Dispatch<P>>,
    spools: Vec<(u16, Spooler<P>)>,
    cursors: Vec<LoadCursor>,
    sessions: Rc<Sessions>,
    listening: Vec<SocketAddr>,
}
