//! Sums over GPUs by NCCL, each on its own stream: what is asked for there later waits for them.

use super::cuda::{Cuda, View, gradient_of, operand};
use super::kernels::Engine;
use crate::RcnnError;
use candle_core::cuda_backend::cudarc::nccl::result::NcclError;
use candle_core::cuda_backend::cudarc::nccl::safe::{Comm, ReduceOp, group_end, group_start};
use candle_core::{Device, Result, Storage, Tensor, bail};
use std::collections::BTreeSet;

/// One GPU's end of a communicator.
pub(crate) struct Communicator(Comm);

// SAFETY: NCCL lets a communicator be used from any thread, one at a time; this is the only one that has it.
#[expect(unsafe_code, reason = "a raw pointer is not known to be movable")]
unsafe impl Send for Communicator {}

fn refused(error: &NcclError) -> String {
    // Its words are for people who read C: the code is what is looked up. 3 is also what `deploy/cuda/lazy` says where there is no library.
    format!("NCCL cannot be used ({:?}); deploy/cuda/fetch DIR trainer brings it (libnccl.so.2)", error.0)
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

    /// The sums of each of these with the other ends'. The order of the addends is NCCL's, the same at every end.
    pub(crate) fn sum(&self, tensors: &[Tensor]) -> Result<Vec<Tensor>> {
        let Some(first) = tensors.first() else { return Ok(Vec::new()) };
        let e = Cuda::of_tensor(first)?;
        let stream = self.0.stream();
        let mut sums = Vec::with_capacity(tensors.len());
        let held: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
        let mut arrays = Vec::with_capacity(tensors.len());
        for (storage, layout) in &held {
            let Storage::Cuda(storage) = &**storage else { bail!("a gradient of a GPU's parameter lies elsewhere") };
            let array = operand(storage, layout)?;
            sums.push(e.empty(array.len())?);
            arrays.push(array);
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
        sums.into_iter().zip(tensors).map(|(sum, like)| gradient_of(&e, sum, like)).collect()
    }
}
