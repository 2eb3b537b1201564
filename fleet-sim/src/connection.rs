//! stub
pub const READ_BUFFER: u16 = 2048;
