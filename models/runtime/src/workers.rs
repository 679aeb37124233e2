//! Work side by side on the model's own workers.

use crate::RuntimeError;
use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The model's workers; none where the caller's own threads run a frame each.
#[derive(Clone, Default)]
pub(crate) struct Workers(Option<Arc<rayon::ThreadPool>>);

impl Workers {
    pub(crate) fn new(pool: Arc<rayon::ThreadPool>) -> Self {
        Self(Some(pool))
    }

    /// Whether the caller's own threads do the work.
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Runs `work` on the workers, so that it takes no other core than the model was given.
    pub(crate) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Runs `work` on every item, results in the order of `items`: an item per worker where there are enough, the dearest by `cost` first so
    /// that the workers end together; else one after the other with all workers sharing its matrix products.
    pub(crate) fn each<I: Sync, T: Send>(
        &self,
        items: &[I],
        cost: impl Fn(&I) -> u64,
        work: impl Fn(&I) -> Result<T, RuntimeError> + Sync,
    ) -> Vec<Result<T, RuntimeError>> {
        match &self.0 {
            Some(pool) if pool.current_num_threads() > 1 && items.len() >= pool.current_num_threads() => {
                let mut order: Vec<usize> = (0..items.len()).collect();
                order.sort_by_key(|i| Reverse(cost(&items[*i])));
                let next = AtomicUsize::new(0);
                let done = Mutex::new(Vec::with_capacity(items.len()));
                let share = || {
                    while let Some(&i) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = work(&items[i]);
                        done.lock().unwrap_or_else(PoisonError::into_inner).push((i, result));
                    }
                };
                pool.scope(|scope| (0..pool.current_num_threads()).for_each(|_| scope.spawn(|_| share())));
                let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
                done.sort_by_key(|(i, _)| *i);
                done.into_iter().map(|(_, result)| result).collect()
            }
            _ => items.iter().map(work).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items_and_the_dearest_begin() {
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
        let begun = Mutex::new(Vec::new());
        let work = |item: &u64| {
            begun.lock().unwrap().push(*item);
            // Nobody is done before another worker has begun.
            while begun.lock().unwrap().len() < 2 {
                std::thread::yield_now();
            }
            if *item == 7 { Err(RuntimeError::Request("seven".into())) } else { Ok(10 * item) }
        };
        let results = Workers::new(pool).each(&[3, 9, 1, 7], |item| *item, work);
        let results: Vec<Option<u64>> = results.into_iter().map(Result::ok).collect();
        assert_eq!(results, [Some(30), Some(90), Some(10), None]);
        let mut first = begun.into_inner().unwrap();
        first.truncate(2);
        first.sort_unstable();
        assert_eq!(first, [7, 9]);
    }
}
