//! What knowledge of lifetimes saves the cleaner, on sessions as users make them, in simulated time.
//!
//! A fixed number of sessions, so many that their live bytes fill the memory to the utilisation asked for. Each is used
//! at intervals drawn from an exponential distribution; most uses touch it, some write another value. Its user goes
//! away after a number of uses that is geometric: one in five after a few, the others after more. Most just stay away,
//! and the session expires when its idle time is over; the others log out, which deletes it. Another session begins at
//! once. Hours of that take seconds, because time is an argument.
//!
//! Everything is drawn from one seed, so that both runs of a pair see the same uses at the same times.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use holdfast_format::{ClusterMs, Expiry};
use holdfast_log::{AppendError, CleanerOptions, Config};
use serde::Serialize;

use crate::engine::{Engine, Totals};
use crate::keys::{KEY_BYTES, Random, session};

/// Simulated time between two calls of the sweep, and in which it gets round: a shard looks at 12,800 buckets a second,
/// and has two million of them at 4 GB.
const TICK_MS: u64 = 500;
const SWEEP_MS: u64 = 150_000;
const BUCKET_BYTES: u64 = 64;

/// When a user who was refused comes back.
const BACK_MS: u64 = 1_000;

/// What a session's touch will take, on average: an entry, and its word in the index.
const TOUCH_BYTES: u64 = (KEY_BYTES as u64 + 32 + 11) * 3 / 4;

/// What the cleaner is told of when sessions end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Knowledge {
    /// Nothing: what has expired is live to it until it meets it in a segment that it cleans for other reasons.
    Unknown,
    /// What the sweep has found to be over. When it chooses and sorts it ignores what is going to be.
    Swept,
    /// All that deadlines tell.
    Known,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub config: Config,
    pub knowledge: Knowledge,
    /// Live bytes and index ÷ memory bound.
    pub utilisation: f64,
    /// Values are of any length from a fifth of this to nine fifths.
    pub value_bytes: usize,
    pub lives: Vec<Lives>,
    /// Simulated, before anything is counted, and then counted.
    pub warm_ms: u64,
    pub measured_ms: u64,
    pub seed: u64,
}

/// How one kind of session is used.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Lives {
    /// Relative to the other kinds', how many sessions there are of it at any time.
    pub weight: f64,
    pub idle_ms: u64,
    /// Mean time between two uses; fewer than a hundredth of the intervals may exceed the idle time.
    pub interval_ms: u64,
    /// The part of the sessions that is abandoned soon, after two uses on average; and the mean number of uses of the
    /// others.
    pub abandoned: f64,
    pub uses: f64,
    /// The part of all sessions that users end themselves; the others expire.
    pub logged_out: f64,
    /// The part of the uses that write another value.
    pub rewritten: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub lives: String,
    pub utilisation_percent: f64,
    pub two_level: bool,
    pub knowledge: Knowledge,
    /// All that follows was counted after the warming up.
    pub sessions: u64,
    pub begun: u64,
    pub expired: u64,
    pub touches: u64,
    /// Uses that were refused for want of memory; the user came back a second later.
    pub refused: u64,
    pub appended_bytes: u64,
    pub compacted_bytes: u64,
    pub combined_bytes: u64,
    /// Survivors, as each backup got them.
    pub shipped_bytes: u64,
    /// Live bytes and index ÷ memory bound, at the end.
    pub utilisation_end: f64,
}

impl Row {
    pub fn copied_bytes(&self) -> u64 {
        self.compacted_bytes + self.combined_bytes
    }
}

/// One idle time of 30 minutes, a use every 4 minutes; visitors who leave just stay away.
pub fn web() -> Vec<Lives> {
    vec![visitors(30 * 60_000)]
}

fn visitors(idle_ms: u64) -> Lives {
    Lives {
        weight: 1.0,
        idle_ms,
        interval_ms: idle_ms * 2 / 15,
        abandoned: 0.2,
        uses: 20.0,
        logged_out: 0.1,
        rewritten: 0.02,
    }
}

/// The same, but most users log out, which nobody can foresee, and one use in ten writes.
pub fn office() -> Vec<Lives> {
    vec![Lives {
        logged_out: 0.8,
        rewritten: 0.1,
        ..visitors(30 * 60_000)
    }]
}

/// As `web`, but what most session libraries do: each use writes the whole session.
pub fn rewritten() -> Vec<Lives> {
    vec![Lives {
        rewritten: 1.0,
        ..visitors(30 * 60_000)
    }]
}

/// Idle times from minutes to days.
pub fn mixed() -> Vec<Lives> {
    let minute = 60_000;
    let kind = |weight, idle_ms| Lives {
        weight,
        ..visitors(idle_ms)
    };
    vec![
        kind(0.2, 10 * minute),
        kind(0.4, 30 * minute),
        kind(0.2, 4 * 60 * minute),
        kind(0.2, 24 * 60 * minute),
    ]
}

struct User {
    /// Of its key.
    number: u64,
    kind: usize,
    value_bytes: usize,
    /// Abandoned soon.
    fickle: bool,
    /// The idle time is running out, or he logs out next.
    gone: bool,
    /// Has no session yet: it was refused.
    waits: bool,
}

struct Crowd<'a> {
    settings: &'a Settings,
    engine: Engine,
    random: Random,
    users: Vec<User>,
    /// Who does something when.
    due: BinaryHeap<Reverse<(u64, u32)>>,
    numbers: u64,
    tick_ms: u64,
    value: Vec<u8>,
    begun: u64,
    expired: u64,
    touches: u64,
    refused: u64,
}

/// Live bytes and index ÷ memory bound.
fn utilisation(engine: &Engine) -> f64 {
    let memory = engine.memory();
    (memory.live_bytes + memory.index_bytes) as f64 / memory.limit_bytes as f64
}

/// Runs the settings' sessions and counts what the cleaner does.
pub fn measure(settings: &Settings, name: &str) -> Row {
    let mut crowd = Crowd {
        settings,
        engine: Engine::simulated(Config {
            cleaner: CleanerOptions {
                lifetimes: settings.knowledge == Knowledge::Known,
                ..settings.config.cleaner
            },
            ..settings.config.clone()
        }),
        random: Random::new(settings.seed),
        users: Vec::new(),
        due: BinaryHeap::new(),
        numbers: 0,
        tick_ms: 0,
        value: vec![0; settings.value_bytes * 2],
        begun: 0,
        expired: 0,
        touches: 0,
        refused: 0,
    };
    crowd.fill();
    crowd.run(settings.warm_ms);
    let before = (crowd.engine.memory(), crowd.engine.totals);
    (crowd.begun, crowd.expired, crowd.touches, crowd.refused) = (0, 0, 0, 0);
    crowd.run(settings.measured_ms);
    let (memory, totals) = (crowd.engine.memory(), crowd.engine.totals);
    let since = |get: fn(&Totals) -> u64| get(&totals) - get(&before.1);
    Row {
        lives: name.to_string(),
        utilisation_percent: settings.utilisation * 100.0,
        two_level: settings.config.cleaner.two_level,
        knowledge: settings.knowledge,
        sessions: crowd.users.len() as u64,
        begun: crowd.begun,
        expired: crowd.expired,
        touches: crowd.touches,
        appended_bytes: since(|it| it.appended_bytes),
        compacted_bytes: memory.compacted_bytes - before.0.compacted_bytes,
        combined_bytes: memory.cleaned_bytes - before.0.cleaned_bytes,
        shipped_bytes: since(|it| it.shipped_survivor_bytes),
        refused: crowd.refused,
        utilisation_end: utilisation(&crowd.engine),
    }
}

impl Crowd<'_> {
    /// Users in the middle of their visits, as many as the utilisation takes. They come within one interval,
    /// so that memory is filled as fast as it is used later.
    fn fill(&mut self) {
        let mut n = 0u64;
        let limit = self.engine.memory().limit_bytes as f64;
        while utilisation(&self.engine) + (n * TOUCH_BYTES) as f64 / limit
            < self.settings.utilisation
        {
            let kind = self.kind();
            self.users.push(User {
                number: 0,
                kind,
                value_bytes: 0,
                fickle: false,
                gone: false,
                waits: false,
            });
            self.begin(n as usize);
            n += 1;
            if n.is_multiple_of(64) {
                let now = self.engine.now().plus_ms(1);
                self.advance(now.0);
            }
        }
    }

    fn kind(&mut self) -> usize {
        let lives = &self.settings.lives;
        let mut left = self.random.share() * lives.iter().map(|it| it.weight).sum::<f64>();
        let last = lives.len() - 1;
        (lives.iter())
            .position(|it| {
                left -= it.weight;
                left < 0.0
            })
            .unwrap_or(last)
    }

    fn advance(&mut self, now: u64) {
        while self.tick_ms + TICK_MS <= now {
            self.tick_ms = (self.tick_ms + TICK_MS).max(self.engine.now().0);
            let buckets = match self.settings.knowledge {
                Knowledge::Unknown => 0,
                _ => self.engine.memory().index_bytes / BUCKET_BYTES,
            };
            let buckets = (buckets * TICK_MS).div_ceil(SWEEP_MS) as u32;
            self.engine.advance_to(ClusterMs(self.tick_ms));
            self.engine.tick(buckets);
        }
        self.engine
            .advance_to(ClusterMs(now).max(self.engine.now()));
    }

    fn run(&mut self, ms: u64) {
        let end = self.engine.now().0 + ms;
        while let Some(&Reverse((time, user))) = self.due.peek() {
            if time > end {
                break;
            }
            self.due.pop();
            self.advance(time);
            self.act(user as usize);
        }
        self.advance(end);
    }

    /// A user comes in another one's place.
    fn begin(&mut self, user: usize) {
        self.numbers += 1;
        self.begun += 1;
        let fifth = self.settings.value_bytes / 5;
        self.users[user].number = self.numbers;
        self.users[user].value_bytes = self.random.between(fifth, 9 * fifth);
        self.users[user].fickle = self.random.share() < self.lives(user).abandoned;
        self.users[user].gone = false;
        self.users[user].waits = false;
        match self.write(user) {
            Ok(()) => self.wait(user),
            Err(_) => {
                self.users[user].waits = true;
                self.begun -= 1;
                self.come_back(user);
            }
        }
    }

    /// After a refusal.
    fn come_back(&mut self, user: usize) {
        self.refused += 1;
        let next = self.engine.now().0 + BACK_MS;
        self.due.push(Reverse((next, user as u32)));
    }

    fn lives(&self, user: usize) -> Lives {
        self.settings.lives[self.users[user].kind]
    }

    fn write(&mut self, user: usize) -> Result<(), AppendError> {
        let Lives { idle_ms, .. } = self.lives(user);
        let User {
            number,
            value_bytes,
            ..
        } = self.users[user];
        let now = self.engine.now();
        let expiry = Expiry {
            deadline: Some(now.plus_ms(idle_ms)),
            idle_ms: Some(idle_ms as u32),
            absolute: None,
        };
        let stamp = self.random.roll().to_le_bytes();
        self.value[..8].copy_from_slice(&stamp);
        let value = &self.value[..value_bytes];
        self.engine.put(&session(number), value, expiry)
    }

    /// Until the next use, or the end.
    fn wait(&mut self, user: usize) {
        let lives = self.lives(user);
        let idle_ms = lives.idle_ms;
        let uses = if self.users[user].fickle {
            2.0
        } else {
            lives.uses
        };
        let leaves = self.random.share() < 1.0 / uses;
        let logs_out = self.random.share() < lives.logged_out;
        let now = self.engine.now().0;
        let interval = -(1.0 - self.random.share()).ln() * lives.interval_ms as f64;
        if leaves && !logs_out {
            self.users[user].gone = true;
            self.due.push(Reverse((now + idle_ms, user as u32)));
            return;
        }
        // Who comes later than the idle time has been logged out; here he just comes in time.
        let next = now + (interval as u64).clamp(1, idle_ms - 1);
        if leaves {
            self.users[user].gone = true;
        }
        self.due.push(Reverse((next, user as u32)));
    }

    fn act(&mut self, user: usize) {
        if self.users[user].waits {
            return self.begin(user);
        }
        let key = session(self.users[user].number);
        if self.users[user].gone {
            // Logs out, unless it is over: then nothing is left to delete.
            let Ok(found) = self.engine.delete(&key) else {
                return self.come_back(user);
            };
            self.expired += u64::from(!found);
            return self.begin(user);
        }
        let Lives {
            idle_ms, rewritten, ..
        } = self.lives(user);
        let used = if self.random.share() < rewritten {
            self.write(user).map(|()| true)
        } else {
            self.touches += 1;
            let deadline = self.engine.now().plus_ms(idle_ms);
            self.engine.touch(&key, deadline)
        };
        match used {
            Ok(true) => {}
            // It ended while this user was refused.
            Ok(false) => return self.begin(user),
            Err(_) => return self.come_back(user),
        }
        self.wait(user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine;

    #[test]
    fn sessions_begin_are_used_and_expire() {
        let settings = Settings {
            config: Config {
                segment_bytes: 256 << 10,
                seglet_bytes: 16 << 10,
                key_bytes_max: 64,
                value_bytes_max: 4 << 10,
                ..engine::config(8 << 20)
            },
            knowledge: Knowledge::Known,
            utilisation: 0.6,
            value_bytes: 300,
            lives: mixed(),
            warm_ms: 60_000,
            measured_ms: 3_600_000,
            seed: 7,
        };
        let row = measure(&settings, "mixed");
        assert!(
            row.sessions > 5_000 && row.begun > row.sessions / 4,
            "{row:?}"
        );
        assert!(row.expired > 100 && row.touches > row.sessions, "{row:?}");
        assert!((0.5..0.7).contains(&row.utilisation_end), "{row:?}");
        assert!(row.copied_bytes() > 0 && row.shipped_bytes > 0, "{row:?}");
        assert_eq!(row.refused, 0, "{row:?}");
    }
}
