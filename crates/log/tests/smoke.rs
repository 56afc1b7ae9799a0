use holdfast_format::*;
use holdfast_log::*;

#[test]
fn basics() {
    let mut log = Log::new(LogId(7), Config::for_testing()).unwrap();
    let n = Namespace(0);
    let now = ClusterMs(1000);
    let ack = |log: &mut Log| loop {
        let change = log.change();
        let goals: Vec<_> = log.goals().collect();
        for g in goals {
            log.set_durable(g.id, g.length, g.closed);
        }
        if log.change() == change {
            break;
        }
    };
    for round in 0..50u32 {
        for i in 0..1000u32 {
            let key = format!("key{i}");
            let value = vec![round as u8; 500 + (i as usize * 7) % 300];
            loop {
                match log.put(n, key.as_bytes(), &value, Expiry::default(), None, now) {
                    Ok(_) => break,
                    Err(AppendError::OutOfMemory) => {
                        while log.clean(now, 10_000) {}
                        ack(&mut log);
                    }
                    Err(e) => panic!("{e}"),
                }
            }
        }
        log.verify();
        println!("{:?}", log.memory());
        while log.clean(now, 100_000) {}
        ack(&mut log);
        log.verify();
        for i in 0..1000u32 {
            let f = log.find(n, format!("key{i}").as_bytes(), now).unwrap();
            assert_eq!(f.value[0], round as u8);
        }
        assert_eq!(log.count(n).sessions, 1000);
    }
}
