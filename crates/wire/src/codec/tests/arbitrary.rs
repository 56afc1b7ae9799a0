//! Arbitrary messages: every variant, and every field with any value that it may have.

use bytes::Bytes;
use holdfast_format::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::command::*;
use crate::message::*;
use crate::namespaces::*;

fn id<T: std::fmt::Debug>(make: fn(u64) -> T) -> impl Strategy<Value = T> {
    prop_oneof![0..300u64, any::<u64>()].prop_map(make)
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn text() -> impl Strategy<Value = String> {
    "[a-zé0-9:.]{0,20}"
}

fn range() -> impl Strategy<Value = SlotRange> {
    (0..SLOTS, 0..SLOTS).prop_map(|(one, other)| SlotRange {
        first: Slot(one.min(other)),
        last: Slot(one.max(other)),
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        Just(Condition::Always),
        Just(Condition::Absent),
        Just(Condition::Present),
        id(Version).prop_map(Condition::Version),
        bytes().prop_map(Condition::ValueIs),
    ]
}

fn touch_condition() -> impl Strategy<Value = TouchCondition> {
    prop_oneof![
        Just(TouchCondition::Always),
        Just(TouchCondition::NoDeadline),
        Just(TouchCondition::HasDeadline),
        Just(TouchCondition::Later),
        Just(TouchCondition::Earlier),
        id(Version).prop_map(TouchCondition::Version),
        bytes().prop_map(TouchCondition::ValueIs),
    ]
}

fn expiry() -> impl Strategy<Value = ExpiryChange> {
    let absolute = prop_oneof![
        id(ClusterMs).prop_map(AbsoluteDeadline::At),
        any::<u64>().prop_map(AbsoluteDeadline::InMs),
    ];
    prop_oneof![
        Just(ExpiryChange::Clear),
        Just(ExpiryChange::Keep),
        any::<i64>().prop_map(|ms| ExpiryChange::In { ms }),
        id(ClusterMs).prop_map(|deadline| ExpiryChange::At { deadline }),
        (option::of(any::<u32>()), option::of(absolute))
            .prop_map(|(idle_ms, absolute)| ExpiryChange::Session { idle_ms, absolute }),
        Just(ExpiryChange::Slide),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Get),
        Just(Op::Stat),
        (bytes(), condition(), expiry(), any::<bool>()).prop_map(
            |(value, condition, expiry, return_old)| Op::Put {
                value,
                condition,
                expiry,
                return_old
            }
        ),
        (touch_condition(), expiry(), any::<bool>()).prop_map(
            |(condition, expiry, return_value)| Op::Touch {
                condition,
                expiry,
                return_value
            }
        ),
        (condition(), any::<bool>()).prop_map(|(condition, return_old)| Op::Delete {
            condition,
            return_old
        }),
        (id(KeyHash), any::<u32>()).prop_map(|(from, limit)| Op::Scan { from, limit }),
        Just(Op::Count),
        Just(Op::Usage),
        Just(Op::Flush),
        any::<i64>().prop_map(|by| Op::Add { by }),
        bytes().prop_map(|value| Op::Append { value }),
    ]
}

fn meta() -> impl Strategy<Value = Meta> {
    (
        id(Version),
        option::of(id(ClusterMs)),
        option::of(any::<u32>()),
        option::of(id(ClusterMs)),
        option::of(any::<u64>()),
    )
        .prop_map(
            |(version, deadline, idle_ms, absolute, remaining_ms)| Meta {
                version,
                deadline,
                idle_ms,
                absolute,
                remaining_ms,
            },
        )
}

fn quota() -> impl Strategy<Value = Quota> {
    prop_oneof![Just(Quota::Sessions), Just(Quota::Bytes)]
}

fn namespace_use() -> impl Strategy<Value = NamespaceUse> {
    any::<(u8, u64, u64, u64, u64)>().prop_map(
        |(namespace, sessions, with_deadline, bytes, evicted)| NamespaceUse {
            namespace: Namespace(namespace),
            sessions,
            with_deadline,
            bytes,
            evicted,
        },
    )
}

fn usage() -> impl Strategy<Value = Usage> {
    (any::<[u64; 5]>(), vec(namespace_use(), 0..4)).prop_map(|(f, namespaces)| Usage {
        used_bytes: f[0],
        limit_bytes: f[1],
        live_bytes: f[2],
        expired: f[3],
        evicted: f[4],
        namespaces,
    })
}

fn policy() -> impl Strategy<Value = NamespacePolicy> {
    let evict = prop_oneof![Just(Eviction::Never), Just(Eviction::OldestIdle)];
    let limits = (
        option::of(any::<u64>()),
        option::of(any::<u64>()),
        option::of(any::<u32>()),
        evict,
    )
        .prop_map(|(sessions, bytes, value_bytes, evict)| NamespaceLimits {
            sessions,
            bytes,
            value_bytes,
            evict,
        });
    (any::<u8>(), limits).prop_map(|(namespace, limits)| NamespacePolicy {
        namespace: Namespace(namespace),
        limits,
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        Just(Failure::NotOwner),
        Just(Failure::NotReady),
        Just(Failure::OutOfMemory),
        (any::<u8>(), quota(), any::<u64>()).prop_map(|(namespace, quota, limit)| {
            Failure::NamespaceFull {
                namespace: Namespace(namespace),
                quota,
                limit,
            }
        }),
        any::<(u8, u64, u64)>().prop_map(|(namespace, bytes, limit)| {
            Failure::NamespaceValueTooLarge {
                namespace: Namespace(namespace),
                bytes,
                limit,
            }
        }),
        any::<(u64, u64)>().prop_map(|(bytes, limit)| Failure::ValueTooLarge { bytes, limit }),
        any::<(u64, u64)>().prop_map(|(bytes, limit)| Failure::KeyTooLarge { bytes, limit }),
        Just(Failure::Busy),
        Just(Failure::StaleClient),
        Just(Failure::OutcomeUnknown),
        Just(Failure::Unreachable),
        Just(Failure::TooLate),
        text().prop_map(Failure::Invalid),
    ]
}

pub(super) fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        (bytes(), meta()).prop_map(|(value, meta)| Outcome::Value { value, meta }),
        id(Version).prop_map(|version| Outcome::Absent { version }),
        (meta(), option::of(bytes())).prop_map(|(meta, old)| Outcome::Done { meta, old }),
        (id(Version), option::of(meta()), option::of(bytes())).prop_map(
            |(version, current, old)| Outcome::Refused {
                version,
                current,
                old
            }
        ),
        (vec((id(KeyHash), bytes()), 0..5), option::of(id(KeyHash)))
            .prop_map(|(keys, next)| Outcome::Scanned { keys, next }),
        usage().prop_map(Outcome::Usage),
        any::<(u64, u64)>().prop_map(|(sessions, with_deadline)| Outcome::Counted {
            sessions,
            with_deadline
        }),
        Just(Outcome::Flushed),
        failure().prop_map(Outcome::Failed),
    ]
}

fn member() -> impl Strategy<Value = Member> {
    let role = prop_oneof![
        Just(Role::Coordinator),
        Just(Role::Shard),
        Just(Role::Backup),
        Just(Role::Gateway),
    ];
    (
        id(ServerId),
        role,
        text(),
        text(),
        any::<u32>(),
        text(),
        text(),
        any::<u64>(),
    )
        .prop_map(
            |(id, role, address, machine, pid, resp_cluster, name, store)| Member {
                id,
                role,
                address,
                machine,
                pid,
                resp_cluster,
                name,
                store,
            },
        )
}

fn view() -> impl Strategy<Value = View> {
    let tablet = (range(), id(LogId), id(Epoch), any::<bool>()).prop_map(
        |(range, owner, epoch, available)| Tablet {
            range,
            owner,
            epoch,
            available,
        },
    );
    (
        any::<u64>(),
        vec(member(), 0..4),
        vec(tablet, 0..4),
        vec(id(LogId), 0..4),
        vec(policy(), 0..4),
        vec(id(ServerId), 0..4),
    )
        .prop_map(
            |(version, members, tablets, recovering, namespaces, slow)| View {
                version,
                members,
                tablets,
                recovering,
                namespaces,
                slow,
            },
        )
}

fn certificate() -> impl Strategy<Value = Certificate> {
    any::<(u32, u32)>().prop_map(|(length, checksum)| Certificate { length, checksum })
}

fn membership() -> impl Strategy<Value = Message> {
    let config = any::<(u64, (u8, u8), u32, u32, u32, bool)>().prop_map(
        |(cluster, (replicas, ack_quorum), lease_ms, heartbeat_ms, probe_ms, ack_disk)| {
            ClusterConfig {
                cluster,
                replicas,
                ack_quorum,
                lease_ms,
                heartbeat_ms,
                probe_ms,
                ack_disk,
            }
        },
    );
    let figures = any::<[u64; 21]>().prop_map(|f| Figures {
        sessions: f[0],
        bytes_used: f[1],
        bytes_limit: f[2],
        segments: f[3],
        under_replicated: f[4],
        operations: f[5],
        disk_used: f[6],
        disk_limit: f[7],
        clock_error_us: f[8],
        bytes_live: f[9],
        bytes_reclaimable: f[10],
        bytes_reserved: f[11],
        bytes_index: f[12],
        bytes_records: f[13],
        bytes_external: f[14],
        bytes_huge: f[15],
        expired: f[16],
        evicted: f[17],
        scrub_permille: f[18],
        scrub_passes: f[19],
        scrub_bad: f[20],
    });
    prop_oneof![
        (member(), vec(id(LogId), 0..5))
            .prop_map(|(member, logs)| Message::Enlist(Enlist { member, logs })),
        (id(ServerId), config, view()).prop_map(|(id, config, view)| Message::Enlisted(Enlisted {
            id,
            config,
            view
        })),
        view().prop_map(Message::View),
        (
            id(ServerId),
            any::<u64>(),
            any::<u64>(),
            figures,
            vec(namespace_use(), 0..4),
            vec((any::<u32>(), any::<u32>()), 0..64),
            vec((id(ServerId), any::<u32>(), any::<u32>()), 0..4),
        )
            .prop_map(
                |(from, sent_us, view_version, figures, namespaces, loads, waits)| {
                    let wait = |(backup, appends, wait_us)| AppendWait {
                        backup,
                        appends,
                        wait_us,
                    };
                    let load = |(entries, kib)| SlotLoad { entries, kib };
                    let loads = loads.into_iter().map(load).collect();
                    Message::Heartbeat(Heartbeat {
                        from,
                        sent_us,
                        view_version,
                        figures: Box::new(figures),
                        namespaces,
                        loads,
                        append_waits: waits.into_iter().map(wait).collect(),
                    })
                }
            ),
        any::<(u64, u64, u64, bool)>().prop_map(|(sent_us, cluster_us, view_version, known)| {
            Message::HeartbeatReply(HeartbeatReply {
                sent_us,
                cluster_us,
                view_version,
                known,
            })
        }),
        any::<u64>().prop_map(|nonce| Message::Ping { nonce }),
        any::<u64>().prop_map(|nonce| Message::Pong { nonce }),
        (id(ServerId), any::<bool>())
            .prop_map(|(server, ended)| Message::Suspect { server, ended }),
    ]
}

fn replication() -> impl Strategy<Value = Message> {
    let refusal = prop_oneof![
        id(Epoch).prop_map(|epoch| Refusal::Fenced { epoch }),
        any::<u32>().prop_map(|length| Refusal::Reopen { length }),
        Just(Refusal::Full),
        Just(Refusal::Broken),
    ];
    let place = || (id(LogId), id(Epoch), id(SegmentId));
    prop_oneof![
        (
            place(),
            any::<(u32, bool, bool, u64, u32)>(),
            bytes(),
            option::of(certificate()),
            id(ClusterMs)
        )
            .prop_map(|(place, numbers, bytes, certificate, expiry_ceiling)| {
                let (log, epoch, segment) = place;
                let (offset, open, close, sent_us, lease_ms) = numbers;
                Message::Append(Append {
                    log,
                    epoch,
                    segment,
                    offset,
                    bytes,
                    certificate,
                    open,
                    close,
                    sent_us,
                    lease_ms,
                    expiry_ceiling,
                })
            }),
        (place(), any::<(u32, bool, u64, u32)>()).prop_map(|(place, numbers)| {
            let (log, epoch, segment) = place;
            let (length, closed, sent_us, lease_ms) = numbers;
            Message::Appended(Appended {
                log,
                epoch,
                segment,
                length,
                closed,
                sent_us,
                lease_ms,
            })
        }),
        (id(LogId), id(SegmentId), refusal).prop_map(|(log, segment, why)| {
            Message::AppendRefused(AppendRefused { log, segment, why })
        }),
        (id(LogId), vec(id(SegmentId), 0..5))
            .prop_map(|(log, segments)| Message::Free { log, segments }),
        (id(LogId), id(Epoch)).prop_map(|(log, epoch)| Message::RaiseEpoch { log, epoch }),
        (id(LogId), id(Epoch)).prop_map(|(log, epoch)| Message::EpochRecorded { log, epoch }),
    ]
}

fn recovery() -> impl Strategy<Value = Message> {
    let replica = (
        (id(SegmentId), id(Epoch), any::<bool>()),
        certificate(),
        id(Version),
        option::of(vec(id(SegmentId), 0..4)),
    )
        .prop_map(
            |((segment, epoch, closed), certificate, version_ceiling, digest)| ReplicaState {
                segment,
                epoch,
                closed,
                certificate,
                version_ceiling,
                digest,
            },
        );
    let holder = (id(ServerId), certificate()).prop_map(|(backup, certificate)| Holder {
        backup,
        certificate,
    });
    let source = (id(SegmentId), vec(holder, 0..3))
        .prop_map(|(segment, holders)| RecoverSegment { segment, holders })
        .boxed();
    let leant_on = (id(LogId), vec(range(), 0..4), vec(source.clone(), 0..4)).prop_map(
        |(log, ranges, segments)| LeantOn {
            log,
            ranges,
            segments,
        },
    );
    let lineage = (option::of(vec(id(SegmentId), 0..3)), vec(leant_on, 0..3));
    prop_oneof![
        (id(LogId), id(Epoch)).prop_map(|(log, epoch)| Message::Fence { log, epoch }),
        (
            id(LogId),
            id(Epoch),
            vec(replica, 0..4),
            any::<u32>(),
            id(ClusterMs)
        )
            .prop_map(
                |(log, epoch, replicas, lease_remaining_ms, expiry_ceiling)| {
                    Message::Inventory(Inventory {
                        log,
                        epoch,
                        replicas,
                        lease_remaining_ms,
                        expiry_ceiling,
                    })
                }
            ),
        (
            (
                id(LogId),
                any::<u64>(),
                vec(range(), 0..4),
                vec(source, 0..4)
            ),
            id(Version),
            id(ClusterMs),
            any::<u32>(),
            lineage
        )
            .prop_map(
                |(plan, version_ceiling, expiry_floor, lease_remaining_ms, lineage)| {
                    let (log, attempt, ranges, segments) = plan;
                    let (first, leant_on) = lineage;
                    Message::Recover(Recover {
                        log,
                        attempt,
                        ranges,
                        segments,
                        version_ceiling,
                        expiry_floor,
                        lease_remaining_ms,
                        first,
                        leant_on,
                    })
                }
            ),
        (id(LogId), any::<u64>())
            .prop_map(|(log, attempt)| Message::RecoveryRecorded { log, attempt }),
        (id(LogId), any::<[u64; 4]>(), any::<[u32; 3]>()).prop_map(
            |(log, [attempt, entries, bytes, bytes_left], [first, replayed, replicated])| {
                let timings = ReplayTimings {
                    first_byte_ms: first,
                    replayed_ms: replayed,
                    replicated_ms: replicated,
                };
                Message::Replayed {
                    log,
                    attempt,
                    entries,
                    bytes,
                    bytes_left,
                    timings,
                }
            }
        ),
        (id(LogId), any::<u64>(), vec(id(SegmentId), 0..5)).prop_map(|(log, attempt, segments)| {
            Message::AskOutlines {
                log,
                attempt,
                segments,
            }
        }),
        (
            id(LogId),
            id(SegmentId),
            any::<u64>(),
            option::of(vec(any::<u8>(), 0..40))
        )
            .prop_map(|(log, segment, attempt, outline)| Message::Outline {
                log,
                segment,
                attempt,
                outline: outline.map(Bytes::from),
            }),
        (
            id(LogId),
            id(SegmentId),
            any::<u64>(),
            certificate(),
            id(KeyHash)
        )
            .prop_map(
                |(log, segment, attempt, certificate, key)| Message::LookUp {
                    log,
                    segment,
                    attempt,
                    certificate,
                    key,
                }
            ),
        (
            id(LogId),
            id(SegmentId),
            any::<u64>(),
            id(KeyHash),
            option::of(vec(any::<u8>(), 0..40))
        )
            .prop_map(|(log, segment, attempt, key, entries)| Message::LookedUp {
                log,
                segment,
                attempt,
                key,
                entries: entries.map(Bytes::from),
            }),
        (id(LogId), any::<[u64; 5]>()).prop_map(
            |(log, [attempt, entries, bytes, done_bytes, total_bytes])| {
                Message::RecoveryProgress {
                    log,
                    attempt,
                    entries,
                    bytes,
                    done_bytes,
                    total_bytes,
                }
            }
        ),
        (id(LogId), any::<[u64; 3]>(), any::<[u32; 3]>()).prop_map(
            |(log, [attempt, entries, bytes], [first_byte_ms, replayed_ms, replicated_ms])| {
                let timings = ReplayTimings {
                    first_byte_ms,
                    replayed_ms,
                    replicated_ms,
                };
                Message::Recovered {
                    log,
                    attempt,
                    entries,
                    bytes,
                    timings,
                }
            }
        ),
        (id(LogId), any::<u64>(), option::of(id(SegmentId))).prop_map(|(log, attempt, missing)| {
            let reason = missing.map_or(
                RecoveryFailure::OutOfMemory,
                RecoveryFailure::SegmentMissing,
            );
            Message::RecoveryFailed {
                log,
                attempt,
                reason,
            }
        }),
        (
            id(LogId),
            id(SegmentId),
            (any::<u64>(), certificate()),
            vec(range(), 0..4)
        )
            .prop_map(|(log, segment, (attempt, certificate), ranges)| {
                Message::Fetch(Fetch {
                    log,
                    segment,
                    attempt,
                    certificate,
                    ranges,
                })
            }),
        (
            id(LogId),
            id(SegmentId),
            (any::<(u64, u32, bool)>(), certificate()),
            bytes()
        )
            .prop_map(
                |(log, segment, ((attempt, part, last), certificate), entries)| {
                    Message::FetchPart(FetchPart {
                        log,
                        segment,
                        attempt,
                        certificate,
                        part,
                        last,
                        entries,
                    })
                }
            ),
        (id(LogId), id(SegmentId), any::<u64>(), certificate()).prop_map(
            |(log, segment, attempt, certificate)| Message::FetchFailed {
                log,
                segment,
                attempt,
                certificate,
            }
        ),
        id(LogId).prop_map(|log| Message::LogGone { log }),
    ]
}

fn data() -> impl Strategy<Value = Message> {
    let once = (id(ClientId), any::<u64>(), any::<u64>(), id(ClusterMs)).prop_map(
        |(client, sequence, acknowledged, lease_until)| Once {
            client,
            sequence,
            acknowledged,
            lease_until,
        },
    );
    let command = (any::<u8>(), bytes(), op()).prop_map(|(namespace, key, op)| Command {
        namespace: Namespace(namespace),
        key,
        op,
    });
    let request =
        (any::<u64>(), option::of(once), command).prop_map(|(token, once, command)| Request {
            token,
            once,
            command,
        });
    let response =
        (any::<u64>(), outcome()).prop_map(|(token, outcome)| Response { token, outcome });
    prop_oneof![
        (
            id(ClientId),
            any::<u64>(),
            0..1u64 << 40,
            vec(request, 0..4)
        )
            .prop_map(
                |(client, stream, first, items)| Message::Requests(Requests {
                    client,
                    stream,
                    first,
                    items
                })
            ),
        (id(ClientId), any::<u64>(), vec(response, 0..4)).prop_map(|(client, stream, items)| {
            Message::Responses(Responses {
                client,
                stream,
                items,
            })
        }),
    ]
}

pub(super) fn message() -> impl Strategy<Value = Message> {
    prop_oneof![membership(), replication(), recovery(), data()]
}
