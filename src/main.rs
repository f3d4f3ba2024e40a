//! The `lvmsync` command: everything it does is in the library.

fn main() -> std::process::ExitCode {
    (lvmsync::cli::run(std::env::args_os().collect()) as u8).into()
}
