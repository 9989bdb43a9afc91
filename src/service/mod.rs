//! service - thin drivers on the port: they move bytes between the engine and the pure machines.

pub mod delivery;
pub mod dispatch;
pub mod held;
pub mod mesh;
pub mod resolver;
pub mod smtpd;
pub mod spooler;
