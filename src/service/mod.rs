//! service - thin drivers on the port: they move bytes, the machines they drive decide.

pub mod balance;
pub mod budget;
pub mod dates;
pub mod delivery;
pub mod dispatch;
pub mod hands;
pub mod held;
pub mod mesh;
pub mod resolver;
pub mod signer;
pub mod smtpd;
pub mod spooler;
