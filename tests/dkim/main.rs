//! Promise: what we sign, others verify; what somebody adds afterwards, nobody accepts.
//!
//! Goal and method: a few hundred structurally nasty messages (`corpus`) are signed through the
//! public API and given to independent verifiers: mail-auth in process, and dkimpy,
//! opendkim-testmsg and Perl's Mail::DKIM as programs (`interop`). Forgeries (a second From or
//! Subject, a changed body) must fail everywhere.

mod corpus;
mod interop;
mod mailauth;
