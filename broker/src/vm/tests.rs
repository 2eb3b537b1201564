//! Machines with a real store, and everything else in memory.

mod again;
mod drained;
mod killed;
mod lab;
mod life;
mod part;
mod place;
mod provisioned;
mod refused;
mod repair;
mod rooms;
mod seeds;
mod shown;
mod tenants;
