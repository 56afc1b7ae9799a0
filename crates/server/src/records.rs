//! The coordinator's records, kept in an embedded database (redb): one table of key to bytes.
//!
//! Writes are committed in the order in which they were asked for, one at a time and off the host
//! thread; whatever was asked for during a commit goes into the next one. A commit that fails ends
//! the process: a coordinator that cannot remember must not decide.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_cluster::{Input, RecordWrite};
use holdfast_format::ServerId;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::mpsc;

use crate::error::{Context, Fatal, Outcome};
use crate::local::Local;

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");

/// Key and value.
pub type Record = (String, Bytes);

/// The open database.
#[derive(Debug)]
pub struct Records {
    asked: mpsc::UnboundedSender<Asked>,
}

/// One `Output::Records`. Bounded by the coordinator, which waits for what it has asked.
#[derive(Debug)]
struct Asked {
    node: ServerId,
    token: u64,
    writes: Vec<RecordWrite>,
}

impl Records {
    /// Opens or creates the database at `path` and reads every record; call on a `LocalSet`.
    pub fn open(path: &Path, local: Rc<Local>) -> Outcome<(Rc<Records>, Vec<Record>)> {
        let what = || {
            format!(
                "cannot open the coordinator's records at {}",
                path.display()
            )
        };
        let database = Database::create(path).context(what)?;
        let records = read_all(&database).context(what)?;
        let (asked, queue) = mpsc::unbounded_channel();
        tokio::task::spawn_local(work(Arc::new(database), queue, local));
        Ok((Rc::new(Records { asked }), records))
    }

    /// Makes `writes` durable and then tells `node`.
    pub fn write(&self, node: ServerId, token: u64, writes: Vec<RecordWrite>) {
        let sent = self.asked.send(Asked {
            node,
            token,
            writes,
        });
        assert!(sent.is_ok(), "the records' task ends only with its thread");
    }
}

async fn work(
    database: Arc<Database>,
    mut queue: mpsc::UnboundedReceiver<Asked>,
    local: Rc<Local>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, 1024).await > 0 {
        let asked = std::mem::take(&mut batch);
        let database = database.clone();
        let done = tokio::task::spawn_blocking(move || {
            let result = commit(&database, &asked);
            result.map(|()| asked)
        });
        match done.await.expect("a panic would have ended the process") {
            Ok(asked) => {
                for Asked { node, token, .. } in asked {
                    local.push(node, Input::RecordsWritten { token });
                }
            }
            Err(error) => panic!("the coordinator's records cannot be written: {error}"),
        }
    }
}

fn commit(database: &Database, asked: &[Asked]) -> Outcome<()> {
    let what = || "commit".to_string();
    let mut transaction = database.begin_write().context(what)?;
    transaction
        .set_durability(Durability::Immediate)
        .context(what)?;
    {
        let mut table = transaction.open_table(RECORDS).context(what)?;
        for write in asked.iter().flat_map(|asked| &asked.writes) {
            match &write.value {
                Some(value) => table.insert(write.key.as_str(), value.as_ref()).map(drop),
                None => table.remove(write.key.as_str()).map(drop),
            }
            .context(what)?;
        }
    }
    transaction.commit().context(what)
}

fn read_all(database: &Database) -> Result<Vec<Record>, Fatal> {
    let what = || "read".to_string();
    // Opening the table in a write transaction creates it on the first start.
    let transaction = database.begin_write().context(what)?;
    transaction.open_table(RECORDS).context(what)?;
    transaction.commit().context(what)?;
    let transaction = database.begin_read().context(what)?;
    let table = transaction.open_table(RECORDS).context(what)?;
    let mut records = Vec::new();
    for record in table.iter().context(what)? {
        let (key, value) = record.context(what)?;
        records.push((
            key.value().to_string(),
            Bytes::copy_from_slice(value.value()),
        ));
    }
    Ok(records)
}
