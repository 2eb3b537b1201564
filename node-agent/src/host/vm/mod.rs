//! The machines of a hypervisor.
//!
//! | | |
//! |---|---|
//! | [`Virt`] | what is asked of libvirt; [`Program`] asks the real one, [`Memory`] is one for simulations |
//! | [`Machines`] | what each call of a scenario means: looked first, then done, once |
//! | [`Source`] | where images and seeds come from |
//! | [`Watcher`] | tells the broker what there is |

mod collect;
mod files;
mod guest;
mod images;
mod layers;
mod machines;
mod making;
mod memory;
mod perform;
mod power;
mod program;
mod seed;
mod snapshots;
mod source;
mod virt;
mod watcher;

pub use guest::GuestError;
pub use images::ImageError;
pub use machines::{Machines, Progress, Setting, VmError};
pub use memory::{Fault, Having, Memory};
pub use perform::perform;
pub use program::{How, NAME, Program};
pub use seed::SeedError;
pub use source::{Brokers, Coming, Source, SourceError};
pub use virt::{Answered, Asking, Virt, VirtError};
pub use watcher::Watcher;

#[cfg(test)]
mod tests;
