//! What operators order: recorded before it is told, and there again after a restart.

use holdfast_cluster::{Input, Order};
use holdfast_format::Namespace;
use holdfast_wire::{Eviction, Message, NamespaceLimits, NamespacePolicy};

use crate::world::World;

fn policy(namespace: u8, sessions: u64) -> NamespacePolicy {
    NamespacePolicy {
        namespace: Namespace(namespace),
        limits: NamespaceLimits {
            sessions: Some(sessions),
            evict: Eviction::OldestIdle,
            ..NamespaceLimits::default()
        },
    }
}

fn order(w: &mut World, token: u64, order: Order) {
    w.step(Input::Order { token, order });
}

/// The limits of the last view that was sent.
fn told(w: &mut World) -> Option<Vec<NamespacePolicy>> {
    let views = w.take(|message| match message {
        Message::View(view) => Some(view.namespaces.clone()),
        _ => None,
    });
    views.into_iter().next_back().map(|(_, policies)| policies)
}

#[test]
fn limits_are_recorded_then_told_and_then_confirmed() {
    let mut w = World::with_shards(&[1]);
    w.sent.clear();
    w.store_works = false;
    order(&mut w, 7, Order::SetNamespace(policy(3, 1_000)));
    assert_eq!((told(&mut w), w.obeyed.len()), (None, 0));
    w.store_works = true;
    w.write();
    assert_eq!(told(&mut w), Some(vec![policy(3, 1_000)]));
    assert_eq!(w.obeyed, [7]);
    // Again: nothing changes, and it is confirmed.
    order(&mut w, 8, Order::SetNamespace(policy(3, 1_000)));
    assert_eq!((told(&mut w), &w.obeyed[..]), (None, &[7, 8][..]));
    order(&mut w, 9, Order::SetNamespace(policy(1, 5)));
    assert_eq!(w.status().namespaces, [policy(1, 5), policy(3, 1_000)]);
    w.restart();
    assert_eq!(w.status().namespaces, [policy(1, 5), policy(3, 1_000)]);
    order(&mut w, 10, Order::UnsetNamespace(Namespace(3)));
    order(&mut w, 11, Order::UnsetNamespace(Namespace(200)));
    assert_eq!(w.obeyed, [7, 8, 9, 10, 11]);
    w.restart();
    assert_eq!(w.status().namespaces, [policy(1, 5)]);
}

/// What the configuration says replaces what is recorded, of the namespaces that it names.
#[test]
fn the_configuration_wins_at_a_start() {
    let mut w = World::with_shards(&[1]);
    order(&mut w, 1, Order::SetNamespace(policy(1, 10)));
    order(&mut w, 2, Order::SetNamespace(policy(2, 20)));
    w.config.namespaces = vec![policy(2, 22), policy(3, 30)];
    w.restart();
    let all = [policy(1, 10), policy(2, 22), policy(3, 30)];
    assert_eq!(w.status().namespaces, all);
    w.config.namespaces.clear();
    w.restart();
    assert_eq!(w.status().namespaces, all, "it was recorded");
}
