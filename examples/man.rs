//! Writes the manual pages, one for each verb: `cargo run --example man -- DIRECTORY`.

fn main() -> std::io::Result<()> {
    let directory = std::env::args_os()
        .nth(1)
        .unwrap_or_else(|| "target/man".into());
    std::fs::create_dir_all(&directory)?;
    clap_mangen::generate_to(lvmsync::cli::command(), directory)
}
