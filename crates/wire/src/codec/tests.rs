//! Round trips of arbitrary messages, damage, limits, and the worked examples of the document.

use holdfast_format::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::command::*;
use crate::message::*;
use crate::namespaces::*;

/// Encodes, hands the bytes over in pieces of `step`, and gives back what was decoded.
fn pass(message: &Message, step: usize) -> Vec<Message> {
    let mut sent = BytesMut::new();
    encode_frame(message, &mut sent).expect("test messages are within the limits");
    let mut decoder = FrameDecoder::new();
    let mut received = BytesMut::new();
    let mut decoded = Vec::new();
    for piece in sent.chunks(step) {
        received.extend_from_slice(piece);
        while let Some(message) = decoder.decode(&mut received).expect("it was just encoded") {
            decoded.push(message);
        }
    }
    assert!(received.is_empty(), "every byte belongs to a frame");
    decoded
}

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

fn outcome() -> impl Strategy<Value = Outcome> {
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

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![membership(), replication(), recovery(), data()]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_comes_back_from_its_frame(message in message(), step in 1..50usize) {
        prop_assert_eq!(pass(&message, step), vec![message]);
    }

    #[test]
    fn every_outcome_comes_back_from_its_bytes(outcome in outcome()) {
        let mut bytes = Vec::new();
        encode_outcome(&outcome, &mut bytes);
        prop_assert_eq!(decode_outcome(&bytes), Ok(outcome));
    }

    #[test]
    fn a_frame_with_a_flipped_bit_is_refused_or_waited_for(
        message in message(),
        place in any::<proptest::sample::Index>(),
        bit in 0..8u8,
    ) {
        let mut frame = BytesMut::new();
        encode_frame(&message, &mut frame).expect("test messages are within the limits");
        let tail = messages::tail(&message).map_or(0, Bytes::len);
        let at = place.index(frame.len() - tail);
        frame[at] ^= 1 << bit;
        // A longer length waits for more bytes; everything else is noticed.
        prop_assert!(!matches!(FrameDecoder::new().decode(&mut frame), Ok(Some(_))));
    }

    #[test]
    fn noise_is_refused_without_panic(noise in vec(any::<u8>(), 0..200)) {
        let _ = FrameDecoder::new().decode(&mut BytesMut::from(&noise[..]));
        let _ = decode_outcome(&noise);
    }

    #[test]
    fn noise_inside_a_valid_frame_is_refused_without_panic(
        message_type in any::<u8>(),
        noise in vec(any::<u8>(), 0..200),
        with_tail in any::<bool>(),
    ) {
        let mut frame = BytesMut::new();
        let tail = with_tail.then_some(&b"tail"[..]);
        encode_one(message_type, tail, &mut frame, |out| out.put_slice(&noise))
            .expect("it is short");
        frame.put_slice(tail.unwrap_or_default());
        let before = frame.clone();
        if let Ok(Some(message)) = FrameDecoder::new().decode(&mut frame) {
            // F4: what is accepted has no other encoding.
            let mut again = BytesMut::new();
            encode_frame(&message, &mut again).expect("it was just decoded");
            prop_assert_eq!(before, again);
        }
    }

    #[test]
    fn a_truncated_outcome_is_refused(outcome in outcome(), cut in any::<proptest::sample::Index>()) {
        let mut bytes = Vec::new();
        encode_outcome(&outcome, &mut bytes);
        prop_assert!(decode_outcome(&bytes[..cut.index(bytes.len())]).is_err());
        bytes.push(0);
        prop_assert_eq!(decode_outcome(&bytes), Err(DecodeError::Trailing(1)));
    }
}

/// The worked examples of docs/protocol.md, to the byte.
#[test]
fn documented_frames_are_the_real_ones() {
    let document = include_str!("../../../../docs/protocol.md");
    let documented = |title: &str| -> Vec<u8> {
        let after = document
            .split_once(title)
            .expect("the example has its title")
            .1;
        let block = after
            .split("```")
            .nth(1)
            .expect("a block follows the title");
        block
            .lines()
            .skip(1)
            .filter_map(|line| line.split('|').next())
            .flat_map(str::split_whitespace)
            .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"))
            .collect()
    };
    let check = |title: &str, message: Message| {
        let mut frame = BytesMut::new();
        encode_frame(&message, &mut frame).expect("the example is short");
        assert_eq!(frame[..], documented(title)[..], "{title}: {frame:02x?}");
        assert_eq!(FrameDecoder::new().decode(&mut frame), Ok(Some(message)));
    };
    check(
        "Example: a write",
        Message::Requests(Requests {
            client: ClientId(0x1122_3344_5566_7788),
            stream: 3,
            first: 300,
            items: vec![Request {
                token: 7,
                once: Some(Once {
                    client: ClientId(0x1122_3344_5566_7788),
                    sequence: 41,
                    acknowledged: 40,
                    lease_until: ClusterMs(1_800_000_000_000),
                }),
                command: Command {
                    namespace: Namespace(0),
                    key: Bytes::from_static(b"sess:1"),
                    op: Op::Put {
                        value: Bytes::from_static(b"hello"),
                        condition: Condition::Always,
                        expiry: ExpiryChange::In { ms: 60_000 },
                        return_old: false,
                    },
                },
            }],
        }),
    );
    check(
        "Example: an append",
        Message::Append(Append {
            log: LogId(0x0a),
            epoch: Epoch(2),
            segment: SegmentId(5),
            offset: 4096,
            bytes: Bytes::from_static(b"entries"),
            certificate: Some(Certificate {
                length: 4103,
                checksum: 0xdead_beef,
            }),
            open: false,
            close: false,
            sent_us: 1_000_000,
            lease_ms: 500,
            expiry_ceiling: ClusterMs(1_800_000_000_500),
        }),
    );
}

#[test]
fn a_damaged_tail_is_left_to_its_certificate() {
    let append = |bytes: &'static [u8]| {
        Message::FetchPart(FetchPart {
            log: LogId(1),
            segment: SegmentId(2),
            attempt: 3,
            certificate: Certificate::default(),
            part: 0,
            last: true,
            entries: Bytes::from_static(bytes),
        })
    };
    let mut frame = BytesMut::new();
    encode_frame(&append(b"abc"), &mut frame).expect("it is short");
    let last = frame.len() - 1;
    frame[last] = b'd';
    assert_eq!(
        FrameDecoder::new().decode(&mut frame),
        Ok(Some(append(b"abd")))
    );
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated() {
    let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
    let mut decoder = FrameDecoder::new();
    let error = FrameError::Length {
        bytes: u64::from(u32::MAX) + 4,
    };
    assert_eq!(decoder.decode(&mut buffer), Err(error));
    assert!(buffer.capacity() < 64);
    // And the stream stays broken.
    assert_eq!(decoder.decode(&mut BytesMut::new()), Err(error));

    let mut buffer = BytesMut::from(&((FRAME_BYTES_MAX as u32) - 4).to_le_bytes()[..]);
    assert_eq!(FrameDecoder::new().decode(&mut buffer), Ok(None));
    assert!(buffer.capacity() <= 128 * 1024);
}

#[test]
fn a_long_batch_becomes_several_frames_that_mean_the_same() {
    let items: Vec<Request> = (0..40)
        .map(|token| Request {
            token,
            once: None,
            command: Command {
                namespace: Namespace(0),
                key: Bytes::from(format!("k{token}")),
                op: Op::Put {
                    value: Bytes::from(vec![7; 1 << 20]),
                    condition: Condition::Always,
                    expiry: ExpiryChange::Keep,
                    return_old: false,
                },
            },
        })
        .collect();
    let batch = Requests {
        client: ClientId(1),
        stream: 2,
        first: 10,
        items: items.clone(),
    };
    let mut next = 10;
    let mut got = Vec::new();
    for message in pass(&Message::Requests(batch), 1 << 20) {
        let Message::Requests(part) = message else {
            panic!("not requests")
        };
        assert_eq!(
            (part.client, part.stream, part.first),
            (ClientId(1), 2, next)
        );
        next += part.items.len() as u64;
        got.extend(part.items);
    }
    assert_eq!(got, items);
}

#[test]
fn what_a_receiver_would_refuse_is_not_sent() {
    let mut out = BytesMut::from(&b"before"[..]);
    let segments = vec![SegmentId(1); ITEMS_MAX + 1];
    let free = Message::Free {
        log: LogId(1),
        segments,
    };
    let items = ITEMS_MAX + 1;
    assert_eq!(
        encode_frame(&free, &mut out),
        Err(EncodeError::TooManyItems { items })
    );
    let responses = Message::Responses(Responses {
        client: ClientId(1),
        stream: 1,
        items: vec![Response {
            token: 1,
            outcome: Outcome::Value {
                value: Bytes::from(vec![0; FRAME_BYTES_MAX]),
                meta: Meta::default(),
            },
        }],
    });
    assert!(matches!(
        encode_frame(&responses, &mut out),
        Err(EncodeError::TooLong { .. })
    ));
    assert_eq!(&out[..], b"before");
}

#[test]
fn replicated_bytes_can_be_sent_without_a_copy() {
    let append = Message::Append(Append {
        log: LogId(1),
        epoch: Epoch(1),
        segment: SegmentId(1),
        offset: 0,
        bytes: Bytes::from_static(b"segment"),
        certificate: None,
        open: true,
        close: false,
        sent_us: 0,
        lease_ms: 0,
        expiry_ceiling: ClusterMs(0),
    });
    let mut whole = BytesMut::new();
    encode_frame(&append, &mut whole).expect("it is short");
    let mut head = BytesMut::new();
    let tail = encode_frame_head(&append, &mut head)
        .expect("it is short")
        .expect("a tail");
    assert_eq!(&tail[..], b"segment");
    head.put_slice(&tail);
    assert_eq!(whole, head);
}
