//! CLIENT LIST and CLIENT KILL: what one connection may learn of the others of its port, and do to them.

use holdfast_cluster::{ConnectionId, Now, Outputs};
use holdfast_format::Namespace;
use holdfast_wire::redis::{ClientFilter, RespError};

use super::Gateway;
use crate::info;

impl Gateway {
    /// A line for each connection of this port that is meant.
    pub(super) fn client_list(&mut self, now: Now, id: ConnectionId, filter: &ClientFilter) {
        let lines: String = self
            .meant(now, id, filter)
            .map(|other| info::client_line(&self.connections[&other], now.mono_us))
            .collect();
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.write(|reply| reply.verbatim(&lines));
        }
    }

    /// Closes the connections that are meant; what they asked for may still be executed. The one that asks
    /// gets its answer first.
    pub(super) fn client_kill(
        &mut self,
        now: Now,
        id: ConnectionId,
        filter: &ClientFilter,
        counted: bool,
        out: &mut Outputs,
    ) {
        let victims: Vec<ConnectionId> = self.meant(now, id, filter).collect();
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match (counted, victims.len()) {
            (true, count) => connection.write(|reply| reply.integer(count as i64)),
            (false, 0) => self.executor.refuse(connection, &RespError::NoSuchClient),
            (false, _) => connection.write(|reply| reply.ok()),
        }
        let why = format!("killed by the client at {}", connection.client_address);
        for victim in victims {
            if victim != id {
                self.close(victim, &why, out);
            } else if let Some(connection) = self.connections.get_mut(&id) {
                connection.closing = true;
            }
        }
    }

    /// True if no further connection may select `namespace`. Counted only where there is such a limit: it
    /// costs about 20 µs with 10,000 connections, once per connection or SELECT.
    pub(super) fn is_full(&self, namespace: Namespace) -> bool {
        let Some(limit) = self.executor.config.namespace_connections_max else {
            return false;
        };
        let connections = self.connections.values();
        let here = connections.filter(|connection| connection.namespace == namespace);
        here.count() >= limit
    }

    /// SELECT where namespaces have a limit.
    pub(super) fn select(&mut self, id: ConnectionId, namespace: Namespace) {
        let full = self.is_full(namespace);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if full && connection.namespace != namespace {
            let text = "ERR max number of clients of this namespace reached";
            return self.executor.refuse(connection, &text);
        }
        connection.namespace = namespace;
        connection.write(|reply| reply.ok());
    }

    fn meant<'a>(
        &'a self,
        now: Now,
        me: ConnectionId,
        filter: &'a ClientFilter,
    ) -> impl Iterator<Item = ConnectionId> + 'a {
        let meant = move |(id, connection): &(&ConnectionId, &crate::connection::Connection)| {
            let age_s = now.mono_us.saturating_sub(connection.since_us) / 1_000_000;
            let address = &connection.client_address;
            filter.matches(connection.number, address, age_s, **id == me)
        };
        self.connections.iter().filter(meant).map(|(id, _)| *id)
    }
}
