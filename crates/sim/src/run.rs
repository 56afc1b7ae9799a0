//! One seed from beginning to end: faults, healing, liveness, reading everything back.

use std::collections::BTreeMap;

use holdfast_cluster::Call;
use holdfast_wire::{Command, Meta, Op, Outcome, Role};

use crate::applications::{Applications, Habits};
use crate::chance::Chance;
use crate::chaos::{ALARMS_FROM, Chaos};
use crate::check::{Yardstick, check};
use crate::faults::{Fault, FaultCounts, FaultSet};
use crate::history::{Asked, Deadline, KeyId, Operation, Saw};
use crate::second_opinion::{self, SecondOpinion};
use crate::setup::Setup;
use crate::trace::TraceHash;
use crate::world::{Happening, Tells, World};

/// After healing, everything asked for must have been answered and the cluster be ready by then.
const LIVENESS_US: u64 = 30_000_000;
/// More events than this in one seed means that somebody talks without end.
const EVENTS_MAX: u64 = 5_000_000;
/// The published expiry bound.
const EXPIRY_BOUND_MS: u64 = 500;

/// What a seed showed.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub trace: TraceHash,
    pub simulated_us: u64,
    pub events: u64,
    /// Operations whose outcome is known.
    pub answered: u64,
    pub unknown: u64,
    pub counts: FaultCounts,
    /// What the roles counted, by their own names.
    pub tallies: BTreeMap<&'static str, u64>,
    pub second_opinion: SecondOpinion,
    pub violations: Vec<String>,
}

impl Report {
    /// True if a promise about data was broken: something lost, stale, doubled or revived. Not to be
    /// live in time is another matter.
    pub fn broke_data(&self) -> bool {
        let about_data =
            |violation: &String| violation.contains(": K") || violation.contains("answered twice");
        self.violations.iter().any(about_data)
    }
}

/// A seed's plan: everything that is drawn before the world begins.
#[derive(Clone, Debug)]
pub struct Plan {
    pub setup: Setup,
    pub faults: FaultSet,
    pub habits: Habits,
    pub unsafe_us: u64,
    /// In the end, replace R - 1 disks at once and kill a master.
    pub finale: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64) -> Plan {
        let mut chance = Chance::new(seed, 0x706C);
        let mut faults = FaultSet::draw(&mut chance);
        let mut setup = Setup::draw(seed, &mut chance);
        if !setup.config.ack_disk {
            // Nobody promises anything about all kernels failing at once in `memory` mode.
            faults.remove(Fault::PowerLossOfAll);
        }
        setup.power_fails = faults.has(Fault::PowerLoss) || faults.has(Fault::PowerLossOfAll);
        if faults.has(Fault::ClockDrift) {
            setup.drift_ppm_max = 20_000;
        }
        if faults.has(Fault::ClockOffset) {
            setup.wall_offset_ms_max = 10_000;
        }
        let mut habits = Habits {
            callers: chance.between(3, 5) as u32,
            speakers: chance.between(3, 5) as u32,
            think_us: chance.between(25_000, 60_000),
            cold_keys: chance.between(100, 300) as u32,
            large_percent: *chance.pick(&[5, 30, 50]),
            large_bytes_max: 12 << 10,
            onlookers: 0,
        };
        if setup.gateways_in_masters {
            // Calls go as messages; what a gateway asks the shard of its thread comes from connections.
            habits.callers = 2;
            habits.speakers += 3;
        }
        if setup.islands {
            // Whoever writes to an island waits, so its visitors must be content to read.
            faults.add(Fault::Partition);
            habits.onlookers = habits.speakers / 2;
        }
        let unsafe_us = chance.between(16_000_000, 32_000_000);
        let finale = chance.percent(40);
        Plan {
            setup,
            faults,
            habits,
            unsafe_us,
            finale,
        }
    }
}

/// Runs a seed.
pub fn run(seed: u64, tells: Tells) -> Report {
    run_plan(Plan::draw(seed), tells)
}

/// Runs a plan.
pub fn run_plan(plan: Plan, tells: Tells) -> Report {
    let mut run = Run::new(plan, tells);
    run.safety();
    run.liveness();
    run.read_back(READ_BACK);
    if run.plan.finale && run.world.violations.is_empty() {
        run.finale();
    }
    run.report()
}

/// Who reads back, as a client of the history.
const READ_BACK: u32 = 1_000;

struct Run {
    plan: Plan,
    world: World,
    applications: Applications,
    chaos: Chaos,
}

impl Run {
    fn new(plan: Plan, tells: Tells) -> Run {
        let mut world = World::new(plan.setup.clone(), tells);
        world.tell(Tells::Events, || format!("{plan:?}"));
        let applications = Applications::new(&mut world, plan.habits, plan.faults.clone());
        let chaos = Chaos::begin(&mut world, plan.faults.clone(), plan.unsafe_us);
        Run {
            plan,
            world,
            applications,
            chaos,
        }
    }

    /// Lets the world go on until then, or until `done`.
    fn go_on(&mut self, until_us: u64, done: impl Fn(&Run) -> bool) -> bool {
        let mut look_us = self.world.now_us();
        loop {
            let next_us = until_us.min(look_us + 50_000);
            match self.world.advance(next_us) {
                Some(Happening::Alarm { name }) if name >= ALARMS_FROM => {
                    self.chaos.take(&mut self.world, name);
                }
                Some(happening) => self.applications.take(&mut self.world, happening),
                None => {
                    look_us = self.world.now_us();
                    if done(self) {
                        return true;
                    }
                    if look_us >= until_us {
                        return false;
                    }
                }
            }
            if self.world.events() > EVENTS_MAX {
                let text = "L more events than a seed can have".to_owned();
                if !self.world.violations.contains(&text) {
                    self.world.violations.push(text);
                }
                return false;
            }
        }
    }

    fn safety(&mut self) {
        let until_us = self.world.now_us() + self.plan.unsafe_us;
        self.go_on(until_us, |_| false);
    }

    fn liveness(&mut self) {
        self.chaos.end();
        self.world.heal();
        let working_us = self.world.now_us() + 3_000_000;
        self.go_on(working_us, |_| false);
        self.applications.rest();
        self.settle("healing");
    }

    /// Everything asked for is answered and everybody ready, in time.
    fn settle(&mut self, after: &str) {
        let until_us = self.world.now_us() + LIVENESS_US;
        let quiet = |run: &Run| run.applications.pending() == 0 && run.world.is_ready();
        if !self.go_on(until_us, quiet) {
            let unready = self.world.unready().join(", ");
            let pending = self.applications.pending();
            self.world.violations.push(format!(
                "L not live 30 s after {after}: {pending} applications wait, not ready: [{unready}]"
            ));
        }
        for place in self.world.places_of(Role::Shard) {
            let missing = self.world.under_replicated(place);
            if missing > 0 && self.world.is_ready() {
                let name = self.world.name(place).to_owned();
                let text = format!("L {name} is ready with {missing} segments short of replicas");
                self.world.violations.push(text);
            }
        }
    }

    /// Reads every key with its version.
    fn read_back(&mut self, client: u32) {
        let gateway = self.world.places_of(Role::Gateway)[0];
        let mut waiting: Vec<(u64, KeyId, u64)> = Vec::new();
        for key in self.applications.history.keys.all() {
            let command = Command {
                namespace: self.applications.history.keys.namespace(key),
                key: self.applications.history.keys.bytes(key),
                op: Op::Get,
            };
            let invoked_us = self.world.now_us();
            let call = Call {
                command,
                once: None,
                within_ms: Some(20_000),
            };
            waiting.push((self.world.call(gateway, call), key, invoked_us));
            // A few at a time, as a client with a bounded window would.
            if waiting.len() >= 32 {
                self.collect(client, &mut waiting);
            }
        }
        self.collect(client, &mut waiting);
    }

    fn collect(&mut self, client: u32, waiting: &mut Vec<(u64, KeyId, u64)>) {
        let until_us = self.world.now_us() + LIVENESS_US;
        while !waiting.is_empty() {
            let (token, outcome) = match self.world.advance(until_us) {
                Some(Happening::Answer { token, outcome }) => (token, Some(outcome)),
                Some(Happening::CallLost { token }) => (token, None),
                Some(_) => continue,
                None => break,
            };
            let Some(index) = waiting.iter().position(|&(other, ..)| other == token) else {
                continue;
            };
            let (_, key, invoked_us) = waiting.swap_remove(index);
            let returned_us = self.world.now_us();
            let history = &mut self.applications.history;
            let saw = match outcome {
                Some(Outcome::Value { value, meta }) => match history.recognise(key, &value) {
                    Some(value) => Saw::Present {
                        value: Some(value),
                        version: Some(meta.version.0),
                        deadline: deadline(&meta),
                    },
                    None => continue,
                },
                Some(Outcome::Absent { version }) => Saw::Absent {
                    version: Some(version.0),
                },
                other => {
                    let name = history.keys.name(key);
                    let text = format!("L {name} cannot be read back: {other:?}");
                    self.world.violations.push(text);
                    continue;
                }
            };
            let asked = Asked::Read;
            let operation = Operation {
                client,
                key,
                invoked_us,
                returned_us,
                asked,
                saw,
            };
            history.operations.push(operation);
        }
        for (_, key, _) in waiting.drain(..) {
            let name = self.applications.history.keys.name(key);
            self.world
                .violations
                .push(format!("L {name} cannot be read back: no answer"));
        }
    }

    /// R - 1 backups lose their disks in the same moment in which a master dies: what the cluster
    /// says is R-fold must prove to be.
    fn finale(&mut self) {
        let shards = self.world.places_of(Role::Shard);
        let shard = shards[self.plan.setup.seed as usize % shards.len()];
        self.world.tell(Tells::Events, || "finale".to_owned());
        self.world.crash(shard);
        for victim in self.chaos.victims().to_vec() {
            self.world.crash(victim);
            self.world.store(victim).wipe();
        }
        for place in self.world.all_places() {
            if !self.world.is_up(place) {
                self.world.start_in(place, 300_000);
            }
        }
        let until_us = self.world.now_us() + 3_000_000;
        self.go_on(until_us, |_| false);
        self.settle("the finale");
        self.read_back(READ_BACK + 1);
    }

    fn report(mut self) -> Report {
        self.applications.give_up();
        self.world.tally();
        let history = &self.applications.history;
        let mut slack_ms = EXPIRY_BOUND_MS
            + u64::from(self.plan.setup.config.lease_ms)
            + self.world.cluster_time.jumped_ms();
        if self.plan.faults.has(Fault::ClockDrift) {
            // Two clocks that part at 4 % while a member cannot hear the coordinator for 15 s.
            slack_ms += 600;
        }
        let yardstick = Yardstick {
            time: self.world.cluster_time.clone(),
            slack_ms,
        };
        // What is worst comes first.
        let mut violations = check(history, &yardstick);
        violations.append(&mut self.world.violations);
        let second_opinion = second_opinion::ask(history);
        violations.extend(second_opinion.violations.iter().cloned());
        let answered = history.answered();
        Report {
            seed: self.plan.setup.seed,
            trace: self.world.trace(),
            simulated_us: self.world.now_us(),
            events: self.world.events(),
            answered,
            unknown: history.operations.len() as u64 - answered,
            counts: self.world.counts.clone(),
            tallies: std::mem::take(&mut self.world.tallies),
            second_opinion,
            violations,
        }
    }
}

fn deadline(meta: &Meta) -> Deadline {
    meta.deadline
        .map_or(Deadline::Never, |deadline| Deadline::At(deadline.0))
}
