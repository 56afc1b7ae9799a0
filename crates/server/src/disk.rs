//! Applies a backup's disk effects to its store: writes at once, and small reads that memory answers; syncs and other
//! reads off the thread.

use std::rc::Rc;
use std::sync::Arc;

use holdfast_cluster::{DiskDone, DiskOp, Input};
use holdfast_format::ServerId;

use crate::local::Local;
use crate::store::Store;

/// A backup's store as its host thread sees it. It outlives the backup's incarnations.
#[derive(Debug)]
pub struct Disk {
    store: Arc<Store>,
    local: Rc<Local>,
}

impl Disk {
    pub fn new(store: Arc<Store>, local: Rc<Local>) -> Rc<Disk> {
        Rc::new(Disk { store, local })
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Applies `op` for `node`, which is told when it has completed. How many are under way is
    /// bounded by the backup (`reads_in_flight_max`, `syncs_in_flight_max`, 32 for single keys).
    pub fn apply(&self, node: ServerId, op: DiskOp) {
        let store = self.store.clone();
        let local = self.local.clone();
        match op {
            DiskOp::Write {
                frame,
                offset,
                bytes,
            } => store.write(frame, offset, &bytes),
            DiskOp::Sync { token, frame } => {
                tokio::task::spawn_local(async move {
                    let result = tokio::task::spawn_blocking(move || store.sync(frame)).await;
                    let result = result.expect("a panic would have ended the process");
                    local.push(node, Input::Disk(DiskDone::Synced { token, result }));
                });
            }
            DiskOp::Read {
                token,
                frame,
                offset,
                length,
                from_medium,
            } => {
                let at_once = (!from_medium).then(|| store.read_at_once(frame, offset, length));
                if let Some(bytes) = at_once.flatten() {
                    let result = Ok(bytes);
                    return local.push(node, Input::Disk(DiskDone::Read { token, result }));
                }
                tokio::task::spawn_local(async move {
                    let read = move || match from_medium {
                        true => store.read_from_medium(frame, offset, length),
                        false => store.read(frame, offset, length),
                    };
                    let result = tokio::task::spawn_blocking(read).await;
                    let result = result.expect("a panic would have ended the process");
                    local.push(node, Input::Disk(DiskDone::Read { token, result }));
                });
            }
        }
    }
}
