//! Postrider: an outbound mail appliance. This page is the map of the house.
//!
//! | room | what it is for | may import |
//! |---|---|---|
//! | `admin` | the control socket: status, metrics, suspend and resume, by messages | `limits config message routing queue engine` |
//! | `cli` | the command line, one file per verb; wires | everything |
//! | `config` | the parameter table, the file, the checked snapshot; fills plain structs | everything below it |
//! | `limits` | every bound, with the sentence that justifies it | nothing |
//! | `time` | the two clocks, as values that pure code takes as arguments | nothing |
//! | `message` | the mail itself: addresses, envelope, content, header, trace, DSNs, status codes | `limits time` |
//! | `smtp` | the protocol, both ends, without I/O: command, reply, extension, data, server, client | `limits message time engine::pairs` |
//! | `routing` | where mail goes: route table, MX rules, address plan, site roll-up; pure | `limits message time` |
//! | `queue` | who goes next and when: the brain, pure | `limits message routing spool time` |
//! | `dkim` | keys, canonical hash, batch signer, 8-lane RSA | `limits message time engine::blanks engine::ifma` |
//! | `spool` | durable logs: nothing acknowledged is lost, nothing corrupt handed out | `limits message time engine::Block` |
//! | `service` | thin drivers on the port | `limits message smtp dkim routing spool queue engine time` |
//! | `engine` | the port that drivers are written against; `uring`, `sim`; `sys` has all unsafe code | `limits time` |
//! | `lab` | proves the daemon from outside: load generator, sink, ledgers, test DNS, demo | `limits time engine` |
//! | `settings` | the snapshot into the plain structs of the rooms below | everything below it |
//! | `shard` | wires one core; owns all state of that core | `config settings service` and below |
//! | `control` | the control thread: name resolution, admin calls | `admin config routing service` and below |
//! | `node` | boot order, mailboxes, drain, shutdown | everything below it |

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod dkim;
pub mod engine;
pub mod lab;
pub mod limits;
pub mod message;
pub mod node;
pub mod queue;
pub mod routing;
pub mod service;
pub mod settings;
pub mod shard;
pub mod smtp;
pub mod spool;
pub mod time;
