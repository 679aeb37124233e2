//! Keypoint R-CNN on an NVIDIA GPU: tract-cuda runs the graphs, our kernels run between them, on the same stream, in the same memory.
//!
//! What tract-cuda 0.23.9 gives and does not give:
//! - Its stream belongs to a thread (`with_cuda_stream`), and so do cuDNN's plans: everything here happens on one thread of ours.
//! - A model's input crosses as a `LazyHostStorage` around a device tensor, which the model's `DeviceSync` takes out again: nothing is
//!   copied, but the stream is waited for. The tensor must be tract's own, so inputs are allocated by it.
//! - A model's outputs come back the same way; the syncs before them are cut off, so that they stay tensors of the device. There is no
//!   memory arena then, whose tensors would not outlive the run.
//! - Its device is always the first one that the process sees.
//! - cuDNN and cuBLAS may round f32 products to TF32 (10 bits) on Ampere and later, unless `NVIDIA_TF32_OVERRIDE=0` stands in the
//!   environment before they are loaded.

use super::{DeviceModel, DeviceRcnn, DeviceTract, Outputs, Runner};
use crate::{RuntimeError, ViewPlan};
use omnilabel_bundle::{Bundle, NetworkSpec};
use omnilabel_detect::frame::Frame;
use omnilabel_gpu::cuda::{CudaBuffer, CudaDevice, check};
use omnilabel_gpu::{Array, GpuError};
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Detection;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use tract_cuda::{CudaTransform, with_cuda_stream};
use tract_gpu::sync::{DeviceSync, DeviceSyncKind};
use tract_gpu::tensor::{DeviceTensor, DeviceTensorExt, LazyHostStorage};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::transform::ModelTransform;

/// tract-cuda on the stream of the thread that calls.
struct OnCuda;

impl Runner<CudaDevice> for OnCuda {
    /// A session, which keeps cuDNN's descriptors from one run to the next.
    type Plan = Mutex<TypedSimpleState>;

    fn prepare(&self, mut model: TypedModel) -> TractResult<Self::Plan> {
        CudaTransform.transform(&mut model)?;
        let on_device = |outlet: &OutletId| match model.node(outlet.node).op_as::<DeviceSync>() {
            Some(DeviceSync { kind: DeviceSyncKind::ToHost }) => model.node(outlet.node).inputs[0],
            _ => *outlet,
        };
        let outputs: TVec<OutletId> = model.output_outlets()?.iter().map(on_device).collect();
        model.select_output_outlets(&outputs)?;
        model.optimize()?;
        // As tract-cuda's own runtime prepares its plans.
        let options = RunOptions { skip_order_opt_ram: true, ..RunOptions::default() };
        let plan = Arc::new(TypedSimplePlan::build(model, &options)?);
        // Weights go up asynchronously.
        with_cuda_stream(|stream| Ok(stream.synchronize()?))?;
        Ok(Mutex::new(plan.spawn()?))
    }

    fn input(&self, _: &CudaDevice, values: usize) -> Result<Array<CudaDevice, f32>, RuntimeError> {
        // An allocation of nothing is an error.
        let allocate = || adopted(DeviceTensor::uninitialized::<f32>(&[values.max(1)])?);
        allocate().map(|array| array.slice(0..values)).map_err(refused("allocate a graph's input"))
    }

    fn run(
        &self,
        device: &CudaDevice,
        plan: &Self::Plan,
        input: &Array<CudaDevice, f32>,
        shape: &[usize],
    ) -> TractResult<Outputs<CudaDevice>> {
        let tensor = input.buffer().owner::<DeviceTensor>().context("the input of a graph was not allocated for one")?;
        let tensor = tensor.reshaped(shape.into())?;
        let mut session = plan.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run(tvec!(LazyHostStorage::new(tensor)?.into_tensor().into_tvalue()))?;
        let output = |value: &TValue| {
            let shape: TVec<usize> = value.shape().into();
            ensure!(value.datum_type() == f32::datum_type(), "an output of {:?}", value.datum_type());
            match value.as_device_tensor() {
                Some(tensor) => Ok((adopted(tensor.clone())?, shape)),
                // What comes out of an operation that tract-cuda does not have.
                None => Ok((Array::from_slice(device, value.try_as_plain_ram()?.as_slice::<f32>()?)?, shape)),
            }
        };
        outputs.iter().map(output).collect()
    }
}

/// The memory of a tensor of tract's.
#[expect(unsafe_code, reason = "an address from tract")]
fn adopted(tensor: DeviceTensor) -> TractResult<Array<CudaDevice, f32>> {
    ensure!(tensor.strides() == &*Tensor::natural_strides(tensor.shape()), "a tensor with strides {:?}", tensor.strides());
    let values = tensor.len();
    let address = tensor.device_buffer_ptr() as u64 + tensor.buffer_offset::<u64>();
    // SAFETY: tract's allocation of at least `values` numbers, which the tensor keeps; all that is done with it is done on the stream of
    // the one thread that this module works on.
    let buffer = unsafe { CudaBuffer::adopt(address, values * size_of::<f32>(), Box::new(tensor)) };
    Ok(Array::of(buffer, values))
}

fn refused(operation: &'static str) -> impl Fn(TractError) -> RuntimeError {
    move |e| GpuError::Driver { operation, message: crate::tract::told(&e) }.into()
}

/// Opens tract-cuda on this thread. Where a library is missing it says so; where one is broken, or lacks a function, it panics.
fn open() -> Result<CudaDevice, RuntimeError> {
    check()?;
    let missing = |e: TractError| GpuError::Missing { what: "a library that tract-cuda needs", hint: crate::tract::told(&e) };
    tract_cuda::utils::ensure_cuda_runtime_dependencies("cudart, cuBLAS and cuDNN").map_err(missing)?;
    let stream = with_cuda_stream(|stream| Ok(Arc::clone(stream))).map_err(refused("open tract-cuda"))?;
    Ok(CudaDevice::on(stream)?)
}

/// A model with the thread on which all its work is done.
struct OnThread {
    thread: rayon::ThreadPool,
    /// `None` once it is dropped, on its thread.
    model: Option<Box<dyn DeviceModel>>,
    network: NetworkSpec,
}

/// Loads a bundle on the GPU.
pub(crate) fn load(bundle: &Bundle) -> Result<Box<dyn DeviceModel>, RuntimeError> {
    let manifest = bundle.manifest();
    let wrapped = || RuntimeError::Request(format!("`{}` wraps a pose model, which runs on the CPU only", manifest.name));
    let network = manifest.network.rcnn().ok_or_else(wrapped)?.clone();
    let thread = rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "cuda".to_owned()).build();
    let thread = thread.map_err(|e| RuntimeError::Request(format!("a thread for the GPU: {e}")))?;
    let open = || -> Result<Box<dyn DeviceModel>, RuntimeError> {
        let device = open()?;
        let graphs = DeviceTract::load(bundle, OnCuda)?;
        Ok(Box::new(DeviceRcnn::new(device, graphs, network.clone(), manifest.input.clone(), bundle.skeleton().clone())?))
    };
    let model = thread.install(|| catch_unwind(AssertUnwindSafe(open))).map_err(|panic| {
        let said = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        GpuError::Driver { operation: "open the model", message: said.unwrap_or_default() }
    })??;
    Ok(Box::new(OnThread { thread, model: Some(model), network }))
}

impl OnThread {
    fn run<T: Send>(&self, work: impl FnOnce(&dyn DeviceModel) -> Result<T, RuntimeError> + Send) -> Result<T, RuntimeError> {
        let gone = || RuntimeError::Request("the model was dropped".to_owned());
        let model = self.model.as_deref().ok_or_else(gone)?;
        self.thread.install(|| work(model))
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        let model = self.model.take();
        self.thread.install(|| drop(model));
    }
}

impl DeviceModel for OnThread {
    fn network(&self) -> &NetworkSpec {
        &self.network
    }

    fn boxes(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<(Rect, f32)>, RuntimeError> {
        self.run(|model| model.boxes(frame, plan))
    }

    fn detect(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        self.run(|model| model.detect(frame, plan))
    }

    fn detect_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        self.run(|model| model.detect_in(frame, boxes, plan))
    }
}
