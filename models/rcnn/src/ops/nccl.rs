//! Sums over GPUs by NCCL, each on its own stream: what is asked for there later waits for them.

use super::cuda::{Cuda, View, gradient_of, operand};
use super::kernels::{Engine, On};
use crate::RcnnError;
use candle_core::cuda_backend::cudarc::nccl::result::{NcclError, get_nccl_version};
use candle_core::cuda_backend::cudarc::nccl::safe::{Comm, ReduceOp, group_end, group_start};
use candle_core::{Device, Result, Storage, Tensor, bail};
use std::collections::BTreeSet;

/// One GPU's end of a communicator.
pub(crate) struct Communicator(Comm);

// SAFETY: NCCL lets a communicator be used from any thread, one at a time; this is the only one that has it.
#[expect(unsafe_code, reason = "a raw pointer is not known to be movable")]
unsafe impl Send for Communicator {}

fn refused(error: &NcclError) -> String {
    format!("NCCL: {:?}", error.0)
}

/// The oldest that is taken, 2.27.5: older ones are said to write through addresses that a GPU has for its peers' memory, which is not
/// mapped for what CUDA's own pools give out (openxla/xla#14891).
const OLDEST: i32 = 22_705;

/// Whether NCCL can be used at all.
///
/// # Errors
/// [`RcnnError::Device`].
pub(crate) fn check() -> std::result::Result<(), RcnnError> {
    let hint = "deploy/cuda/fetch DIR trainer brings one (libnccl.so.2)";
    match get_nccl_version() {
        Ok(version) if version >= OLDEST => Ok(()),
        Ok(version) => Err(RcnnError::Device(format!("NCCL {version} is too old, expected {OLDEST} or newer; {hint}"))),
        Err(error) => Err(RcnnError::Device(format!("NCCL cannot be used ({:?}); {hint}", error.0))),
    }
}

/// What a GPU has ready for a sum: where the sums go.
pub(crate) struct Room {
    engine: Cuda,
    sums: Vec<On<Cuda>>,
}

impl Communicator {
    /// One end for each device, in their order; none where they are not all GPUs, or not all of them different ones.
    ///
    /// # Errors
    /// [`RcnnError::Device`] where NCCL cannot be used.
    pub(crate) fn all(devices: &[Device]) -> std::result::Result<Vec<Self>, RcnnError> {
        let mut streams = Vec::new();
        let mut ordinals = BTreeSet::new();
        for device in devices {
            let Device::Cuda(gpu) = device else { return Ok(Vec::new()) };
            let stream = gpu.cuda_stream();
            if !ordinals.insert(stream.context().ordinal()) {
                return Ok(Vec::new());
            }
            streams.push(stream);
        }
        let ends = Comm::from_devices(streams).map_err(|error| RcnnError::Device(refused(&error)))?;
        Ok(ends.into_iter().map(Self).collect())
    }

    /// Everything that [`Communicator::sum`] needs and that can fail at one end alone, an error of the GPU in what it was asked before among
    /// it: who cannot sum has to say so before the others begin to wait for it.
    pub(crate) fn room(&self, tensors: &[Tensor]) -> Result<Option<Room>> {
        let Some(first) = tensors.first() else { return Ok(None) };
        let engine = Cuda::of_tensor(first)?;
        let sums = tensors.iter().map(|tensor| engine.empty(tensor.elem_count())).collect::<Result<_>>()?;
        first.device().synchronize()?;
        Ok(Some(Room { engine, sums }))
    }

    /// The sums of each of these with the other ends'. The order of the addends is NCCL's, the same at every end.
    pub(crate) fn sum(&self, tensors: &[Tensor], room: Option<Room>) -> Result<Vec<Tensor>> {
        let Some(Room { engine, sums }) = room else { return Ok(Vec::new()) };
        let stream = self.0.stream();
        let held: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
        let mut arrays = Vec::with_capacity(tensors.len());
        for (storage, layout) in &held {
            let Storage::Cuda(storage) = &**storage else { bail!("a gradient of a GPU's parameter lies elsewhere") };
            arrays.push(operand(storage, layout)?);
        }
        // As one operation: what is small is sent together.
        let failed = |error: NcclError| candle_core::Error::Msg(refused(&error));
        group_start().map_err(failed)?;
        let asked = arrays.iter().zip(&sums).try_for_each(|(from, to)| {
            let [from, mut to] = [from, to].map(|array| View::<f32>::new(array.address(), array.len(), &stream));
            self.0.all_reduce(&from, &mut to, &ReduceOp::Sum).map(drop)
        });
        // Ended in any case: the thread's group would stay open.
        let ended = group_end();
        asked.and(ended.map(drop)).map_err(failed)?;
        sums.into_iter().zip(tensors).map(|(sum, like)| gradient_of(&engine, sum, like)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Compute, TrainDevice};

    /// A communicator of one GPU, which gives back what it is given: all but the others. Without a GPU that what is missing is named.
    #[test]
    fn a_sum_over_one_gpu_is_what_it_was() {
        if std::env::var_os("OMNILABEL_GPU").is_none() {
            let opened = check().and_then(|()| Compute { device: TrainDevice::Cuda, gpus: 2, ..Compute::default() }.open().map(drop));
            if let Err(error) = opened {
                assert!(error.to_string().starts_with("training device: "), "{error}");
                println!("{error}");
            }
            println!("skipped: OMNILABEL_GPU is not set");
            return;
        }
        check().unwrap();
        let place = Compute { device: TrainDevice::Cuda, ..Compute::default() }.open().unwrap();
        let ends = Communicator::all(std::slice::from_ref(place.device())).unwrap();
        let tensors: Vec<Tensor> =
            [3, 100_000].map(|len| Tensor::arange(0f32, len as f32, place.device()).unwrap().contiguous().unwrap()).to_vec();
        let sums = ends[0].sum(&tensors, ends[0].room(&tensors).unwrap()).unwrap();
        for (sum, tensor) in sums.iter().zip(&tensors) {
            assert_eq!(sum.to_vec1::<f32>().unwrap(), tensor.to_vec1::<f32>().unwrap());
        }
        let twice = [place.device().clone(), place.device().clone()];
        assert!(Communicator::all(&twice).unwrap().is_empty(), "one GPU twice goes over the host");
    }
}
