//! Without a person: one command, the lines of standard input, or events as they come.

use std::io::{BufRead, Read};
use std::process::ExitCode;
use std::time::Duration;

use qmp_client::{EventStream, Occurrence};

use super::line::MAX_LINE_BYTES;
use super::render::Look;
use super::shell::{Answer, EXIT_TROUBLE, Failure, Shell, exit, say};

/// Runs the command, if there is one, and then shows events, if they are asked for, until the time
/// is over.
pub(crate) async fn once(
    mut shell: Shell,
    command: Option<(&str, Vec<&str>)>,
    oob: bool,
    events: bool,
    listen_for: Option<Duration>,
) -> ExitCode {
    let stream = events.then(|| shell.client.events());
    if let Some((name, words)) = command {
        match shell.command(name, &words, oob).await {
            Ok(text) => {
                say(&text);
            }
            Err(failure) => return exit(Err(failure)),
        }
    }
    let Some(mut stream) = stream else {
        return ExitCode::SUCCESS;
    };
    let time_is_over = async {
        match listen_for {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = show_events(&shell, &mut stream) => exit(result),
        () = time_is_over => ExitCode::SUCCESS,
        _ = tokio::signal::ctrl_c() => ExitCode::SUCCESS,
    }
}

/// Until nobody reads them any more, or the connection is lost.
async fn show_events(shell: &Shell, stream: &mut EventStream) -> Result<(), Failure> {
    while let Some(occurrence) = stream.next().await {
        let heard = match occurrence {
            Occurrence::Event(event) => say(&shell.output.event(&event)),
            Occurrence::Missed(count) => {
                eprintln!("{count} events were missed");
                true
            }
        };
        if !heard {
            return Ok(());
        }
    }
    Err(Failure::Call(shell.client.lost().await.into()))
}

/// Runs every line of standard input. The status is that of the first failure.
pub(crate) async fn lines(mut shell: Shell) -> ExitCode {
    let mut status = 0;
    loop {
        let line = match tokio::task::spawn_blocking(read_line).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return ExitCode::from(status),
            Ok(Err(error)) => {
                eprintln!("cannot read standard input: {error}");
                return ExitCode::from(EXIT_TROUBLE);
            }
            Err(_) => return ExitCode::from(EXIT_TROUBLE),
        };
        match shell.line(&line).await {
            Ok(Answer::Nothing) => {}
            Ok(Answer::Text(text)) => {
                if !say(&text) {
                    return ExitCode::from(status);
                }
            }
            Ok(Answer::Leave) => return ExitCode::from(status),
            Ok(Answer::ServerEnds(text)) => {
                say(&text);
                return ExitCode::from(status);
            }
            Err(failure) => {
                eprintln!("{}", failure.text(Look::of(&std::io::stderr())));
                if status == 0 {
                    status = failure.exit_code();
                }
                if failure.is_lost() {
                    return ExitCode::from(status);
                }
            }
        }
    }
}

fn read_line() -> std::io::Result<Option<String>> {
    let mut line = String::new();
    let count = std::io::stdin()
        .lock()
        .take(MAX_LINE_BYTES)
        .read_line(&mut line)?;
    if u64::try_from(count).is_ok_and(|count| count == MAX_LINE_BYTES) {
        let text = format!("a line is longer than {MAX_LINE_BYTES} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
    }
    Ok((count > 0).then_some(line))
}
