//! What a world consists of: how many of each role, on which machines, how configured.

use std::collections::BTreeMap;

use holdfast_format::ServerId;
use holdfast_wire::{ClusterConfig, Member, Role};

use crate::chance::Chance;
use crate::clock::MachineClock;
use crate::network::MachineId;

/// A world's plan. `Setup::draw` makes a random one, `Setup::small` one for scenarios.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub masters: u32,
    pub shards_per_master: u32,
    pub backups: u32,
    pub gateways: u32,
    /// Gateway `i` lives on the thread of master `i`'s first shard, as far as there are masters.
    pub gateways_in_masters: bool,
    /// Master `i` and backup `i` share a machine (and say so by its label).
    pub shared_machines: bool,
    pub config: ClusterConfig,
    /// Memory of one shard's log.
    pub memory_bytes: u64,
    pub segment_bytes: u32,
    pub seglet_bytes: u32,
    /// Segments may be so many on backups, in percent of what fills the memory: the fewer, the sooner a shard cleans
    /// for replicas' sake; the more, the longer compaction is enough.
    pub replica_expansion_percent: u32,
    /// What one recovery fetches at a time: with little, requests come before everything is replayed.
    pub recovery_window_bytes: u64,
    /// No more shards take a dead log over than get so much of it each.
    pub part_bytes_min: u64,
    /// Frames of one backup.
    pub frames: u32,
    pub value_bytes_max: u32,
    /// Machines may lose power, so stores remember what that would undo.
    pub power_fails: bool,
    /// Boot-time clocks drift by up to so many parts per million.
    pub drift_ppm_max: u32,
    /// Wall clocks are off by up to so much.
    pub wall_offset_ms_max: u32,
    /// The next coordinator to start may take it that nobody else is alive.
    pub cold_start: bool,
    /// Where the coordinator cannot hear a shard, backups mostly cannot either: it keeps what is left of its lease.
    pub islands: bool,
    /// Every log is checked from end to end after every step of its shard. Slow; changes nothing else.
    pub verify: bool,
}

/// One place of the plan.
#[derive(Clone, Debug)]
pub struct PlacePlan {
    pub name: String,
    pub role: Role,
    pub machine: MachineId,
    /// Places of one process die together.
    pub process: u32,
}

/// One seed in so many has islands.
const ISLANDS_EVERY: u64 = 5;

/// In one seed of so many fewer than all replicas acknowledge.
const QUORUM_EVERY: u64 = 4;

impl Setup {
    /// Three shards, four backups, three replicas, two gateways, no faults.
    pub fn small(seed: u64) -> Setup {
        Setup {
            seed,
            masters: 3,
            shards_per_master: 1,
            backups: 4,
            gateways: 2,
            gateways_in_masters: false,
            shared_machines: false,
            config: ClusterConfig {
                cluster: 0x51D,
                replicas: 3,
                ack_quorum: 3,
                lease_ms: 400,
                heartbeat_ms: 200,
                probe_ms: 100,
                ack_disk: false,
            },
            memory_bytes: 4 << 20,
            segment_bytes: 64 << 10,
            seglet_bytes: 4 << 10,
            replica_expansion_percent: 200,
            recovery_window_bytes: 32 << 20,
            part_bytes_min: 0,
            frames: 192,
            value_bytes_max: 16 << 10,
            power_fails: true,
            drift_ppm_max: 0,
            wall_offset_ms_max: 0,
            cold_start: false,
            islands: false,
            verify: false,
        }
    }

    /// One of the shapes that seeds run: mostly three shards and four backups.
    pub fn draw(seed: u64, chance: &mut Chance) -> Setup {
        let mut setup = Setup::small(seed);
        match chance.below(10) {
            0 => (setup.masters, setup.backups) = (1, 3),
            1 => (setup.masters, setup.backups, setup.config.replicas) = (1, 3, 2),
            2 => (setup.masters, setup.backups, setup.config.replicas) = (2, 3, 2),
            3 => (setup.masters, setup.backups) = (5, 5),
            4 => (setup.masters, setup.shards_per_master) = (2, 2),
            5 => (setup.masters, setup.backups, setup.shared_machines) = (4, 4, true),
            _ => {}
        }
        setup.gateways = chance.between(1, 3) as u32;
        setup.gateways_in_masters = seed % 2 == 1;
        setup.config.ack_disk = chance.percent(50);
        setup.config.lease_ms = *chance.pick(&[200, 400, 800, 1_500]);
        // Some shards are so small that they must clean, or refuse writers.
        setup.memory_bytes = *chance.pick(&[768 << 10, 768 << 10, 1 << 20, 2 << 20]);
        // Where there may be few segments they are combined, where there may be many they are compacted.
        setup.replica_expansion_percent = *chance.pick(&[200, 500, 800]);
        // One segment at a time makes a recovery slow enough for requests to come before its end.
        setup.recovery_window_bytes = *chance.pick(&[1, 1, 128 << 10, 32 << 20]);
        setup.part_bytes_min = [0, 0, 100 << 10][(seed % 3) as usize];
        setup.frames = 1_024;
        if seed % QUORUM_EVERY == 1 {
            // One backup fewer acknowledges than there are.
            setup.config.ack_quorum = setup.config.replicas - 1;
        } else {
            setup.config.ack_quorum = setup.config.replicas;
        }
        if seed % ISLANDS_EVERY == 3 {
            // Whoever is alone then is alone for long.
            setup.islands = true;
            setup.config.lease_ms = 3_000;
        }
        setup
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.masters * self.shards_per_master
    }

    /// Every place, the coordinator first.
    pub fn places(&self) -> Vec<PlacePlan> {
        let mut places = Vec::new();
        let mut machine = 0;
        let mut processes = 0;
        let mut process_of_machine = BTreeMap::new();
        let mut add = |name: String, role, on: Option<u32>, first_of_process: bool| {
            let process = match first_of_process {
                true => {
                    processes += 1;
                    processes
                }
                // A gateway comes back to the process of its master.
                false if role == Role::Gateway => {
                    on.map_or(processes, |on| process_of_machine[&on])
                }
                false => processes,
            };
            let on = on.unwrap_or_else(|| {
                machine += u32::from(first_of_process);
                machine - 1
            });
            if role == Role::Shard {
                process_of_machine.insert(on, process);
            }
            places.push(PlacePlan {
                name,
                role,
                machine: MachineId(on),
                process,
            });
            on
        };
        add("coordinator".to_owned(), Role::Coordinator, None, true);
        let mut machines = Vec::new();
        for master in 0..self.masters {
            for shard in 0..self.shards_per_master {
                let name = format!("master-{}.{shard}", master + 1);
                let on = machines.get(master as usize).copied();
                let on = add(name, Role::Shard, on, shard == 0);
                if shard == 0 {
                    machines.push(on);
                }
            }
        }
        for backup in 0..self.backups {
            let on = machines
                .get(backup as usize)
                .copied()
                .filter(|_| self.shared_machines);
            add(format!("backup-{}", backup + 1), Role::Backup, on, true);
        }
        for gateway in 0..self.gateways {
            let on = machines.get(gateway as usize).copied();
            let on = on.filter(|_| self.gateways_in_masters);
            let name = format!("gateway-{}", gateway + 1);
            add(name, Role::Gateway, on, on.is_none());
        }
        places
    }

    /// A machine's clock.
    pub fn clock(&self, chance: &mut Chance) -> MachineClock {
        let around = |chance: &mut Chance, max: u32| {
            chance.below(2 * u64::from(max) + 1) as i64 - i64::from(max)
        };
        MachineClock {
            offset_us: chance.below(10_000_000_000),
            drift_ppm: around(chance, self.drift_ppm_max),
            wall_offset_ms: around(chance, self.wall_offset_ms_max),
        }
    }

    /// How the process of a place introduces itself.
    pub fn member(
        &self,
        id: ServerId,
        role: Role,
        name: &str,
        machine: MachineId,
        incarnation: u64,
    ) -> Member {
        Member {
            id,
            role,
            address: match role {
                Role::Gateway => String::new(),
                _ => format!("10.0.0.{}:{}", machine.0, 7000 + incarnation % 1000),
            },
            machine: format!("machine-{}", machine.0),
            pid: incarnation as u32,
            resp_cluster: match role {
                Role::Shard => format!("10.0.0.{}:6381", machine.0),
                _ => String::new(),
            },
            name: name.to_owned(),
            store: match role {
                // The store belongs to the place: its name is its number.
                Role::Backup => 1 + u64::from(machine.0),
                _ => 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_of_a_master_share_its_process_and_machine() {
        let setup = Setup {
            shards_per_master: 2,
            masters: 2,
            ..Setup::small(1)
        };
        let places = setup.places();
        let shards: Vec<_> = places.iter().filter(|p| p.role == Role::Shard).collect();
        assert_eq!(shards.len(), 4);
        assert_eq!(shards[0].process, shards[1].process);
        assert_eq!(shards[0].machine, shards[1].machine);
        assert_ne!(shards[1].process, shards[2].process);
        assert_ne!(shards[1].machine, shards[2].machine);
        let backups: Vec<_> = places.iter().filter(|p| p.role == Role::Backup).collect();
        assert!(
            backups
                .windows(2)
                .all(|pair| pair[0].machine != pair[1].machine)
        );
    }

    #[test]
    fn gateways_in_masters_share_process_and_machine_with_the_first_shard() {
        let setup = Setup {
            shards_per_master: 2,
            masters: 2,
            gateways: 3,
            gateways_in_masters: true,
            ..Setup::small(1)
        };
        let places = setup.places();
        let gateways: Vec<_> = places.iter().filter(|p| p.role == Role::Gateway).collect();
        let shards: Vec<_> = places.iter().filter(|p| p.role == Role::Shard).collect();
        for (gateway, shard) in [(0, 0), (1, 2)] {
            assert_eq!(gateways[gateway].process, shards[shard].process);
            assert_eq!(gateways[gateway].machine, shards[shard].machine);
        }
        let alone = gateways[2];
        let others = places.iter().filter(|p| p.process == alone.process);
        assert_eq!(others.count(), 1, "there is no third master");
    }

    #[test]
    fn shared_machines_hold_a_master_and_a_backup() {
        let setup = Setup {
            shared_machines: true,
            masters: 4,
            ..Setup::small(1)
        };
        let places = setup.places();
        let on = |role| -> Vec<MachineId> {
            places
                .iter()
                .filter(|p| p.role == role)
                .map(|p| p.machine)
                .collect()
        };
        assert_eq!(on(Role::Shard), on(Role::Backup));
    }
}
