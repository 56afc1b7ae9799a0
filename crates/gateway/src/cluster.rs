//! CLUSTER replies, from the view: what Redis Cluster clients build their slot map of.
//!
//! Only the cluster port answers them. The flat port says that cluster support is disabled, in
//! Redis's words, because some clients take a server that answers CLUSTER NODES for a cluster.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use holdfast_cluster::ViewExt;
use holdfast_format::{SLOTS, ServerId, Slot, SlotRange};
use holdfast_wire::resp::{Protocol, ReplyWriter};
use holdfast_wire::{Member, Role, View};

/// What the flat port answers to CLUSTER.
pub(crate) const DISABLED: &str = "ERR This instance has cluster support disabled";

/// CLUSTER SLOTS as bytes, written once per view: PHP asks for it on every page.
#[derive(Debug, Default)]
pub(crate) struct SlotsReply {
    view_version: u64,
    by_protocol: [Option<Bytes>; 2],
}

impl SlotsReply {
    /// The reply by this view.
    pub(crate) fn get(&mut self, view: &View, protocol: Protocol) -> Bytes {
        if self.view_version != view.version {
            *self = SlotsReply {
                view_version: view.version,
                by_protocol: [None, None],
            };
        }
        let at = usize::from(protocol == Protocol::Resp3);
        let cached = &mut self.by_protocol[at];
        cached
            .get_or_insert_with(|| {
                let mut bytes = BytesMut::new();
                write_slots(view, &mut ReplyWriter::new(&mut bytes, protocol));
                bytes.freeze()
            })
            .clone()
    }
}

/// A member's id as Redis shows node ids.
pub(crate) fn node_id(id: ServerId) -> String {
    format!("{:040x}", id.0)
}

/// The cluster port of the shard that owns `slot`, if it is served and has one.
pub(crate) fn owner_port(view: &View, slot: Slot) -> Option<(ServerId, &str)> {
    let tablet = view.tablet_of(slot).filter(|tablet| tablet.available)?;
    let member = view.member(tablet.owner.shard())?;
    (!member.resp_cluster.is_empty()).then_some((member.id, member.resp_cluster.as_str()))
}

/// CLUSTER NODES: one line per shard.
pub(crate) fn nodes_text(view: &View, myself: ServerId) -> String {
    let mut text = String::new();
    for (member, ranges) in shards(view) {
        let (host, port) = host_and_port(&member.resp_cluster);
        let flags = if member.id == myself {
            "myself,master"
        } else {
            "master"
        };
        let epoch = view
            .tablets_of(holdfast_format::LogId::of(member.id))
            .map(|t| t.epoch.0)
            .max();
        // The last port is that of Redis's cluster bus, which nobody here listens on.
        let _ = write!(
            text,
            "{} {host}:{port}@{} {flags} - 0 0 {} connected",
            node_id(member.id),
            u32::from(port) + 10_000,
            epoch.unwrap_or(0),
        );
        for range in ranges {
            let _ = match (range.first.0, range.last.0) {
                (first, last) if first == last => write!(text, " {first}"),
                (first, last) => write!(text, " {first}-{last}"),
            };
        }
        text.push('\n');
    }
    text
}

/// CLUSTER INFO.
pub(crate) fn info_text(view: &View) -> String {
    let slots = |available: Option<bool>| -> u32 {
        let tablets = view.tablets.iter();
        tablets
            .filter(|t| available.is_none_or(|a| t.available == a))
            .map(|t| t.range.slots())
            .sum()
    };
    let (assigned, served) = (slots(None), slots(Some(true)));
    let state = if served == u32::from(SLOTS) {
        "ok"
    } else {
        "fail"
    };
    let known = shards(view).count();
    let size = shards(view)
        .filter(|(_, ranges)| !ranges.is_empty())
        .count();
    let epoch = view
        .tablets
        .iter()
        .map(|tablet| tablet.epoch.0)
        .max()
        .unwrap_or(0);
    format!(
        "cluster_state:{state}\r\ncluster_slots_assigned:{assigned}\r\ncluster_slots_ok:{served}\r\n\
         cluster_slots_pfail:0\r\ncluster_slots_fail:{}\r\ncluster_known_nodes:{known}\r\n\
         cluster_size:{size}\r\ncluster_current_epoch:{epoch}\r\ncluster_my_epoch:{epoch}\r\n\
         cluster_stats_messages_sent:0\r\ncluster_stats_messages_received:0\r\n",
        assigned - served,
    )
}

/// CLUSTER SHARDS.
pub(crate) fn write_shards(view: &View, reply: &mut ReplyWriter<'_>) {
    let shards: Vec<_> = shards(view).collect();
    reply.array(shards.len());
    for (member, ranges) in shards {
        let (host, port) = host_and_port(&member.resp_cluster);
        reply.map(2);
        reply.bulk(b"slots");
        reply.array(2 * ranges.len());
        for range in ranges {
            reply.integer(i64::from(range.first.0));
            reply.integer(i64::from(range.last.0));
        }
        reply.bulk(b"nodes");
        reply.array(1);
        reply.map(7);
        reply.bulk(b"id");
        reply.bulk(node_id(member.id).as_bytes());
        reply.bulk(b"port");
        reply.integer(i64::from(port));
        for field in ["ip", "endpoint"] {
            reply.bulk(field.as_bytes());
            reply.bulk(host.as_bytes());
        }
        reply.bulk(b"role");
        reply.bulk(b"master");
        reply.bulk(b"replication-offset");
        reply.integer(0);
        reply.bulk(b"health");
        reply.bulk(b"online");
    }
}

fn write_slots(view: &View, reply: &mut ReplyWriter<'_>) {
    let mut ranges: Vec<(SlotRange, &Member)> = shards(view)
        .flat_map(|(member, ranges)| ranges.into_iter().map(move |range| (range, member)))
        .collect();
    ranges.sort_by_key(|(range, _)| range.first);
    reply.array(ranges.len());
    for (range, member) in ranges {
        let (host, port) = host_and_port(&member.resp_cluster);
        reply.array(3);
        reply.integer(i64::from(range.first.0));
        reply.integer(i64::from(range.last.0));
        reply.array(4);
        reply.bulk(host.as_bytes());
        reply.integer(i64::from(port));
        reply.bulk(node_id(member.id).as_bytes());
        reply.map(0);
    }
}

/// The shards that have a cluster port, with what they serve; neighbouring tablets are one range.
fn shards(view: &View) -> impl Iterator<Item = (&Member, Vec<SlotRange>)> {
    view.with_role(Role::Shard)
        .filter(|member| !member.resp_cluster.is_empty())
        .map(|member| {
            let mut ranges: Vec<SlotRange> = Vec::new();
            for tablet in view.tablets_of(holdfast_format::LogId::of(member.id)) {
                if !tablet.available {
                    continue;
                }
                match ranges.last_mut() {
                    Some(last) if last.last.0 + 1 == tablet.range.first.0 => {
                        last.last = tablet.range.last;
                    }
                    _ => ranges.push(tablet.range),
                }
            }
            (member, ranges)
        })
}

/// `host:port` as clients want it: apart, and IPv6 without brackets.
pub(crate) fn host_and_port(address: &str) -> (&str, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    (host, port.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_apart() {
        assert_eq!(host_and_port("127.0.0.1:6381"), ("127.0.0.1", 6381));
        assert_eq!(host_and_port("[::1]:6381"), ("::1", 6381));
        assert_eq!(host_and_port("nonsense"), ("nonsense", 0));
    }
}
