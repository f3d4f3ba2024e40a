//! What was used last, within a weight.
//!
//! Guarantees: together what is kept weighs no more than was said, or is the one thing that came last; what was used least
//! lately goes first.

use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

/// Values that several threads ask for. They are handed out as clones: an `Arc`, where they are large.
pub(super) struct Kept<K, V> {
    most: usize,
    inside: Mutex<Inside<K, V>>,
}

struct Inside<K, V> {
    /// With the weight of each.
    values: LruCache<K, (V, usize)>,
    weight: usize,
}

impl<K: Eq + Hash, V: Clone> Kept<K, V> {
    /// Nothing; later things of `most` together, in the unit of [`Kept::put`].
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            inside: Mutex::new(Inside {
                values: LruCache::unbounded(),
                weight: 0,
            }),
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.lock().values.get(key).map(|(value, _)| value.clone())
    }

    pub(super) fn put(&self, key: K, value: V, weight: usize) {
        let mut inside = self.lock();
        inside.weight = inside.weight.saturating_add(weight);
        if let Some((_, (_, before))) = inside.values.push(key, (value, weight)) {
            inside.weight = inside.weight.saturating_sub(before);
        }
        while inside.weight > self.most && inside.values.len() > 1 {
            let Some((_, (_, oldest))) = inside.values.pop_lru() else {
                break;
            };
            inside.weight = inside.weight.saturating_sub(oldest);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inside<K, V>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn which(kept: &Kept<u32, u32>) -> Vec<u32> {
        (0..10).filter(|key| kept.get(key).is_some()).collect()
    }

    #[test]
    fn the_least_lately_used_goes_first() {
        let kept = Kept::new(10);
        kept.put(1, 1, 4);
        kept.put(2, 2, 4);
        assert_eq!(kept.get(&1), Some(1));
        kept.put(3, 3, 4);
        assert_eq!(which(&kept), [1, 3]);
    }

    #[test]
    fn what_comes_again_is_weighed_once() {
        let kept = Kept::new(10);
        for _ in 0..10 {
            kept.put(1, 1, 4);
        }
        kept.put(2, 2, 6);
        assert_eq!(which(&kept), [1, 2]);
    }

    #[test]
    fn one_that_is_too_heavy_is_kept_alone() {
        let kept = Kept::new(10);
        kept.put(1, 1, 4);
        kept.put(2, 2, 40);
        assert_eq!(which(&kept), [2]);
        kept.put(3, 3, 4);
        assert_eq!(which(&kept), [3]);
    }
}
