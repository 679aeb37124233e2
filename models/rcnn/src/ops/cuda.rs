//! The operations on an NVIDIA GPU, on candle's own stream: convolutions by cuDNN, matrix products by cuBLAS, the rest by the kernels of
//! `omnilabel_gpu`.
//!
//! Of cuDNN's algorithms those are taken that sum in the same order at every run: Winograd's for 3×3 kernels of stride 1 where f32
//! stays f32, else those that know every stride and group; only where these are refused does cuDNN choose.

use super::kernels::{Engine, On, Product, failed};
use crate::RcnnError;
use crate::device::Arithmetic;
use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys as cublas_sys};
use candle_core::cuda_backend::cudarc::cudnn::sys as cudnn_sys;
use candle_core::cuda_backend::cudarc::cudnn::{ConvBackwardData, ConvBackwardFilter, ConvForward, Cudnn, CudnnDataType, CudnnError};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop, sys,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{Device, Error, Layout, Result, Storage, Tensor, bail};
use half::bf16;
use omnilabel_conv::Geometry;
use omnilabel_gpu::cuda::{self, CudaBuffer};
use omnilabel_gpu::{Array, ops};
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

/// The GPU of this number among those that the process sees, with everything that training asks of it; one of `count` that are wanted.
pub(crate) fn open(ordinal: usize, count: usize) -> std::result::Result<Device, RcnnError> {
    let missing = |e: &dyn std::fmt::Display| RcnnError::Device(e.to_string());
    cuda::check().map_err(|e| missing(&e))?;
    let there = CudaContext::device_count().map_err(|e| missing(&format!("the GPUs cannot be counted: {e}")))?;
    if usize::try_from(there).is_ok_and(|there| (1..count).contains(&there)) {
        return Err(missing(&format!("{count} GPUs are asked for, and there are {there} (CUDA_VISIBLE_DEVICES)")));
    }
    // A stream of its own: candle's usual one is another in every thread.
    let device = Device::new_cuda_with_stream(ordinal).map_err(|e| missing(&format!("the GPU, cuBLAS or cuRAND cannot be used: {e}")))?;
    let Device::Cuda(gpu) = &device else { return Ok(device) };
    let engine = Cuda::of(gpu).map_err(|e| missing(&e))?;
    engine.cudnn().map_err(|e| missing(&format!("cuDNN 9 cannot be used: {e}; deploy/cuda/fetch brings it")))?;
    Ok(device)
}

/// One GPU as candle has it.
pub(crate) struct Cuda {
    candle: CudaDevice,
    kernels: cuda::CudaDevice,
}

impl Cuda {
    fn of(candle: &CudaDevice) -> Result<Self> {
        let kernels = cuda::CudaDevice::on(candle.cuda_stream()).map_err(failed)?;
        Ok(Self { candle: candle.clone(), kernels })
    }

    /// Of the device that `tensor` lies on.
    pub(crate) fn of_tensor(tensor: &Tensor) -> Result<Self> {
        match tensor.device() {
            Device::Cuda(candle) => Self::of(candle),
            other => bail!("a tensor on {other:?}, expected one on a GPU"),
        }
    }

    /// This thread's handle.
    fn cudnn(&self) -> Result<Arc<Cudnn>> {
        thread_local! {
            static HANDLE: RefCell<Option<(usize, Arc<Cudnn>)>> = const { RefCell::new(None) };
        }
        let stream = self.candle.cuda_stream();
        let key = stream.cu_stream() as usize;
        HANDLE.with(|slot| {
            let mut slot = slot.borrow_mut();
            if let Some((known, handle)) = &*slot
                && *known == key
            {
                return Ok(handle.clone());
            }
            let handle = Cudnn::new(stream).map_err(Error::wrap)?;
            *slot = Some((key, handle.clone()));
            Ok(handle)
        })
    }

    /// Memory for `len` elements, whatever they are.
    #[expect(unsafe_code, reason = "memory that is not written yet")]
    fn room<T: omnilabel_gpu::Element + candle_core::cuda_backend::cudarc::driver::DeviceRepr + Send + Sync>(
        &self,
        len: usize,
    ) -> Result<Array<cuda::CudaDevice, T>> {
        // SAFETY: whoever asks writes all of it before anything reads it. An allocation of nothing is an error.
        let slice = unsafe { self.candle.alloc::<T>(len.max(1)) }?;
        self.own(slice, len)
    }

    #[expect(unsafe_code, reason = "an allocation's address")]
    fn own<T: omnilabel_gpu::Element + Send + Sync>(&self, slice: CudaSlice<T>, len: usize) -> Result<Array<cuda::CudaDevice, T>> {
        let address = slice.device_ptr(&self.candle.cuda_stream()).0;
        // SAFETY: the slice is allocated there, on this device's stream.
        let buffer = unsafe { CudaBuffer::adopt(address, len * size_of::<T>(), Box::new(slice)) };
        Ok(Array::of(buffer, len))
    }

    /// A copy in bfloat16.
    fn halved(&self, values: &On<Self>) -> Result<Array<cuda::CudaDevice, u16>> {
        let out = self.room(values.len())?;
        ops::to_bf16(&self.kernels, values, &out).map_err(failed)?;
        Ok(out)
    }

    fn widened(&self, values: &Array<cuda::CudaDevice, u16>) -> Result<On<Self>> {
        let out = self.empty(values.len())?;
        ops::from_bf16(&self.kernels, values, &out).map_err(failed)?;
        Ok(out)
    }

    /// Runs a convolution's part in either arithmetic: of `a` and `b` makes `len` numbers.
    fn convolution(&self, part: Part, g: &Geometry, how: Arithmetic, [a, b]: [&On<Self>; 2], len: usize) -> Result<On<Self>> {
        let stream = self.candle.cuda_stream();
        match how {
            Arithmetic::F32 => {
                let out = self.empty(len)?;
                let [a, b, mut to] = [a, b, &out].map(|array| View::<f32>::new(array.address(), array.len(), &stream));
                self.launch(part, g, [&a, &b], &mut to)?;
                Ok(out)
            }
            Arithmetic::Bf16 => {
                let (a, b, out) = (self.halved(a)?, self.halved(b)?, self.room::<u16>(len)?);
                let [a, b, mut to] = [&a, &b, &out].map(|array| View::<bf16>::new(array.address(), array.len(), &stream));
                self.launch(part, g, [&a, &b], &mut to)?;
                self.widened(&out)
            }
        }
    }

    #[expect(unsafe_code, reason = "cuDNN trusts its arguments")]
    fn launch<T: CudnnDataType + Scale>(&self, part: Part, g: &Geometry, [a, b]: [&View<T>; 2], out: &mut View<T>) -> Result<()> {
        let layout = cudnn_sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        let mode = cudnn_sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let cudnn = self.cudnn()?;
        let x = cudnn.create_4d_tensor::<T>(layout, ints([g.n, g.c, g.h, g.w])?).map_err(Error::wrap)?;
        let y = cudnn.create_4d_tensor::<T>(layout, ints([g.n, g.o, g.oh, g.ow])?).map_err(Error::wrap)?;
        let w = cudnn.create_4d_filter::<T>(layout, ints([g.o, g.c / g.groups, g.kh, g.kw])?).map_err(Error::wrap)?;
        let ([padding, stride], [groups]) = (ints([g.padding, g.stride])?, ints([g.groups])?);
        let mut conv = cudnn.create_conv2d::<f32>([padding; 2], [stride; 2], [1; 2], mode).map_err(Error::wrap)?;
        conv.set_group_count(groups).map_err(Error::wrap)?;
        // Winograd's is a waste for others, and where products are of bfloat16 or TF32, which cost less than its transforms.
        let f32s = size_of::<T>() == size_of::<f32>() && std::env::var_os("NVIDIA_TF32_OVERRIDE").is_some_and(|set| set == "0");
        let winograd = f32s && (g.kh, g.kw, g.stride, g.groups) == (3, 3, 1, 1);
        let skipped = usize::from(!winograd);
        match part {
            Part::Forward => {
                let run = ConvForward { conv: &conv, x: &x, w: &w, y: &y };
                use cudnn_sys::cudnnConvolutionFwdAlgo_t as Algorithm;
                let fixed =
                    [Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED, Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM];
                let launch = |algorithm, space: Option<&mut CudaSlice<u8>>| {
                    // SAFETY: the arrays have the sizes of the descriptors and live on; the stream is the handle's.
                    unsafe { run.launch(algorithm, space, (T::ONE, T::ZERO), a, b, out) }
                };
                self.first_that_runs(&fixed[skipped..], |a| run.get_workspace_size(a), || run.pick_algorithm(), launch)
            }
            Part::Input => {
                let run = ConvBackwardData { conv: &conv, dx: &x, w: &w, dy: &y };
                use cudnn_sys::cudnnConvolutionBwdDataAlgo_t as Algorithm;
                let fixed = [Algorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD_NONFUSED, Algorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1];
                let launch = |algorithm, space: Option<&mut CudaSlice<u8>>| {
                    // SAFETY: as above.
                    unsafe { run.launch(algorithm, space, (T::ONE, T::ZERO), out, a, b) }
                };
                self.first_that_runs(&fixed[skipped..], |a| run.get_workspace_size(a), || run.pick_algorithm(), launch)
            }
            Part::Weight => {
                let run = ConvBackwardFilter { conv: &conv, x: &x, dw: &w, dy: &y };
                use cudnn_sys::cudnnConvolutionBwdFilterAlgo_t as Algorithm;
                let fixed =
                    [Algorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_WINOGRAD_NONFUSED, Algorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1];
                let launch = |algorithm, space: Option<&mut CudaSlice<u8>>| {
                    // SAFETY: as above.
                    unsafe { run.launch(algorithm, space, (T::ONE, T::ZERO), a, out, b) }
                };
                self.first_that_runs(&fixed[skipped..], |a| run.get_workspace_size(a), || run.pick_algorithm(), launch)
            }
        }
    }

    /// Launches with the first of the algorithms that cuDNN and the memory do not refuse, and with cuDNN's choice where all are.
    fn first_that_runs<A: Copy>(
        &self,
        fixed: &[A],
        bytes: impl Fn(A) -> std::result::Result<usize, CudnnError>,
        pick: impl Fn() -> std::result::Result<A, CudnnError>,
        mut launch: impl FnMut(A, Option<&mut CudaSlice<u8>>) -> std::result::Result<(), CudnnError>,
    ) -> Result<()> {
        for &algorithm in fixed {
            // One whose workspace does not fit is refused, too.
            let Ok(Ok(mut space)) = bytes(algorithm).map(|bytes| self.workspace(bytes)) else { continue };
            if launch(algorithm, space.as_mut()).is_ok() {
                return Ok(());
            }
        }
        let picked = pick().map_err(Error::wrap)?;
        let mut space = self.workspace(bytes(picked).map_err(Error::wrap)?)?;
        launch(picked, space.as_mut()).map_err(Error::wrap)
    }

    #[expect(unsafe_code, reason = "memory that is not written yet")]
    fn workspace(&self, bytes: usize) -> Result<Option<CudaSlice<u8>>> {
        // SAFETY: cuDNN reads nothing of it that it has not written.
        if bytes == 0 { Ok(None) } else { unsafe { self.candle.alloc::<u8>(bytes) }.map(Some) }
    }
}

/// Which of a convolution's three products. Operands: input and weight; weight and gradient; input and gradient.
#[derive(Clone, Copy)]
enum Part {
    Forward,
    Input,
    Weight,
}

fn ints<const N: usize>(sizes: [usize; N]) -> Result<[c_int; N]> {
    let mut out = [0; N];
    for (to, size) in out.iter_mut().zip(sizes) {
        *to = c_int::try_from(size).map_err(|_| Error::Msg(format!("{size} is more than cuDNN and cuBLAS take")))?;
    }
    Ok(out)
}

/// How a result counts, and what was there before.
trait Scale {
    const ONE: Self;
    const ZERO: Self;
}

impl Scale for f32 {
    const ONE: Self = 1.0;
    const ZERO: Self = 0.0;
}

impl Scale for bf16 {
    const ONE: Self = bf16::ONE;
    const ZERO: Self = bf16::ZERO;
}

/// Memory of the GPU as cudarc's libraries take it. All of it is used on one stream, so nothing waits for anything.
pub(super) struct View<T> {
    address: u64,
    len: usize,
    stream: Arc<CudaStream>,
    kind: PhantomData<T>,
}

impl<T> View<T> {
    pub(super) fn new(address: u64, len: usize, stream: &Arc<CudaStream>) -> Self {
        Self { address, len, stream: stream.clone(), kind: PhantomData }
    }
}

impl<T> DeviceSlice<T> for View<T> {
    fn len(&self) -> usize {
        self.len
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl<T> DevicePtr<T> for View<T> {
    fn device_ptr<'a>(&'a self, _: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Record(None))
    }
}

impl<T> DevicePtrMut<T> for View<T> {
    fn device_ptr_mut<'a>(&'a mut self, _: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Record(None))
    }
}

impl Engine for Cuda {
    type Device = cuda::CudaDevice;

    fn device(&self) -> &cuda::CudaDevice {
        &self.kernels
    }

    fn empty(&self, len: usize) -> Result<On<Self>> {
        self.room(len)
    }

    fn zeros(&self, len: usize) -> Result<On<Self>> {
        self.own(self.candle.alloc_zeros::<f32>(len.max(1))?, len)
    }

    fn convolve(&self, g: &Geometry, how: Arithmetic, x: &On<Self>, w: &On<Self>) -> Result<On<Self>> {
        self.convolution(Part::Forward, g, how, [x, w], g.n * g.o * g.oh * g.ow)
    }

    fn input_gradient(&self, g: &Geometry, how: Arithmetic, w: &On<Self>, dy: &On<Self>) -> Result<On<Self>> {
        self.convolution(Part::Input, g, how, [w, dy], g.n * g.c * g.h * g.w)
    }

    fn weight_gradient(&self, g: &Geometry, how: Arithmetic, x: &On<Self>, dy: &On<Self>) -> Result<On<Self>> {
        self.convolution(Part::Weight, g, how, [x, dy], g.o * g.c / g.groups * g.kh * g.kw)
    }

    #[expect(unsafe_code, reason = "cuBLAS trusts its arguments")]
    fn product(&self, size: Product, how: Arithmetic, a: &On<Self>, b: &On<Self>) -> Result<On<Self>> {
        let out = self.empty(size.m * size.n)?;
        let [m, n, k] = ints([size.m, size.n, size.k])?;
        let (turned, plain) = (cublas_sys::cublasOperation_t::CUBLAS_OP_T, cublas_sys::cublasOperation_t::CUBLAS_OP_N);
        // cuBLAS lays matrices out by columns, so it is given the transposed product, bᵀ·aᵀ.
        let (of_b, b_step) = if size.b_transposed { (turned, k) } else { (plain, n) };
        let (of_a, a_step) = if size.a_transposed { (turned, m) } else { (plain, k) };
        let blas = self.candle.cublas_handle();
        let (one, zero) = (1f32, 0f32);
        let gemm = |a: u64, b: u64, kind: cublas_sys::cudaDataType| {
            // SAFETY: the arrays have these sizes and live on; the stream is the handle's.
            unsafe {
                cublas::gemm_ex(
                    *blas.handle(),
                    of_b,
                    of_a,
                    n,
                    m,
                    k,
                    (&raw const one).cast::<c_void>(),
                    b as *const c_void,
                    kind,
                    b_step,
                    a as *const c_void,
                    kind,
                    a_step,
                    (&raw const zero).cast::<c_void>(),
                    out.address() as *mut c_void,
                    cublas_sys::cudaDataType::CUDA_R_32F,
                    n,
                    cublas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    cublas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                )
            }
        };
        match how {
            Arithmetic::F32 => gemm(a.address(), b.address(), cublas_sys::cudaDataType::CUDA_R_32F),
            Arithmetic::Bf16 => {
                let (a, b) = (self.halved(a)?, self.halved(b)?);
                gemm(a.address(), b.address(), cublas_sys::cudaDataType::CUDA_R_16BF)
            }
        }
        .map_err(Error::wrap)?;
        Ok(out)
    }
}

/// The elements of a contiguous operand, for as long as its storage lives.
#[expect(unsafe_code, reason = "takes an address out of candle's storage")]
pub(super) fn operand(storage: &CudaStorage, layout: &Layout) -> Result<On<Cuda>> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("an operand of shape {:?} is not contiguous", layout.shape()) };
    let slice = storage.as_cuda_slice::<f32>()?;
    let address = slice.device_ptr(slice.stream()).0 + (start * size_of::<f32>()) as u64;
    // SAFETY: candle has allocated it there, on the stream that everything here is done on. What reads it is asked for before the storage
    // is dropped, and it is freed on the same stream.
    let buffer = unsafe { CudaBuffer::adopt(address, (end - start) * size_of::<f32>(), Box::new(())) };
    Ok(Array::of(buffer, end - start))
}

/// What [`Engine::empty`] gave, as candle's.
fn storage(e: &Cuda, array: On<Cuda>) -> Result<CudaStorage> {
    match array.into_buffer().and_then(CudaBuffer::into_owner::<CudaSlice<f32>>) {
        Some(slice) => Ok(CudaStorage::wrap_cuda_slice(slice, e.candle.clone())),
        None => bail!("an operation's output is somebody else's memory"),
    }
}

/// The forward pass `f` of a custom operation.
pub(super) fn forward<const N: usize>(
    operands: [(&CudaStorage, &Layout); N],
    f: impl FnOnce(&Cuda, [&On<Cuda>; N]) -> Result<On<Cuda>>,
) -> Result<CudaStorage> {
    let Some((first, _)) = operands.first() else { bail!("an operation without operands") };
    let e = Cuda::of(&first.device)?;
    let mut arrays = Vec::with_capacity(N);
    for (storage, layout) in operands {
        arrays.push(operand(storage, layout)?);
    }
    storage(&e, f(&e, std::array::from_fn(|i| &arrays[i]))?)
}

/// The backward pass `f` of a custom operation: of contiguous `tensors`, gradients in the shapes of `like`.
pub(super) fn backward<const N: usize, const M: usize>(
    tensors: [&Tensor; N],
    like: [&Tensor; M],
    f: impl FnOnce(&Cuda, [&On<Cuda>; N]) -> Result<[Option<On<Cuda>>; M]>,
) -> Result<[Option<Tensor>; M]> {
    let Some(first) = tensors.first() else { bail!("an operation without operands") };
    let e = Cuda::of_tensor(first)?;
    // Held until everything is asked for.
    let held = tensors.map(|tensor| tensor.storage_and_layout());
    let mut arrays = Vec::with_capacity(N);
    for (storage, layout) in &held {
        let Storage::Cuda(storage) = &**storage else { bail!("an operand of a GPU's operation lies elsewhere") };
        arrays.push(operand(storage, layout)?);
    }
    let gradients = f(&e, std::array::from_fn(|i| &arrays[i]))?;
    let mut out = [const { None }; M];
    for ((to, gradient), like) in out.iter_mut().zip(gradients).zip(like) {
        if let Some(gradient) = gradient {
            *to = Some(gradient_of(&e, gradient, like)?);
        }
    }
    Ok(out)
}

/// What [`Engine::empty`] gave, as a tensor in the shape of `like`.
pub(super) fn gradient_of(e: &Cuda, array: On<Cuda>, like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::from_storage(Storage::Cuda(storage(e, array)?), like.shape().clone(), BackpropOp::none(), false))
}

/// Numbers of the optimiser on the GPU that its parameter lies on.
pub(crate) struct Moments {
    array: On<Cuda>,
    engine: Cuda,
}

impl Moments {
    pub(crate) fn new(like: &Tensor, values: &[f32]) -> Result<Self> {
        let engine = Cuda::of_tensor(like)?;
        Ok(Self { array: Array::from_slice(&engine.kernels, values).map_err(failed)?, engine })
    }

    pub(crate) fn to_vec(&self) -> Result<Vec<f32>> {
        self.array.to_vec(&self.engine.kernels).map_err(failed)
    }
}

/// The squares of all numbers of contiguous `tensors`, summed: chunks on the GPU, chunks of all tensors in order on the host.
pub(crate) fn square_norm<'t>(tensors: impl Iterator<Item = &'t Tensor> + Clone) -> Result<f64> {
    let Some(first) = tensors.clone().next() else { return Ok(0.0) };
    let e = Cuda::of_tensor(first)?;
    let chunks = |tensor: &Tensor| tensor.elem_count().div_ceil(ops::SQUARES);
    let sums = e.empty(tensors.clone().map(chunks).sum())?;
    let mut start = 0;
    for tensor in tensors {
        let end = start + chunks(tensor);
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("a gradient of a GPU's parameter lies elsewhere") };
        ops::square_sums(&e.kernels, &operand(storage, layout)?, &sums.slice(start..end)).map_err(failed)?;
        start = end;
    }
    Ok(sums.to_vec(&e.kernels).map_err(failed)?.into_iter().map(f64::from).sum())
}

/// One step of SGD: learning rate, decay, what the gradient counts.
pub(crate) fn sgd(w: (&mut CudaStorage, &Layout), g: (&CudaStorage, &Layout), first: &Moments, numbers: [f32; 3]) -> Result<()> {
    let (w, g) = (operand(w.0, w.1)?, operand(g.0, g.1)?);
    ops::sgd(&first.engine.kernels, &w, &first.array, &g, numbers).map_err(failed)
}

/// One step of AdamW, its numbers as in [`ops::adamw`].
pub(crate) fn adamw(
    w: (&mut CudaStorage, &Layout),
    g: (&CudaStorage, &Layout),
    [first, second]: [&Moments; 2],
    numbers: [f32; 4],
) -> Result<()> {
    let (w, g) = (operand(w.0, w.1)?, operand(g.0, g.1)?);
    ops::adamw(&first.engine.kernels, &w, [&first.array, &second.array], &g, numbers).map_err(failed)
}
