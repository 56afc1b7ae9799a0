//! Encoding and decoding entries: what every write, every replay and every verified read pays.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast_format::{ClusterMs, Entries, Entry, Expiry, KeyHash, Namespace, Object, Version};

fn object(value: &[u8]) -> Object<'_> {
    Object {
        namespace: Namespace(0),
        key: b"session:0123456789abcdef",
        value,
        version: Version(1_234_567),
        expiry: Expiry::at(ClusterMs(1_700_000_000_000)),
        shadowing: false,
    }
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("entry");
    for value_bytes in [100, 1024] {
        let value = vec![7; value_bytes];
        let object = object(&value);
        let mut out = vec![0; object.encoded_len()];
        group.throughput(Throughput::Bytes(out.len() as u64));
        group.bench_function(format!("encode {value_bytes} B"), |bencher| {
            bencher.iter(|| black_box(&object).encode(black_box(&mut out)))
        });
        object.encode(&mut out);
        group.bench_function(format!("decode {value_bytes} B"), |bencher| {
            bencher.iter(|| Entry::decode(black_box(&out)).expect("just encoded").1)
        });
        group.bench_function(format!("decode trusted {value_bytes} B"), |bencher| {
            bencher.iter(|| {
                Entry::decode_trusted(black_box(&out))
                    .expect("just encoded")
                    .1
            })
        });
        let segment: Vec<u8> = out.iter().copied().cycle().take(out.len() * 5000).collect();
        group.throughput(Throughput::Bytes(segment.len() as u64));
        group.bench_function(format!("walk 5000 of {value_bytes} B"), |bencher| {
            bencher.iter(|| {
                Entries::new(black_box(&segment))
                    .filter(Result::is_ok)
                    .count()
            })
        });
    }
    group.finish();
    criterion.bench_function("key hash 24 B", |bencher| {
        bencher.iter(|| KeyHash::of(Namespace(0), black_box(b"session:0123456789abcdef")))
    });
}

criterion_group!(benches, codec);
criterion_main!(benches);
