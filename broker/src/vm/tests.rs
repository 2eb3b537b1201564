//! Machines with a real store, and everything else in memory.

mod killed;
mod lab;
mod life;
mod part;
mod place;
mod repair;
mod refused;
mod rooms;
mod seeds;
mod shown;
