//! Places in the broker and the agent at which a test can hold a process, to
//! kill it, or another one, at exactly that moment.
//!
//! Without the cargo feature `on` this is nothing: the functions are empty and
//! their arguments are never evaluated. With it, and with the environment
//! variable [`VARIABLE`] naming a Unix socket, a process that comes to such a
//! place connects to the socket, writes one line
//!
//! ```text
//! PID <tab> POINT <tab> DETAIL <newline>
//! ```
//!
//! and goes on when it reads a line, or when the connection ends. Only the
//! task that is there waits; the process's other tasks go on.

#[cfg(feature = "on")]
mod on;

/// The environment variable that names the socket. Empty in a build without
/// the feature, so that its name is not in a program that does not know it.
pub const VARIABLE: &str = if cfg!(feature = "on") {
    "MUSTER_CHECKPOINTS"
} else {
    ""
};

/// Comes to a place. `detail` says which one of its kind, in words without
/// tabs and line ends.
#[cfg(feature = "on")]
pub async fn at(point: &'static str, detail: impl FnOnce() -> String + Send) {
    if let Some(socket) = on::socket() {
        on::report(socket, point, &detail()).await;
    }
}

/// Comes to a place: nothing, in this build.
#[cfg(not(feature = "on"))]
#[inline(always)]
#[allow(clippy::unused_async, reason = "the same form as with the feature")]
pub async fn at(_point: &'static str, _detail: impl FnOnce() -> String + Send) {}

#[cfg(all(test, feature = "on"))]
mod tests;
