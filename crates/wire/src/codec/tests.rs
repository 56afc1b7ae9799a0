//! Round trips of arbitrary messages, damage, limits, and the worked examples of the document.

mod arbitrary;

use holdfast_format::*;
use proptest::collection::vec;
use proptest::prelude::*;

use self::arbitrary::{message, outcome};
use super::*;
use crate::command::*;
use crate::message::*;

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
