//! Simulated nodes: a whole fleet in one process, speaking the real protocol
//! to a real broker, with faults as wanted.
//!
//! ```text
//! cli ── enrol (HTTP, as an agent) ── fleet ── session, one a node ── NATS
//!                                                 │
//!                                    node (pure): gate, journal, fate ── witness
//! ```
//!
//! - [`node`] decides as an agent does, and verifies each request for itself:
//!   nothing that is verified is shared between nodes.
//! - [`session`] lends it a connection, timers and answers.
//! - [`chance`] draws faults from a seed; [`witness`] counts what really
//!   happened, apart from the nodes' own journals.
//! - [`floor`] measures what no fleet can be quicker than, and [`bench`] the
//!   whole of muster against it.
//!
//! - [`hypervisors`] are whole agents of this process, whose libvirt is in
//!   memory.
//!
//! Nothing is executed: an effect is a mark of the witness, or a machine that
//! is in memory alone.

pub mod bench;
pub mod chance;
pub mod cli;
pub mod connection;
pub mod enrol;
pub mod fleet;
pub mod floor;
pub mod hypervisors;
pub mod journal;
pub mod limits;
pub mod node;
pub mod orders;
pub mod pattern;
pub mod server;
pub mod session;
pub mod store;
pub mod timers;
pub mod witness;

pub use cli::main;
