//! Promise: what we sign, others verify; what somebody adds afterwards, nobody accepts.
//!
//! Goal and method: a few hundred structurally nasty messages (`corpus`) are signed through the
//! public API and given to independent verifiers: mail-auth in process, and dkimpy,
//! opendkim-testmsg and Perl's Mail::DKIM as programs (`interop`). The same messages go through the
//! daemon, and what it delivers goes to the same four (`delivered`). Forgeries (a second From or
//! Subject, a changed body) must fail everywhere.

mod corpus;
mod delivered;
#[path = "../it/harness.rs"]
#[expect(dead_code, reason = "tests/it uses the rest of it")]
mod harness;
mod interop;
mod mailauth;
#[path = "../it/samples.rs"]
#[expect(dead_code, reason = "tests/it uses the rest of it")]
mod samples;
