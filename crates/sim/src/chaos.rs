//! Brings a seed's faults upon the world while it is to be unsafe.
//!
//! F1. Storage is hurt (bits flipped, power lost before a sync, reads and syncs failing, disks
//!     replaced) only on Q - 1 chosen backups (of the Q that acknowledge; all R, mostly), for a whole seed: never more
//!     copies of the same data than the cluster promises to survive. Where writes are acknowledged from disk, losing power
//!     hurts no acknowledged copy and may strike anybody, or everybody.
//! F2. Processes may die anywhere, in any number: their machines keep what they wrote.

use holdfast_wire::Role;

use crate::chance::Chance;
use crate::faults::{Fault, FaultSet};
use crate::network::{MachineId, PlaceId, Rates};
use crate::world::{Blow, DiskManners, Tells, World};

/// Alarms of chaos begin here; applications' end below.
pub const ALARMS_FROM: u64 = 1_000_000;
const RESTART_FROM: u64 = 2_000_000;
const RECOVER_FROM: u64 = 3_000_000;
const CRASH_FROM: u64 = 4_000_000;
const STARVED_FROM: u64 = 5_000_000;
const CAUGHT_FROM: u64 = 6_000_000;

/// Faults that come again and again, with the mean time between them.
const RECURRING: [(Fault, u64); 15] = [
    (Fault::Partition, 5_000_000),
    (Fault::OneWayPartition, 5_000_000),
    (Fault::SlowLink, 4_000_000),
    (Fault::ShardCrash, 6_000_000),
    (Fault::BackupCrash, 5_000_000),
    (Fault::CoordinatorCrash, 7_000_000),
    (Fault::GatewayCrash, 8_000_000),
    (Fault::Pause, 4_000_000),
    (Fault::SlowProcessor, 5_000_000),
    (Fault::SlowDisk, 5_000_000),
    (Fault::BitFlip, 1_500_000),
    (Fault::PowerLoss, 7_000_000),
    (Fault::DiskReplaced, 9_000_000),
    (Fault::SlowRecords, 4_000_000),
    // Once is enough for these two; see `take`.
    (Fault::KillAll, u64::MAX),
];

/// The faults of one seed.
#[derive(Debug)]
pub struct Chaos {
    faults: FaultSet,
    chance: Chance,
    victims: Vec<PlaceId>,
    active: bool,
}

impl Chaos {
    /// Chooses the victims and switches on what lasts for the whole phase.
    pub fn begin(world: &mut World, faults: FaultSet, lasts_us: u64) -> Chaos {
        let mut chance = Chance::new(world.setup.seed, 0x6368);
        let mut backups = world.places_of(Role::Backup);
        let hurt_max = usize::from(world.setup.config.ack_quorum).saturating_sub(1);
        let mut victims = Vec::new();
        while victims.len() < hurt_max.min(backups.len()) {
            victims.push(backups.swap_remove(chance.below(backups.len() as u64) as usize));
        }
        let mut chaos = Chaos {
            faults,
            chance,
            victims,
            active: true,
        };
        let rate = |chaos: &mut Chaos, fault, low, high| match chaos.faults.has(fault) {
            true => chaos.chance.between(low, high) as u32,
            false => 0,
        };
        world.network.rates = Rates {
            lost: rate(&mut chaos, Fault::MessageLost, 100, 20_000),
            broken: rate(&mut chaos, Fault::StreamBroken, 50, 1_000),
            doubled: rate(&mut chaos, Fault::MessageDoubled, 1_000, 200_000),
            reordered: rate(&mut chaos, Fault::MessageReordered, 1_000, 100_000),
        };
        for fault in [Fault::ClockDrift, Fault::ClockOffset] {
            if chaos.faults.has(fault) {
                world.counts.count(fault);
            }
        }
        for place in chaos.victims.clone() {
            world.set_disk(place, chaos.manners(place, 1));
        }
        for (fault, _) in RECURRING.into_iter().chain([(Fault::PowerLossOfAll, 0)]) {
            if chaos.faults.has(fault) {
                // Once each for certain: some time after the cluster has had a moment to form.
                let in_us = 1_500_000
                    + chaos
                        .chance
                        .below(lasts_us.saturating_sub(2_000_000).max(1));
                world.alarm(in_us, ALARMS_FROM + fault as u64);
            }
        }
        chaos
    }

    /// Backups whose storage may have been hurt.
    pub fn victims(&self) -> &[PlaceId] {
        &self.victims
    }

    /// No more faults; alarms still to come do nothing.
    pub fn end(&mut self) {
        self.active = false;
    }

    /// Takes an alarm of its own.
    pub fn take(&mut self, world: &mut World, name: u64) {
        if !self.active {
            return;
        }
        if let Some(place) = name.checked_sub(CAUGHT_FROM) {
            return self.crash_the_caught(world, PlaceId(place as usize));
        }
        if let Some(place) = name.checked_sub(STARVED_FROM) {
            return self.crash_the_starved(world, PlaceId(place as usize));
        }
        if let Some(place) = name.checked_sub(CRASH_FROM) {
            return world.crash(PlaceId(place as usize));
        }
        if let Some(place) = name.checked_sub(RECOVER_FROM) {
            let place = PlaceId(place as usize);
            world.set_stretch(place, 1);
            world.records_delay_us = 1_000;
            if world.role(place) == Role::Backup {
                world.set_disk(place, self.manners(place, 1));
            }
            return;
        }
        if let Some(place) = name.checked_sub(RESTART_FROM) {
            return restart(world, PlaceId(place as usize));
        }
        let Some(fault) = Fault::ALL
            .into_iter()
            .find(|&f| ALARMS_FROM + f as u64 == name)
        else {
            return;
        };
        self.strike(world, fault);
        let mean_us = RECURRING
            .into_iter()
            .find(|&(other, _)| other == fault)
            .map(|(_, mean)| mean);
        if let Some(mean_us) = mean_us.filter(|&mean_us| mean_us < u64::MAX) {
            world.alarm(300_000 + self.chance.exponential(mean_us), name);
        }
    }

    fn strike(&mut self, world: &mut World, fault: Fault) {
        match fault {
            Fault::Partition | Fault::OneWayPartition => self.partition(world, fault),
            Fault::SlowLink => {
                let (from, to) = (self.machine(world), self.machine(world));
                let factor = self.chance.between(5, 300) as u32;
                let until_us = world.now_us() + self.chance.between(300_000, 4_000_000);
                world.network.slow_down(from, to, factor, until_us);
                world.counts.count(fault);
            }
            Fault::ShardCrash => {
                let config = world.setup.config;
                if config.ack_quorum < config.replicas && self.chance.percent(50) {
                    self.strand(world);
                } else {
                    self.crash(world, Role::Shard, fault);
                }
                self.starve(world);
                if self.chance.percent(60) {
                    world.catch_leaning = Some(CAUGHT_FROM);
                }
            }
            Fault::BackupCrash => {
                self.crash(world, Role::Backup, fault);
                self.starve(world);
            }
            Fault::CoordinatorCrash => self.crash(world, Role::Coordinator, fault),
            Fault::GatewayCrash => self.crash(world, Role::Gateway, fault),
            Fault::Pause => {
                let place = self.place(world);
                let for_us = match self.chance.percent(70) {
                    true => self.chance.between(50_000, 1_500_000),
                    false => self.chance.between(1_000_000, 8_000_000),
                };
                let after = self.chance.below(40) as u32;
                world.strike(place, after, Blow::Pause { for_us });
                world.counts.count(fault);
            }
            Fault::SlowProcessor => {
                let place = self.place(world);
                world.set_stretch(place, self.chance.between(2, 100));
                self.recover_later(world, place, 4_000_000);
                world.counts.count(fault);
            }
            Fault::SlowDisk => {
                let backups = world.places_of(Role::Backup);
                let place = *self.chance.pick(&backups);
                let factor = self.chance.between(5, 200);
                world.set_disk(place, self.manners(place, factor));
                self.recover_later(world, place, 4_000_000);
                world.counts.count(fault);
            }
            Fault::SlowRecords => {
                world.records_delay_us = self.chance.between(20_000, 400_000);
                let coordinator = world.places_of(Role::Coordinator)[0];
                self.recover_later(world, coordinator, 4_000_000);
                world.counts.count(fault);
            }
            Fault::BitFlip => {
                if let Some(&place) = self.victims.first()
                    && world.flip_bit(place)
                {
                    world.counts.count(fault);
                }
            }
            Fault::PowerLoss => {
                let place = self.place(world);
                // F1.
                let hurts = |world: &World, place| {
                    let machine = world.machine(place);
                    let all = world.places_of(Role::Backup).into_iter();
                    all.filter(|&b| world.machine(b) == machine)
                        .all(|b| self.victims.contains(&b))
                };
                let place = match world.setup.config.ack_disk || hurts(world, place) {
                    true => Some(place),
                    false => self.victims.first().copied(),
                };
                let Some(place) = place else { return };
                world.strike(place, self.chance.below(40) as u32, Blow::PowerLoss);
                self.restart_later(world, place);
                world.counts.count(fault);
            }
            Fault::DiskReplaced => {
                if self.victims.is_empty() {
                    return;
                }
                let victim = *self.chance.pick(&self.victims);
                world.crash(victim);
                world.store(victim).wipe();
                self.restart_later(world, victim);
                world.counts.count(fault);
            }
            Fault::PowerLossOfAll => {
                let machines = self.machines(world);
                for machine in machines {
                    world.power_loss(machine);
                }
                self.restart_all(world);
                world.counts.count(fault);
            }
            Fault::KillAll => {
                for place in world.all_places() {
                    world.crash(place);
                }
                self.restart_all(world);
                world.counts.count(fault);
            }
            Fault::MessageLost
            | Fault::StreamBroken
            | Fault::MessageDoubled
            | Fault::MessageReordered
            | Fault::ClockDrift
            | Fault::ClockOffset
            | Fault::SyncError
            | Fault::ReadError
            | Fault::ClientDisconnect
            | Fault::ClientRepeat => unreachable!("{fault:?} has no alarm"),
        }
        world.tell(Tells::Events, || format!("fault: {}", fault.name()));
    }

    fn partition(&mut self, world: &mut World, fault: Fault) {
        let lasts_us = match self.chance.percent(75) {
            true => self.chance.between(100_000, 2_000_000),
            false => self.chance.between(1_000_000, 5_000_000),
        };
        let holds = self.chance.percent(50);
        let (lasts_us, cuts) = match world.setup.islands && self.chance.percent(50) {
            true => (lasts_us + 2_000_000, self.island(world)),
            false => (lasts_us, self.cuts(world)),
        };
        let until_us = world.now_us() + lasts_us;
        for (a, b) in cuts {
            world.network.block(a, b, until_us, holds);
            if fault == Fault::Partition {
                world.network.block(b, a, until_us, holds);
            }
        }
        world.counts.count(fault);
    }

    /// The coordinator gives up a shard, and no backup can tell the shard so: until its lease has run out it serves a
    /// gateway as deaf as itself.
    fn island(&mut self, world: &World) -> Vec<(MachineId, MachineId)> {
        let [shard, gateway] = [Role::Shard, Role::Gateway].map(|role| {
            let places = world.places_of(role);
            world.machine(*self.chance.pick(&places))
        });
        let coordinator = world.machine(world.places_of(Role::Coordinator)[0]);
        let backups = world.places_of(Role::Backup).into_iter();
        let backups = backups.map(|backup| world.machine(backup));
        (backups.chain([coordinator]).filter(|&it| it != shard))
            .map(|it| (shard, it))
            .chain([(gateway, coordinator)])
            .collect()
    }

    /// Between which machines: two groups, or only a few machines and one that everybody else can
    /// still reach (the coordinator's as often as all others together).
    fn cuts(&mut self, world: &World) -> Vec<(MachineId, MachineId)> {
        let machines = self.machines(world);
        let some = |chaos: &mut Chaos, percent| -> Vec<MachineId> {
            let drawn = |_: &&MachineId| chaos.chance.percent(percent);
            machines.iter().filter(drawn).copied().collect()
        };
        if self.chance.percent(25) {
            // The coordinator gives up a shard that goes on serving a gateway as deaf as itself.
            let coordinator = world.machine(world.places_of(Role::Coordinator)[0]);
            return [Role::Shard, Role::Gateway]
                .into_iter()
                .map(|role| {
                    let place = *self.chance.pick(&world.places_of(role));
                    (world.machine(place), coordinator)
                })
                .collect();
        }
        if self.chance.percent(50) {
            let center = match self.chance.percent(50) {
                true => world.machine(world.places_of(Role::Coordinator)[0]),
                false => *self.chance.pick(&machines),
            };
            let outward = self.chance.percent(50);
            let spokes = some(self, 30).into_iter().filter(|&spoke| spoke != center);
            return match outward {
                true => spokes.map(|spoke| (center, spoke)).collect(),
                false => spokes.map(|spoke| (spoke, center)).collect(),
            };
        }
        let mut group = some(self, 35);
        if group.is_empty() || group.len() == machines.len() {
            group = vec![*self.chance.pick(&machines)];
        }
        let others = machines.iter().filter(|machine| !group.contains(machine));
        others
            .flat_map(|&b| group.iter().map(move |&a| (a, b)))
            .collect()
    }

    fn crash(&mut self, world: &mut World, role: Role, fault: Fault) {
        let places = world.places_of(role);
        let place = *self.chance.pick(&places);
        if world.is_up(place) {
            // Where a gateway shares a shard's process they fall together, and it goes on talking to its users.
            let shard = match role {
                Role::Shard => Some(place),
                _ => world.shard_beside(place),
            };
            if let Some(shard) = shard.filter(|_| self.chance.percent(40)) {
                self.silence_and_crash(world, shard);
            } else {
                world.strike(place, self.chance.below(60) as u32, Blow::Crash);
            }
            world.counts.count(fault);
        }
        self.restart_later(world, place);
    }

    /// For the rest of its life nothing that the shard sends reaches a backup, but everything else
    /// does: whatever it says in that time, it says alone.
    fn silence_and_crash(&mut self, world: &mut World, shard: PlaceId) {
        // A gateway beside needs nobody else to be heard: what it says is more, the longer that lasts.
        let longest_us = match world.setup.gateways_in_masters {
            true => 400_000,
            false => 140_000,
        };
        let in_us = self.chance.between(20_000, longest_us);
        let machine = world.machine(shard);
        let until_us = world.now_us() + in_us + 1;
        for backup in world.places_of(Role::Backup) {
            if world.machine(backup) != machine {
                world
                    .network
                    .block(machine, world.machine(backup), until_us, false);
            }
        }
        world.alarm(in_us, CRASH_FROM + shard.0 as u64);
    }

    /// For the rest of its life so many backups as a quorum can do without hear nothing of the shard, and when it dies
    /// others do, too, for a while: whoever comes back first does not know the end of the log.
    fn strand(&mut self, world: &mut World) {
        let config = world.setup.config;
        let shard = *self.chance.pick(&world.places_of(Role::Shard));
        let in_us = self.chance.between(20_000, 600_000);
        let until_us = world.now_us() + in_us + 1;
        let mut backups = world.places_of(Role::Backup);
        for _ in config.ack_quorum..config.replicas {
            let deaf = backups.swap_remove(self.chance.below(backups.len() as u64) as usize);
            let (from, to) = (world.machine(shard), world.machine(deaf));
            if from != to {
                world.network.block(from, to, until_us, false);
            }
        }
        world.alarm(in_us, CRASH_FROM + shard.0 as u64);
        let again_in_us = in_us + self.chance.between(150_000, 1_500_000);
        world.alarm(again_in_us, RESTART_FROM + shard.0 as u64);
        world.counts.count(Fault::ShardCrash);
        for backup in backups {
            if self.chance.percent(60) {
                let at_us = (in_us + self.chance.below(60_000)).saturating_sub(20_000);
                world.alarm(at_us, CRASH_FROM + backup.0 as u64);
                let again_in_us = at_us + self.chance.between(300_000, 3_000_000);
                world.alarm(again_in_us, RESTART_FROM + backup.0 as u64);
                world.counts.count(Fault::BackupCrash);
            }
        }
    }

    /// Some shard's next compaction will be among the last things it does.
    fn starve(&mut self, world: &mut World) {
        let shard = *self.chance.pick(&world.places_of(Role::Shard));
        world.starve_from_compaction(shard, STARVED_FROM + shard.0 as u64);
    }

    /// For the rest of its life nothing that the shard appends to its heads arrives, but copies of older segments do,
    /// and it has many to make: a backup dies and soon comes back. Whatever it has changed in old segments on the
    /// strength of what it has appended lately will outlive that.
    fn crash_the_starved(&mut self, world: &mut World, shard: PlaceId) {
        let backup = *self.chance.pick(&world.places_of(Role::Backup));
        let backup_in_us = self.chance.between(1_000, 150_000);
        let back_in_us = backup_in_us + self.chance.between(10_000, 100_000);
        let in_us = back_in_us + self.chance.between(20_000, 250_000);
        world.alarm(backup_in_us, CRASH_FROM + backup.0 as u64);
        world.alarm(back_in_us, RESTART_FROM + backup.0 as u64);
        world.alarm(in_us, CRASH_FROM + shard.0 as u64);
        let again_in_us = in_us + self.chance.between(150_000, 1_500_000);
        world.alarm(again_in_us, RESTART_FROM + shard.0 as u64);
        world.counts.count(Fault::BackupCrash);
        world.counts.count(Fault::ShardCrash);
    }

    /// A shard that leans dies, and perhaps the coordinator or a backup just before or after it; perhaps who takes over
    /// from it is the next.
    fn crash_the_caught(&mut self, world: &mut World, shard: PlaceId) {
        let in_us = self.chance.between(1_000, 800_000);
        world.alarm(in_us, CRASH_FROM + shard.0 as u64);
        let again_in_us = in_us + self.chance.between(150_000, 1_500_000);
        world.alarm(again_in_us, RESTART_FROM + shard.0 as u64);
        world.counts.count(Fault::ShardCrash);
        for (role, fault) in [
            (Role::Coordinator, Fault::CoordinatorCrash),
            (Role::Backup, Fault::BackupCrash),
        ] {
            if self.chance.percent(35) {
                let place = *self.chance.pick(&world.places_of(role));
                let at_us = (in_us + self.chance.below(300_000)).saturating_sub(150_000);
                world.alarm(at_us, CRASH_FROM + place.0 as u64);
                let again_in_us = at_us + self.chance.between(20_000, 1_000_000);
                world.alarm(again_in_us, RESTART_FROM + place.0 as u64);
                world.counts.count(fault);
            }
        }
        if self.chance.percent(30) {
            world.catch_leaning = Some(CAUGHT_FROM);
        }
    }

    fn restart_later(&mut self, world: &mut World, place: PlaceId) {
        let in_us = match self.chance.percent(75) {
            true => self.chance.between(150_000, 1_500_000),
            false => self.chance.between(1_000_000, 7_000_000),
        };
        world.alarm(in_us, RESTART_FROM + place.0 as u64);
    }

    fn restart_all(&mut self, world: &mut World) {
        // Half the time an operator says that nobody can be alive.
        world.setup.cold_start = self.chance.percent(50);
        for place in world.all_places() {
            world.alarm(
                self.chance.between(10_000, 1_000_000),
                RESTART_FROM + place.0 as u64,
            );
        }
    }

    fn recover_later(&mut self, world: &mut World, place: PlaceId, longest_us: u64) {
        let in_us = self.chance.between(300_000, longest_us);
        world.alarm(in_us, RECOVER_FROM + place.0 as u64);
    }

    fn manners(&self, place: PlaceId, slow_factor: u64) -> DiskManners {
        let hurt = |fault| self.faults.has(fault) && self.victims.contains(&place);
        DiskManners {
            slow_factor,
            sync_errors_ppm: if hurt(Fault::SyncError) { 50_000 } else { 0 },
            read_errors_ppm: if hurt(Fault::ReadError) { 150_000 } else { 0 },
        }
    }

    fn place(&mut self, world: &World) -> PlaceId {
        *self.chance.pick(&world.all_places())
    }

    fn machine(&mut self, world: &World) -> MachineId {
        let place = self.place(world);
        world.machine(place)
    }

    fn machines(&self, world: &World) -> Vec<MachineId> {
        let mut machines: Vec<MachineId> = world
            .all_places()
            .into_iter()
            .map(|place| world.machine(place))
            .collect();
        machines.sort_unstable();
        machines.dedup();
        machines
    }
}

/// Starts everything that is down on the place's machine.
fn restart(world: &mut World, place: PlaceId) {
    let machine = world.machine(place);
    for other in world.all_places() {
        if world.machine(other) == machine && !world.is_up(other) {
            world.start_in(other, 0);
        }
    }
}
