//! The ranks of a run beyond the first: a thread, a replica of the network and an optimiser each.

use super::ranks::Seat;
use super::{Optim, Part, TrainOptions, part};
use crate::RcnnError;
use crate::augment::Batch;
use crate::config::Config;
use crate::device::Place;
use crate::network::Network;
use crate::optim::Moments;
use candle_core::{Device, Tensor, Var};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// What a thread owns.
struct Replica {
    network: Network,
    optim: Optim,
    seat: Seat,
}

impl Drop for Replica {
    /// Whoever still meets is told that this rank comes no more.
    fn drop(&mut self) {
        self.seat.leave("its thread has ended");
    }
}

type Order = Box<dyn FnOnce(&mut Replica) + Send>;

/// One rank beyond the first.
pub(super) struct Worker {
    rank: usize,
    /// Taken when it is dropped: its thread ends.
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// All that one rank has to have of another.
pub(super) struct State {
    tensors: Vec<Tensor>,
    first: Vec<Vec<f32>>,
    second: Vec<Vec<f32>>,
}

impl State {
    /// A rank's, on the host.
    pub(super) fn of(network: &Network, optim: &Optim) -> Result<Self, RcnnError> {
        let numbers = |moments: &[Moments]| moments.iter().map(Moments::to_vec).collect::<Result<Vec<_>, _>>();
        let on_host = |(_, var): (&str, &Var)| Ok::<_, RcnnError>(var.as_detached_tensor().to_device(&Device::Cpu)?);
        let tensors = network.params().all().map(on_host).collect::<Result<_, _>>()?;
        Ok(Self { tensors, first: numbers(&optim.first)?, second: numbers(&optim.second)? })
    }

    fn give(&self, network: &Network, optim: &mut Optim) -> Result<(), RcnnError> {
        for (value, (_, var)) in self.tensors.iter().zip(network.params().all()) {
            var.set(&value.to_device(var.device())?)?;
        }
        let Optim { vars, first, second, .. } = optim;
        for (moments, values) in [(first, &self.first), (second, &self.second)] {
            for ((moments, values), (_, var)) in moments.iter_mut().zip(values).zip(&*vars) {
                *moments = Moments::new(var, values.clone())?;
            }
        }
        Ok(())
    }
}

/// The trained parameters with their names, in the optimiser's order.
pub(super) fn vars(network: &Network) -> Vec<(String, Var)> {
    network.params().trainable().map(|(name, var)| (name.to_owned(), var.clone())).collect()
}

/// What comes back.
pub(super) struct Answer<T> {
    rank: usize,
    from: Receiver<Result<T, RcnnError>>,
}

impl<T> Answer<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// The rank's; [`RcnnError::Rank`] where its thread is gone.
    pub(super) fn get(self) -> Result<T, RcnnError> {
        self.from.recv().unwrap_or_else(|_| Err(RcnnError::Rank { rank: self.rank, message: "its thread is gone".to_owned() }))
    }
}

impl Worker {
    /// A replica of zeros on `place`.
    ///
    /// # Errors
    /// The device's, a thread that does not start.
    pub(super) fn start(config: Config, options: &TrainOptions, seat: Seat, place: Place) -> Result<Self, RcnnError> {
        let rank = seat.rank();
        // One order at a time: each is waited for before the next.
        let (orders, taken) = sync_channel::<Order>(1);
        let (kind, weight_decay, clip) = (options.optimizer, options.weight_decay, options.clip);
        let (said, ready) = sync_channel(1);
        let work = move || {
            let made = Network::new_on(config, 0, &place).and_then(|network| {
                let optim = Optim::new(kind, weight_decay, clip, vars(&network))?;
                Ok(Replica { network, optim, seat })
            });
            let mut replica = match made {
                Ok(replica) => replica,
                Err(error) => return drop(said.send(Err(error))),
            };
            // Nobody to hear it is nobody to work for.
            if said.send(Ok(())).is_ok() {
                taken.into_iter().for_each(|order: Order| order(&mut replica));
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("rank-{rank}"))
            .spawn(work)
            .map_err(|error| RcnnError::Rank { rank, message: format!("its thread does not start: {error}") })?;
        Answer { rank, from: ready }.get()?;
        Ok(Self { rank, orders: Some(orders), thread: Some(thread) })
    }

    fn ask<T: Send + 'static>(&self, work: impl FnOnce(&mut Replica) -> Result<T, RcnnError> + Send + 'static) -> Answer<T> {
        let (say, from) = sync_channel(1);
        // A thread that is gone drops `say`, which is what `get` says.
        let order: Order = Box::new(move |replica| drop(say.send(work(replica))));
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
        Answer { rank: self.rank, from }
    }

    /// Its part of a step.
    pub(super) fn step(&self, batch: Arc<Batch>, task: Part) -> Answer<super::Losses> {
        self.ask(move |replica| part(&replica.network, &mut replica.optim, &replica.seat, &batch, &task))
    }

    /// Gives it what the first rank has.
    pub(super) fn give(&self, state: Arc<State>) -> Answer<()> {
        self.ask(move |replica| state.give(&replica.network, &mut replica.optim))
    }

    /// Whether it has the weights that the first rank has, to the bit.
    pub(super) fn compare(&self, weights: Arc<Vec<(String, Vec<f32>)>>) -> Answer<()> {
        let rank = self.rank;
        self.ask(move |replica| {
            for ((name, expected), (_, var)) in weights.iter().zip(replica.network.params().all()) {
                let found = var.flatten_all()?.to_vec1::<f32>()?;
                if expected.iter().zip(&found).any(|(a, b)| a.to_bits() != b.to_bits()) {
                    return Err(RcnnError::Rank { rank, message: format!("its `{name}` is no longer that of rank 0") });
                }
            }
            Ok(())
        })
    }

    /// Panics outside of a step.
    #[cfg(test)]
    pub(super) fn end(&self) {
        let ended: Answer<()> = self.ask(|_| panic!("on purpose"));
        assert!(ended.get().is_err());
    }

    /// Adds to the first weight, as a GPU that computes wrongly would.
    #[cfg(test)]
    pub(super) fn spoil(&self) {
        let spoilt = self.ask(|replica| {
            let (_, var) = &replica.optim.vars[0];
            Ok(var.set(&var.as_detached_tensor().affine(1.0, 1e-6)?)?)
        });
        spoilt.get().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so where it was asked.
            let _ = thread.join();
        }
    }
}
