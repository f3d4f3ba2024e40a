//! Runs a command whose output a person reads and we read too.

use lab::Error;
use std::io::{IsTerminal, PipeReader, Read, Write};
use std::process::{Command, Stdio};

/// A command that has ended.
pub(crate) struct Shown {
    pub(crate) success: bool,
    /// Both of its outputs, in the order in which it wrote them.
    pub(crate) output: String,
}

/// Runs it to its end; what it writes goes to our stdout at once.
pub(crate) fn show(command: &mut Command) -> lab::Result<Shown> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |e: std::io::Error| Error::new(format!("cannot run {name}: {e}"));
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    if std::io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command.stdin(Stdio::null());
    command.stdout(writer.try_clone().map_err(failed)?);
    command.stderr(writer);
    let mut child = command.spawn().map_err(failed)?;
    // Our ends of the pipe are in there: while they are open, it has no end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let output = pass_on(reader);
    let status = child.wait().map_err(failed)?;
    Ok(Shown {
        success: status.success(),
        output,
    })
}

fn pass_on(mut reader: PipeReader) -> String {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    let mut out = std::io::stdout();
    while let Ok(n @ 1..) = reader.read(&mut chunk) {
        // A reader that went away is no reason to stop the tests: their result is the exit status.
        let _ = out.write_all(&chunk[..n]).and_then(|()| out.flush());
        all.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8_lossy(&all).into_owned()
}
