//! What the kernel does with real packets, against what groups mean.

mod capability;
mod changes;
mod frames;
mod lab;
mod named;
mod past;
mod random;
mod world;
