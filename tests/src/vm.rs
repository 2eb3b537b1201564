//! Virtual machines for the tests: a disk that boots, hypervisors in
//! namespaces of their own, and a network between them and the test.

pub mod agent;
pub mod capability;
pub mod guest;
pub mod host;
pub mod hypervisor;
pub mod image;
pub mod namespace;
pub mod parts;
pub mod world;

pub use capability::capability;
pub use host::Host;
pub use hypervisor::{Hypervisor, Inside};
pub use image::Image;
pub use world::World;
