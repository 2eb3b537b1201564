//! stub
pub mod chance;
pub mod connection;
pub mod floor;
pub mod limits;
pub mod pattern;
pub mod server;
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> std::process::ExitCode {
    use clap::Parser;
    #[derive(Parser)]
    struct C { #[command(flatten)] a: floor::Args }
    let c = C::parse_from(args);
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let f = rt.block_on(floor::measure(&c.a)).unwrap();
    println!("{}", serde_json::to_string(&f).unwrap());
    std::process::ExitCode::SUCCESS
}
