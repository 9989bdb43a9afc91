//! config - one TOML file in, one immutable [`Snapshot`] out, or every mistake in the file at once.
//!
//! Nobody below this room knows that configuration exists: it fills plain structs.

mod snapshot;
pub mod values;

pub use snapshot::{
    Admin, Delivery, Dkim, Dns, Listener, Log, LogFormat, LogLevel, Node, Pool, PoolMember, Route,
    Shards, Snapshot, Source, Spool,
};
pub use values::{Cidr, DomainPattern, Host, HostPort, Rate};
