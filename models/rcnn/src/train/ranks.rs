//! What the ranks of one run tell each other. A rank is a replica of the network on a device of its own, in a thread of its own; each
//! computes on its images of the batch.
//!
//! A loss is a sum over the batch divided by a number that is known only when every rank has chosen its anchors and RoIs. So that number is
//! told first, each rank divides by it, and the gradients that are added up at the end are the whole batch's, whatever the shares; not, as
//! where each rank divides by its own number, a mean of means. Sums are taken in the order of the ranks, so every rank has the same bits.

use crate::RcnnError;
use candle_core::{Device, Tensor, Var};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[cfg(feature = "nccl")]
use crate::ops::nccl::Communicator;

/// A rank's place among the others.
pub(super) struct Seat {
    rank: usize,
    ranks: usize,
    table: Arc<Table>,
    #[cfg(feature = "nccl")]
    nccl: Option<Communicator>,
}

/// What they meet at.
#[derive(Default)]
struct Table {
    numbers: Meeting<Vec<f64>>,
    tensors: Meeting<Vec<Option<Tensor>>>,
}

/// A rank's images of a batch of `count`: shares that differ by one at most, in order.
pub(super) fn share(count: usize, rank: usize, ranks: usize) -> Range<usize> {
    let start = |rank: usize| rank * (count / ranks) + rank.min(count % ranks);
    start(rank)..start(rank + 1)
}

impl Seat {
    /// The only rank of a run: nothing is exchanged.
    pub(super) fn alone() -> Self {
        Self {
            rank: 0,
            ranks: 1,
            table: Arc::default(),
            #[cfg(feature = "nccl")]
            nccl: None,
        }
    }

    /// One for each device. Gradients of GPUs that differ go over NCCL where it is built in, all others over the host.
    ///
    /// # Errors
    /// [`RcnnError::Device`] where NCCL cannot be used.
    pub(super) fn around(devices: &[Device]) -> Result<Vec<Self>, RcnnError> {
        let table = Arc::new(Table::default());
        let ranks = devices.len();
        #[cfg(feature = "nccl")]
        let mut links = if ranks > 1 { Communicator::all(devices)?.into_iter() } else { Vec::new().into_iter() };
        let seat = |rank| Self {
            rank,
            ranks,
            table: table.clone(),
            #[cfg(feature = "nccl")]
            nccl: links.next(),
        };
        Ok((0..ranks).map(seat).collect())
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn ranks(&self) -> usize {
        self.ranks
    }

    /// The sums of all ranks' numbers, the same bits at each of them.
    ///
    /// # Errors
    /// [`RcnnError::Rank`] where another rank has failed.
    pub(super) fn sum<const N: usize>(&self, numbers: [f64; N]) -> Result<[f64; N], RcnnError> {
        if self.ranks == 1 {
            return Ok(numbers);
        }
        let all = self.sums(numbers.to_vec())?;
        Ok(std::array::from_fn(|i| all[i]))
    }

    fn sums(&self, numbers: Vec<f64>) -> Result<Vec<f64>, RcnnError> {
        let all = self.table.numbers.gather(self.rank, self.ranks, numbers)?;
        Ok(all.iter().skip(1).fold(all[0].clone(), |sums, more| sums.iter().zip(more).map(|(a, b)| a + b).collect()))
    }

    /// The sums of all ranks' gradients of `vars`: `None` is a parameter that took no part at this rank, and stays it where it did at none.
    ///
    /// # Errors
    /// [`RcnnError::Rank`] where another rank has failed; the device's.
    pub(super) fn reduce(&self, gradients: Vec<Option<Tensor>>, vars: &[(String, Var)]) -> Result<Vec<Option<Tensor>>, RcnnError> {
        if self.ranks == 1 {
            return Ok(gradients);
        }
        #[cfg(feature = "nccl")]
        if let Some(nccl) = &self.nccl {
            let parts = self.sums(gradients.iter().map(|gradient| f64::from(u8::from(gradient.is_some()))).collect())?;
            let mut taken = Vec::new();
            for ((gradient, (_, var)), parts) in gradients.into_iter().zip(vars).zip(&parts) {
                if *parts > 0.0 {
                    taken.push(gradient.map_or_else(|| var.as_detached_tensor().zeros_like(), Ok)?);
                }
            }
            let room = nccl.room(&taken)?;
            // Every rank is ready: what NCCL is asked for without the others is waited for without an end.
            self.sum([0.0])?;
            let mut sums = nccl.sum(&taken, room)?.into_iter();
            return Ok(parts.iter().map(|parts| if *parts > 0.0 { sums.next() } else { None }).collect());
        }
        let on_host = |gradient: Option<Tensor>| gradient.map(|gradient| gradient.to_device(&Device::Cpu)).transpose();
        let mine = gradients.into_iter().map(on_host).collect::<Result<Vec<_>, _>>()?;
        let all = self.table.tensors.gather(self.rank, self.ranks, mine)?;
        vars.iter()
            .enumerate()
            .map(|(index, (_, var))| {
                let mut parts = all.iter().filter_map(|gradients| gradients[index].as_ref());
                let Some(first) = parts.next() else { return Ok(None) };
                let sum = parts.try_fold(first.clone(), |sum, part| sum + part)?;
                Ok(Some(sum.to_device(var.device())?))
            })
            .collect()
    }

    /// Does a rank's part of something. Where it fails, the others' parts fail, too, instead of waiting for this one: now and from then on,
    /// unless what failed fails at all of them alike.
    ///
    /// # Errors
    /// Those of `part`.
    pub(super) fn attend<T>(&self, part: impl FnOnce() -> Result<T, RcnnError>) -> Result<T, RcnnError> {
        let leaving = Leaving(self);
        let outcome = part();
        std::mem::forget(leaving);
        match &outcome {
            Ok(_) | Err(RcnnError::NotFinite { .. } | RcnnError::Rank { .. }) => {}
            Err(error) => self.leave(&error.to_string()),
        }
        outcome
    }

    pub(super) fn leave(&self, why: &str) {
        self.table.numbers.leave(self.rank, why);
        self.table.tensors.leave(self.rank, why);
    }
}

/// Leaves when it is dropped, as it is by a panic.
struct Leaving<'s>(&'s Seat);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.leave("its thread panicked");
    }
}

/// Where each rank lays something down and takes what all have laid down.
struct Meeting<T> {
    state: Mutex<State<T>>,
    all_there: Condvar,
}

struct State<T> {
    laid: Vec<Option<T>>,
    /// How many times all were there.
    times: u64,
    /// Of the last time, until the last rank has taken it.
    whole: Option<(Arc<Vec<T>>, usize)>,
    /// The first that failed.
    left: Option<(usize, String)>,
}

impl<T> State<T> {
    /// Nothing is exchanged any more once a rank has left: what the others laid down then would be of another time.
    fn go_on(&self) -> Result<(), RcnnError> {
        match &self.left {
            Some((rank, why)) => Err(RcnnError::Rank { rank: *rank, message: why.clone() }),
            None => Ok(()),
        }
    }
}

impl<T> Default for Meeting<T> {
    fn default() -> Self {
        let state = State { laid: Vec::new(), times: 0, whole: None, left: None };
        Self { state: Mutex::new(state), all_there: Condvar::new() }
    }
}

impl<T> Meeting<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all have laid down, in the order of the ranks, once they have.
    fn gather(&self, rank: usize, ranks: usize, value: T) -> Result<Arc<Vec<T>>, RcnnError> {
        let mut state = self.lock();
        let time = state.times;
        state.go_on()?;
        state.laid.resize_with(ranks, || None);
        state.laid[rank] = Some(value);
        if state.laid.iter().all(Option::is_some) {
            let all = state.laid.drain(..).flatten().collect();
            state.whole = Some((Arc::new(all), ranks));
            state.times += 1;
            self.all_there.notify_all();
        }
        while state.times == time {
            state.go_on()?;
            state = self.all_there.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // Nobody begins the next time before the last rank was here, so it is still there.
        let Some((all, readers)) = state.whole.take() else {
            return Err(RcnnError::Rank { rank, message: "took what the ranks exchanged twice".to_owned() });
        };
        if readers > 1 {
            state.whole = Some((all.clone(), readers - 1));
        }
        Ok(all)
    }

    fn leave(&self, rank: usize, why: &str) {
        self.lock().left.get_or_insert_with(|| (rank, why.to_owned()));
        self.all_there.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// What each of three ranks makes of its seat.
    fn three<T: Send>(part: impl Fn(&Seat) -> T + Sync) -> Vec<T> {
        let seats = Seat::around(&[const { Device::Cpu }; 3]).unwrap();
        std::thread::scope(|scope| {
            let part = &part;
            let threads: Vec<_> = seats.into_iter().map(|seat| scope.spawn(move || part(&seat))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn shares_are_the_whole_in_order_and_differ_by_one_at_most() {
        for (count, ranks) in [(16, 4), (7, 3), (3, 3), (10, 1)] {
            let shares: Vec<Range<usize>> = (0..ranks).map(|rank| share(count, rank, ranks)).collect();
            assert_eq!(shares.iter().cloned().flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
            let sizes: Vec<usize> = shares.iter().map(Range::len).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        }
    }

    /// A thousand times in a row, the ranks at their own pace: nothing of one time gets into another.
    #[test]
    fn sums_are_the_same_at_every_rank() {
        let all = three(|seat| {
            (0..1000)
                .map(|time| {
                    if (time + seat.rank()) % 97 == 0 {
                        std::thread::yield_now();
                    }
                    seat.sum([0.1 * (seat.rank() + 1) as f64, time as f64]).unwrap()
                })
                .collect::<Vec<_>>()
        });
        assert_eq!(all[0][7], [0.1 + 0.2 + 0.1 * 3.0, 21.0]);
        assert!(all.iter().all(|sums| sums == &all[0]));
    }

    #[test]
    fn gradients_are_added_and_those_that_nobody_has_stay_none() {
        let vars = ["all", "some", "none"].map(|name| (name.to_owned(), Var::from_slice(&[0f32; 2], 2, &Device::Cpu).unwrap()));
        let of = |values: &[f32]| Some(Tensor::from_slice(values, 2, &Device::Cpu).unwrap());
        let all = three(|seat| {
            let rank = seat.rank() as f32;
            let some = if seat.rank() == 1 { of(&[5.0, 6.0]) } else { None };
            let sums = seat.reduce(vec![of(&[1.0, rank]), some, None], &vars).unwrap();
            sums.into_iter().map(|sum| sum.map(|sum| sum.to_vec1::<f32>().unwrap())).collect::<Vec<_>>()
        });
        assert!(all.iter().all(|sums| *sums == [Some(vec![3.0, 3.0]), Some(vec![5.0, 6.0]), None]), "{all:?}");
    }

    #[test]
    fn who_fails_fails_the_others_instead_of_being_waited_for() {
        let failed = three(|seat| {
            seat.attend(|| {
                if seat.rank() == 2 {
                    return Err(RcnnError::Device("out of memory".to_owned()));
                }
                seat.sum([1.0]).map(drop)
            })
            .unwrap_err()
            .to_string()
        });
        assert_eq!(failed[2], "training device: out of memory");
        for error in &failed[..2] {
            assert!(error.contains("rank 2") && error.contains("out of memory"), "{error}");
        }
        let panicked = three(|seat| {
            let part = || {
                assert!(seat.rank() != 0, "on purpose");
                seat.sum([1.0]).map(drop)
            };
            catch_unwind(AssertUnwindSafe(|| seat.attend(part))).map(|outcome| outcome.unwrap_err().to_string())
        });
        assert!(panicked[0].is_err());
        assert!(
            panicked[1..].iter().all(|error| error.as_ref().unwrap().contains("rank 0") && error.as_ref().unwrap().contains("panicked"))
        );
    }

    #[test]
    fn after_a_failure_nothing_is_exchanged_any_more() {
        let again = three(|seat| {
            let first: Result<(), _> =
                seat.attend(|| if seat.rank() == 1 { Err(RcnnError::Device("gone".to_owned())) } else { seat.sum([1.0]).map(drop) });
            assert!(first.is_err());
            seat.attend(|| seat.sum([2.0])).unwrap_err().to_string()
        });
        assert!(again.iter().all(|error| error.contains("rank 1") && error.contains("gone")), "{again:?}");
    }

    /// What fails at all of them alike is no reason to give up: the next batch may do.
    #[test]
    fn a_loss_that_is_not_finite_is_not_the_end() {
        let after = three(|seat| {
            let failed: Result<(), _> = seat.attend(|| {
                let [value] = seat.sum([f64::NAN])?;
                Err(RcnnError::NotFinite { name: "keypoint", step: 0, value: value as f32 })
            });
            assert!(matches!(failed, Err(RcnnError::NotFinite { .. })));
            seat.attend(|| seat.sum([1.0])).unwrap()
        });
        assert_eq!(after, [[3.0]; 3]);
    }
}
