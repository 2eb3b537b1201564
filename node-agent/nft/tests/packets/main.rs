//! What the kernel does with real packets, against what groups mean.

mod capability;
mod frames;
mod random;
mod world;
