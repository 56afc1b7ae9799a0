//! `holdfast bench failover` itself: that its account is whole, and that nothing acknowledged is lost. Its times are no
//! matter here.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // processes: this is what it is about

use std::process::Command;

use holdfast_tests::cluster::binary;
use serde_json::Value;

/// The account of one side after `kills` kills.
fn check(side: &Value, kills: usize) {
    let told = side["kills"].as_array().unwrap();
    assert_eq!(told.len(), kills);
    for kill in told {
        let ms = |what: &str| {
            kill[what]
                .as_f64()
                .unwrap_or_else(|| panic!("{what} in {kill}"))
        };
        assert!(kill["sessions"].as_u64().unwrap() > 0);
        assert!(0.0 < ms("first_read") && ms("first_read") <= ms("half_read"));
        assert!(ms("half_read") <= ms("all_read"));
        assert!(ms("first_write") > 0.0);
    }
    assert!(side["acknowledged_writes"].as_u64().unwrap() > 0);
    assert_eq!(side["wrong_sessions"], 0, "nobody wrote these");
}

#[test]
fn a_failover_is_told_and_loses_nothing() {
    let output = Command::new(binary())
        .args(["bench", "failover", "--kills", "2", "--sessions", "3000"])
        .args(["--value-bytes", "100", "--json"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    check(&report["holdfast"], 2);
    assert_eq!(report["holdfast"]["lost_writes"], 0);
    assert!(report["holdfast"]["kills"][0]["detected"].is_f64());
    let has_redis = Command::new("redis-server").arg("--version").output();
    match has_redis.is_ok() {
        true => check(&report["redis"], 2),
        false => assert!(report["redis"].is_null()),
    }
}
