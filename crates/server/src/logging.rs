//! Logs on stderr, and what a panic does.

use tracing_subscriber::EnvFilter;

use crate::error::{Context, Outcome};
use crate::options::LogFormat;

/// Starts the process's log. `level` is a level or a filter.
pub fn start(format: LogFormat, level: &str) -> Outcome<()> {
    // A bare level is about us; how HTTP/2 frames travel is only told to who asks for it by name.
    let directives = match level.parse::<tracing::Level>() {
        Ok(_) => format!("{level},h2=warn,hyper=warn,hyper_util=warn,tonic=warn,tower=warn"),
        Err(_) => level.to_string(),
    };
    let filter = EnvFilter::try_new(directives)
        .context(|| format!("--log-level {level}: neither a level nor a filter"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => builder
            .with_target(false)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Makes a panic on any thread end the process. Our assertions are promises: a process that broke
/// one must not answer anybody any more, and the cluster survives its end.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        tracing::error!("a promise of our own was broken, ending the process: {panic}");
        std::process::abort();
    }));
}
