//! The four roles behind one type, so that a host thread can drive any mixture of them.

use holdfast_backup::Backup;
use holdfast_cluster::{Input, Node, Now, Outputs, ShardBeside};
use holdfast_coordinator::Coordinator;
use holdfast_gateway::Gateway;
use holdfast_master::Shard;
use holdfast_wire::{Figures, NamespaceUse};

/// A node of any role. Boxed: they are large, few, and moved now and then.
#[derive(Debug)]
pub enum Role {
    Coordinator(Box<Coordinator>),
    Shard(Box<Shard>),
    Backup(Box<Backup>),
    /// The flat port (or none), and calls.
    Gateway(Box<Gateway>),
    /// A shard's Redis Cluster port.
    ClusterGateway(Box<Gateway>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    Coordinator,
    Shard,
    Backup,
    Gateway,
    ClusterGateway,
}

impl RoleKind {
    /// As metrics, status and the ready file name it.
    pub fn name(self) -> &'static str {
        match self {
            RoleKind::Coordinator => "coordinator",
            RoleKind::Shard => "master",
            RoleKind::Backup => "backup",
            RoleKind::Gateway => "gateway",
            RoleKind::ClusterGateway => "cluster-port",
        }
    }
}

impl Role {
    pub fn kind(&self) -> RoleKind {
        match self {
            Role::Coordinator(_) => RoleKind::Coordinator,
            Role::Shard(_) => RoleKind::Shard,
            Role::Backup(_) => RoleKind::Backup,
            Role::Gateway(_) => RoleKind::Gateway,
            Role::ClusterGateway(_) => RoleKind::ClusterGateway,
        }
    }

    /// True for the node that takes `Input::Call`.
    pub fn answers_calls(&self) -> bool {
        matches!(self, Role::Gateway(_))
    }

    /// Memory that a gateway holds for its clients.
    pub fn buffers_bytes(&self) -> u64 {
        match self {
            Role::Gateway(gateway) | Role::ClusterGateway(gateway) => gateway.memory_bytes(),
            Role::Coordinator(_) | Role::Shard(_) | Role::Backup(_) => 0,
        }
    }

    /// How far apart reads of one client's connection should be.
    pub fn round_us(&self) -> u64 {
        match self {
            Role::Gateway(gateway) | Role::ClusterGateway(gateway) => gateway.round_us(),
            Role::Coordinator(_) | Role::Shard(_) | Role::Backup(_) => 0,
        }
    }

    /// True for nodes that are lent the shard of their thread.
    pub fn asks_beside(&self) -> bool {
        matches!(self, Role::Gateway(_) | Role::ClusterGateway(_))
    }

    fn node(&self) -> &dyn Node {
        match self {
            Role::Coordinator(node) => node.as_ref(),
            Role::Shard(node) => node.as_ref(),
            Role::Backup(node) => node.as_ref(),
            Role::Gateway(node) | Role::ClusterGateway(node) => node.as_ref(),
        }
    }

    fn node_mut(&mut self) -> &mut dyn Node {
        match self {
            Role::Coordinator(node) => node.as_mut(),
            Role::Shard(node) => node.as_mut(),
            Role::Backup(node) => node.as_mut(),
            Role::Gateway(node) | Role::ClusterGateway(node) => node.as_mut(),
        }
    }
}

impl Node for Role {
    fn step(&mut self, now: Now, input: Input, out: &mut Outputs) {
        self.node_mut().step(now, input, out);
    }
    fn flush(&mut self, now: Now, out: &mut Outputs) {
        self.node_mut().flush(now, out);
    }
    fn step_beside(
        &mut self,
        now: Now,
        input: Input,
        shard: Option<&mut dyn ShardBeside>,
        out: &mut Outputs,
    ) {
        self.node_mut().step_beside(now, input, shard, out);
    }
    fn flush_beside(&mut self, now: Now, shard: Option<&mut dyn ShardBeside>, out: &mut Outputs) {
        self.node_mut().flush_beside(now, shard, out);
    }
    fn as_shard(&mut self) -> Option<&mut dyn ShardBeside> {
        self.node_mut().as_shard()
    }
    fn wakeup(&self) -> Option<u64> {
        self.node().wakeup()
    }
    fn metrics(&self) -> Vec<(&'static str, f64)> {
        self.node().metrics()
    }
    fn ready(&self) -> bool {
        self.node().ready()
    }
    fn not_ready_because(&self) -> Vec<String> {
        self.node().not_ready_because()
    }
    fn figures(&self) -> Figures {
        self.node().figures()
    }
    fn namespaces(&self) -> Vec<NamespaceUse> {
        self.node().namespaces()
    }
}
