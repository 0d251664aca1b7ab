//! What goes to the terminal: results on stdout, everything else on stderr. A reader that goes away (`| head`) is not
//! an error.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::Failure;

/// Prints one JSON document on stdout.
///
/// # Errors
/// [`Failure`] where stdout cannot be written, other than because its reader went away.
pub(crate) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(document)
        .map_err(|error| Failure::failed(format!("the result cannot be written as JSON: {error}")))?;
    print(&text)
}

/// Prints a result for a person on stdout, with a line break at its end.
///
/// # Errors
/// [`Failure`] where stdout cannot be written, other than because its reader went away.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::failed(format!("stdout cannot be written: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Says something on stderr; a closed stderr is nobody's problem.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A progress bar on stderr for `total` steps; drawn on a terminal only.
pub(crate) fn progress(what: &'static str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{msg:>12} [{bar:40}] {human_pos}/{human_len} {elapsed} (eta {eta})")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A line on stderr that says what is being waited for; drawn on a terminal only.
pub(crate) fn waiting() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// An error with its causes, where it does not name them itself.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}
