//! Asked on its standard input, a line of JSON at a time; see the library.
fn main() {}
