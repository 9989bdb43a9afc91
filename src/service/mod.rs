//! service - thin drivers on the port: they move bytes, the machines they drive decide.

pub mod spooler;
