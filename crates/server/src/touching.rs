//! Has memory mapped on threads of their own, before it is needed.
//!
//! Fresh memory costs 0.4 to 2.5 GB/s, a large page of it some 5 ms at a time. No request should pay for that, and no
//! recovery. A thread asks the system for a log's memory page after page, from the start of the shard until all is there, and sleeps
//! as long as it works; all of these threads give way to whoever has something to do: a master that is started again after its
//! death would otherwise slow down the recovery of what it held.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_log::Toucher;
use rustix::process::setpriority_process;

use crate::store::Store;

/// Runs when nobody else does, nearly.
const LOWEST: i32 = 19;

/// Until it is looked again whether pages should be made for a store.
const PAUSE: Duration = Duration::from_millis(100);

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
    behind_others(format!("touch-{name}"), touch);
}

/// Makes the buffers that a backup reads with in a recovery; the thread ends when that is done. Another has pages ready for
/// what is written next, as long as the store is open.
pub fn prepare(name: &str, store: Arc<Store>) {
    let open = Arc::downgrade(&store);
    behind_others(format!("touch-{name}"), move || store.prepare_to_read());
    let keep_ahead = move || {
        while let Some(store) = open.upgrade() {
            let began = Instant::now();
            let more = match store.prepare_to_write() {
                Ok(more) => more,
                Err(error) => {
                    tracing::warn!("cannot read ahead of what is written: {error}");
                    return;
                }
            };
            drop(store);
            std::thread::sleep(if more { began.elapsed() } else { PAUSE });
        }
    };
    behind_others(format!("ahead-{name}"), keep_ahead);
}

fn behind_others(name: String, work: impl FnOnce() + Send + 'static) {
    let give_way = move || {
        // On Linux a priority is a thread's own. If it is refused the work goes on beside that of others.
        if let Err(error) = setpriority_process(None, LOWEST) {
            tracing::debug!("memory is mapped at the priority of everything else: {error}");
        }
        work();
    };
    if let Err(error) = std::thread::Builder::new().name(name).spawn(give_way) {
        tracing::warn!("cannot start a thread that maps memory ahead: {error}");
    }
}
