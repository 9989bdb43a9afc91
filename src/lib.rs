//! Postrider: an outbound mail appliance. This page is the map of the house.
//!
//! | room | what it is for | may import |
//! |---|---|---|
//! | `limits` | every bound, with the sentence that justifies it | nothing |
//! | `time` | the two clocks, as values that pure code takes as arguments | nothing |
//! | `message` | the mail itself: addresses, envelope, content, header, trace, DSNs, status codes | `limits time` |
//! | `routing` | where mail goes: route table, MX rules, address plan, site roll-up; pure | `limits message time` |
//! | `queue` | who goes next and when: the brain, pure | `limits message routing spool time` |
//! | `engine` | the port that drivers are written against; `uring`, `sim`; `sys` has all unsafe code | `limits time` |

pub mod engine;
pub mod limits;
pub mod message;
pub mod queue;
pub mod routing;
pub mod time;
