//! The kernels on an NVIDIA GPU: compiled by NVRTC for the GPU at hand, once per process, GPU and part (about a second), launched by
//! the driver. Both are loaded when they are asked for, and [`GpuError::Missing`] where there are none.

use crate::{Arg, Array, Device, Element, GpuError, Kernel, Part, THREADS};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, result as driver};
use cudarc::nvrtc::{Ptx, result as nvrtc, sys as nvrtc_sys};
use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt::Display;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Whether there is a driver and a compiler to load.
///
/// # Errors
/// [`GpuError::Missing`].
pub fn check() -> Result<(), GpuError> {
    check_driver()?;
    check_compiler()
}

/// Whether there is a driver; what cudarc is asked for without one panics.
///
/// # Errors
/// [`GpuError::Missing`].
pub fn check_driver() -> Result<(), GpuError> {
    if has_driver() {
        return Ok(());
    }
    let hint = "install NVIDIA's driver (libcuda.so.1), and let a container see it".to_owned();
    Err(GpuError::Missing { what: "the CUDA driver", hint })
}

/// Whether there is NVRTC.
///
/// # Errors
/// [`GpuError::Missing`].
pub fn check_compiler() -> Result<(), GpuError> {
    if has_compiler() {
        return Ok(());
    }
    let hint = "install libnvrtc of the CUDA toolkit, or fetch it with deploy/cuda/fetch and set LD_LIBRARY_PATH".to_owned();
    Err(GpuError::Missing { what: "NVRTC", hint })
}

#[cfg(not(feature = "cuda-linked"))]
#[expect(unsafe_code, reason = "opens a shared library")]
fn has_driver() -> bool {
    // SAFETY: opening NVIDIA's driver library runs nothing but its own initialisers.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

#[cfg(not(feature = "cuda-linked"))]
#[expect(unsafe_code, reason = "opens a shared library")]
fn has_compiler() -> bool {
    // SAFETY: as above, of NVIDIA's compiler library.
    unsafe { nvrtc_sys::is_culib_present() }
}

/// What is linked in a library's place (`deploy/cuda/lazy`) refuses everything where there is none.
#[cfg(feature = "cuda-linked")]
fn has_driver() -> bool {
    driver::init() != Err(cudarc::driver::DriverError(cudarc::driver::sys::CUresult::CUDA_ERROR_STUB_LIBRARY))
}

#[cfg(feature = "cuda-linked")]
#[expect(unsafe_code, reason = "NVRTC's functions take raw pointers")]
fn has_compiler() -> bool {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    unsafe { nvrtc_sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().is_ok()
}

/// Machine code of a part's kernels for an architecture such as `sm_87`. Not PTX: a driver refuses the PTX of a newer toolkit than its own.
///
/// # Errors
/// [`GpuError::Missing`] without NVRTC, [`GpuError::Compile`].
pub fn compile(arch: &str, part: Part) -> Result<Vec<u8>, GpuError> {
    check_compiler()?;
    let refuse = |log: String| GpuError::Compile { arch: arch.to_owned(), log };
    let source = CString::new(part.source()).map_err(|e| refuse(e.to_string()))?;
    let program = Program::new(&source, c"omnilabel.cu").map_err(|e| refuse(format!("{e:?}")))?;
    // Products and sums stay apart, so that the kernels round as their CPU twins do.
    let options = [format!("--gpu-architecture={arch}"), "--fmad=false".to_owned(), "--std=c++17".to_owned()];
    program.compile(&options).map_err(refuse)
}

/// Destroyed when dropped.
struct Program(nvrtc_sys::nvrtcProgram);

impl Program {
    fn new(source: &CStr, name: &CStr) -> Result<Self, nvrtc::NvrtcError> {
        nvrtc::create_program(source, Some(name)).map(Self)
    }

    #[expect(unsafe_code, reason = "NVRTC's functions take raw pointers")]
    fn compile(&self, options: &[String]) -> Result<Vec<u8>, String> {
        // SAFETY: the program is alive; cudarc copies the options.
        let compiled = unsafe { nvrtc::compile_program(self.0, options) };
        if let Err(error) = compiled {
            // SAFETY: as above.
            let log = unsafe { nvrtc::get_program_log(self.0) }.unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
            return Err(format!("{error:?}: {}", String::from_utf8_lossy(&log).trim()));
        }
        let mut bytes = 0;
        // SAFETY: writes one number.
        unsafe { nvrtc_sys::nvrtcGetCUBINSize(self.0, &raw mut bytes) }.result().map_err(|e| format!("{e:?}"))?;
        let mut cubin = vec![0u8; bytes];
        // SAFETY: writes as many bytes as it has just said.
        unsafe { nvrtc_sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) }.result().map_err(|e| format!("{e:?}"))?;
        Ok(cubin)
    }
}

impl Drop for Program {
    #[expect(unsafe_code, reason = "NVRTC's functions take raw pointers")]
    fn drop(&mut self) {
        // SAFETY: nobody else has the program. Nothing is to be done when it fails.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

/// Memory of a GPU, with what keeps it allocated.
pub struct CudaBuffer {
    address: u64,
    bytes: usize,
    owner: Box<dyn Any + Send + Sync>,
}

impl CudaBuffer {
    /// `bytes` at `address` that somebody else has allocated, for as long as `owner` lives.
    ///
    /// # Safety
    /// That they are, on the GPU of the device that uses them, and what is written there is written on that device's stream.
    #[expect(unsafe_code, reason = "trusts an address")]
    pub unsafe fn adopt(address: u64, bytes: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        Self { address, bytes, owner }
    }

    /// What keeps it allocated, if it is a `T`.
    pub fn owner<T: Any>(&self) -> Option<&T> {
        self.owner.downcast_ref()
    }

    /// What keeps it allocated, if it is a `T`.
    pub fn into_owner<T: Any>(self) -> Option<T> {
        self.owner.downcast().ok().map(|owner| *owner)
    }
}

impl<T: Element> Array<CudaDevice, T> {
    /// Where it lies in the GPU's memory.
    pub fn address(&self) -> u64 {
        self.buffer().address + self.start_bytes() as u64
    }
}

/// One stream of one GPU. All it does is done in order.
#[derive(Clone)]
pub struct CudaDevice {
    stream: Arc<CudaStream>,
    loaded: Arc<Loaded>,
}

/// The kernels of one GPU by part, in the order of [`Part::kernels`]; those of training when the first is launched.
#[derive(Default)]
struct Loaded([OnceLock<Vec<CudaFunction>>; Part::ALL.len()]);

impl Loaded {
    fn part(&self, context: &Arc<CudaContext>, part: Part) -> Result<&[CudaFunction], GpuError> {
        let slot = &self.0[part as usize];
        if let Some(functions) = slot.get() {
            return Ok(functions);
        }
        let (major, minor) = context.compute_capability().map_err(refused("ask for the compute capability"))?;
        let cubin = compile(&format!("sm_{major}{minor}"), part)?;
        let module = context.load_module(Ptx::from_binary(cubin)).map_err(refused("load the kernels"))?;
        let function = |kernel: Kernel| module.load_function(kernel.name()).map_err(refused(kernel.name()));
        let functions = part.kernels().map(function).collect::<Result<_, _>>()?;
        Ok(slot.get_or_init(|| functions))
    }

    fn function(&self, context: &Arc<CudaContext>, kernel: Kernel) -> Result<&CudaFunction, GpuError> {
        let at = part_index(kernel);
        let missing = || GpuError::Kernel { kernel: kernel.name(), message: "was not loaded".to_owned() };
        self.part(context, kernel.part())?.get(at).ok_or_else(missing)
    }
}

/// Place in [`Part::kernels`].
fn part_index(kernel: Kernel) -> usize {
    kernel as usize - kernel.part().kernels().next().map_or(0, |first| first as usize)
}

/// Per GPU.
static LOADED: Mutex<BTreeMap<usize, Arc<Loaded>>> = Mutex::new(BTreeMap::new());

fn refused<E: Display>(operation: &'static str) -> impl Fn(E) -> GpuError {
    move |e| GpuError::Driver { operation, message: e.to_string() }
}

/// Of the GPU's memory, this share is kept for the next allocation instead of being given back, and mapped anew, at each wait for the
/// stream: CUDA's own threshold is nought.
const KEPT_SHARE: u64 = 2;

#[expect(unsafe_code, reason = "an attribute by its address")]
fn keep_freed(context: &CudaContext) -> Result<(), GpuError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    context.bind_to_thread().map_err(refused("bind"))?;
    let mut kept = context.total_mem().map_err(refused("ask for the memory"))? as u64 / KEPT_SHARE;
    let threshold = cudarc::driver::sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the context's own device and its pool, which is never destroyed; the attribute is a cuuint64_t.
    let set = unsafe {
        driver::device::get_default_mem_pool(context.cu_device())
            .and_then(|pool| driver::mem_pool::set_attribute(pool, threshold, (&raw mut kept).cast()))
    };
    set.map_err(refused("keep freed memory"))
}

impl CudaDevice {
    /// A stream of its own on GPU `ordinal`.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn new(ordinal: usize) -> Result<Self, GpuError> {
        check()?;
        let context = CudaContext::new(ordinal).map_err(refused("open"))?;
        let stream = context.new_stream().map_err(refused("make a stream"))?;
        Self::on(stream)
    }

    /// On a stream that somebody else uses too.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn on(stream: Arc<CudaStream>) -> Result<Self, GpuError> {
        let context = stream.context();
        let known = |all: &mut BTreeMap<usize, Arc<Loaded>>| -> Result<Arc<Loaded>, GpuError> {
            if let Some(loaded) = all.get(&context.ordinal()) {
                return Ok(loaded.clone());
            }
            check_compiler()?;
            keep_freed(context)?;
            Ok(all.entry(context.ordinal()).or_default().clone())
        };
        let loaded = known(&mut LOADED.lock().unwrap_or_else(PoisonError::into_inner))?;
        loaded.part(context, Part::Labelling)?;
        Ok(Self { stream, loaded })
    }

    /// Its name, as the driver has it.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn name(&self) -> Result<String, GpuError> {
        self.stream.context().name().map_err(refused("ask for the name"))
    }

    fn own<T: DeviceRepr + Send + Sync + 'static>(&self, slice: cudarc::driver::CudaSlice<T>) -> CudaBuffer {
        use cudarc::driver::DevicePtr;
        let bytes = slice.num_bytes();
        let address = slice.device_ptr(&self.stream).0;
        CudaBuffer { address, bytes, owner: Box::new(slice) }
    }
}

impl Device for CudaDevice {
    type Buffer = CudaBuffer;

    fn alloc(&self, bytes: usize) -> Result<CudaBuffer, GpuError> {
        // An allocation of nothing is an error.
        let slice = self.stream.alloc_zeros::<u8>(bytes.max(1)).map_err(refused("allocate"))?;
        Ok(self.own(slice))
    }

    fn upload(&self, bytes: &[u8]) -> Result<CudaBuffer, GpuError> {
        let slice = self.stream.clone_htod(if bytes.is_empty() { &[0][..] } else { bytes }).map_err(refused("upload"))?;
        Ok(self.own(slice))
    }

    #[expect(unsafe_code, reason = "copies from an address")]
    fn download(&self, buffer: &CudaBuffer, start: usize, bytes: &mut [u8]) -> Result<(), GpuError> {
        if start + bytes.len() > buffer.bytes {
            return Err(GpuError::Driver { operation: "download", message: format!("{} bytes hold no {}", buffer.bytes, bytes.len()) });
        }
        self.stream.context().bind_to_thread().map_err(refused("download"))?;
        // SAFETY: the bytes lie inside the buffer, which lives on, and nobody looks at `bytes` before the stream is done.
        unsafe { driver::memcpy_dtoh_async(bytes, buffer.address + start as u64, self.stream.cu_stream()) }.map_err(refused("download"))?;
        self.stream.synchronize().map_err(refused("wait"))
    }

    #[expect(unsafe_code, reason = "a kernel trusts its arguments")]
    unsafe fn launch(&self, kernel: Kernel, grid: [u32; 2], args: &[Arg<'_, CudaBuffer>]) -> Result<(), GpuError> {
        /// As the kernel takes it.
        enum Value {
            Address(u64),
            Int(i32),
            Float(f32),
        }
        let values = args.iter().map(|arg| match *arg {
            Arg::Buffer(buffer, start) => Value::Address(buffer.address + start as u64),
            Arg::Int(v) => Value::Int(v),
            Arg::Float(v) => Value::Float(v),
        });
        let values: Vec<Value> = values.collect();
        let mut launch = self.stream.launch_builder(self.loaded.function(self.stream.context(), kernel)?);
        for value in &values {
            match value {
                Value::Address(v) => launch.arg(v),
                Value::Int(v) => launch.arg(v),
                Value::Float(v) => launch.arg(v),
            };
        }
        let config = LaunchConfig { grid_dim: (grid[0], grid[1], 1), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the caller's promise. Buffers are freed on the stream that uses them, after the kernels before.
        unsafe { launch.launch(config) }.map(|_| ()).map_err(|e| GpuError::Kernel { kernel: kernel.name(), message: e.to_string() })
    }
}
