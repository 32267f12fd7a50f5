//! What goes to the terminal. Nothing here can fail in a way that matters: a closed stderr stops no profiling.

use std::io::{self, ErrorKind, Write};

/// One line on stderr, after our name.
pub(crate) fn problem(text: &str) {
    let _ = writeln!(io::stderr(), "profilemate: {}", profilemate_output::text::visible(text));
}

/// Several lines on stderr, with their styles where a terminal shows them and nobody forbids it (`NO_COLOR`).
pub(crate) fn text(text: &str) {
    let _ = anstream::AutoStream::auto(io::stderr()).write_all(text.as_bytes());
}

/// Text on stdout: the result of a command.
pub(crate) fn result(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// As [`result`], with styles where a terminal shows them and nobody forbids it (`NO_COLOR`).
pub(crate) fn styled(text: &str) -> anyhow::Result<()> {
    let mut stdout = anstream::AutoStream::auto(io::stdout().lock());
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Whether an error only says that nobody reads our output any more.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
