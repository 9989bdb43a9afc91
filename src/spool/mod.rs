//! spool - temporary.
pub mod format;
mod types;
pub use types::*;
#[derive(Debug, Default)]
pub struct RecoveryReport {}
impl RecoveryReport { pub fn is_clean(&self) -> bool { true } }
impl std::fmt::Display for RecoveryReport { fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { Ok(()) } }
