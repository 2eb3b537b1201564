//! When the store goes back in time.
//!
//! A broker writes everything into NATS, and NATS can forget: somebody puts
//! yesterday's directory back, a disk is replaced, a power cut takes the last
//! minutes. So each broker keeps a *twin* of it on its own disk.
//!
//! [`Past`] is what is known of times that were lost.

mod past;

pub use self::past::{Past, ReportAgain, Sign, StoredPast, WentBack};
