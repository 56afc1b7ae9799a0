//! The drawing of floors in ARCHITECTURE.md and what cargo builds must agree, both ways.

#![allow(clippy::unwrap_used)] // a test

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand};

type Arrows = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace")
}

/// `floor N: crate -> below below`, from the ```floors block.
fn drawn() -> (Arrows, BTreeMap<String, u32>) {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let block = text
        .split("```floors")
        .nth(1)
        .expect("a floors block")
        .split("```")
        .next()
        .unwrap();
    let mut arrows = Arrows::new();
    let mut floors = BTreeMap::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        let (floor, rest) = line.split_once(':').expect("`floor N: …`");
        let (name, below) = rest.split_once("->").expect("`crate -> …`");
        let name = name.trim().to_owned();
        let number = floor
            .trim()
            .strip_prefix("floor ")
            .unwrap()
            .parse()
            .unwrap();
        floors.insert(name.clone(), number);
        arrows.insert(name, below.split_whitespace().map(str::to_owned).collect());
    }
    (arrows, floors)
}

fn built() -> Arrows {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata");
    let crates = root().join("crates");
    metadata
        .packages
        .iter()
        .filter(|package| package.manifest_path.as_std_path().starts_with(&crates))
        .map(|package| {
            let below = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind != DependencyKind::Development)
                .filter_map(|dependency| dependency.name.strip_prefix("holdfast-"))
                .map(str::to_owned)
                .collect();
            let name = package
                .name
                .strip_prefix("holdfast-")
                .expect("the prefix")
                .to_owned();
            (name, below)
        })
        .collect()
}

#[test]
fn the_drawing_is_what_cargo_builds() {
    let (drawn, floors) = drawn();
    assert_eq!(drawn, built());
    for (name, below) in &drawn {
        for other in below {
            assert!(
                floors[other] < floors[name],
                "{name} points at {other}, which is not below it"
            );
        }
    }
}
