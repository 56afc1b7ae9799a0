//! Has a log's memory mapped on a thread of its own.
//!
//! Fresh memory costs 0.4 to 2.5 GB/s, a large page of it some 5 ms at a time. No request should pay for that,
//! so a thread asks the system for it page after page, from the start of the shard until all is there. It
//! sleeps as long as it works, because the shard has to start on the same cores.

use std::time::Instant;

use holdfast_log::Toucher;

/// Starts the thread; it ends when all is mapped, or the log is gone.
pub fn start(name: &str, mut toucher: Toucher) {
    let touch = move || {
        loop {
            let began = Instant::now();
            match toucher.touch() {
                Ok(true) => std::thread::sleep(began.elapsed()),
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(
                        "cannot map memory ahead ({error}): requests will wait for fresh pages at first"
                    );
                    return;
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name(format!("touch-{name}"))
        .spawn(touch)
    {
        tracing::warn!("cannot start a thread that maps memory ahead: {error}");
    }
}
