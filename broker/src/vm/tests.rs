//! Machines with a real store, and everything else in memory.

mod lab;
mod life;
mod killed;
mod place;
mod seeds;
mod shown;
