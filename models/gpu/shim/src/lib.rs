//! The GPU kernels compiled as C++ and run on the CPU, so that they are tested where there is no GPU. A launch runs one block after
//! the other, and every thread of a block in a loop between two barriers.

use omnilabel_gpu::{Arg, Device, GpuError, Kernel};
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device that is the CPU itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shim;

/// Memory of the shim.
#[derive(Debug)]
pub struct Memory {
    words: Box<[AtomicU64]>,
    bytes: usize,
}

#[expect(unsafe_code, reason = "the kernels are C++ behind a C function")]
unsafe extern "C" {
    fn omnilabel_shim_launch(name: *const c_char, x: u32, y: u32, args: *mut *mut c_void, count: u32) -> c_int;
}

/// Kernels write memory without atomics: one of them runs at a time, and nobody reads meanwhile.
static ALONE: Mutex<()> = Mutex::new(());

impl Memory {
    fn new(bytes: usize) -> Self {
        Self { words: (0..bytes.div_ceil(8).max(1)).map(|_| AtomicU64::new(0)).collect(), bytes }
    }
}

impl Device for Shim {
    type Buffer = Memory;

    fn alloc(&self, bytes: usize) -> Result<Memory, GpuError> {
        Ok(Memory::new(bytes))
    }

    fn upload(&self, bytes: &[u8]) -> Result<Memory, GpuError> {
        let memory = Memory::new(bytes.len());
        for (word, chunk) in memory.words.iter().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        Ok(memory)
    }

    fn download(&self, buffer: &Memory, start: usize, bytes: &mut [u8]) -> Result<(), GpuError> {
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if start + bytes.len() > buffer.bytes {
            return Err(GpuError::Driver { operation: "download", message: format!("{} bytes hold no {}", buffer.bytes, bytes.len()) });
        }
        for (i, byte) in (start..).zip(bytes) {
            *byte = buffer.words[i / 8].load(Ordering::Relaxed).to_ne_bytes()[i % 8];
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "the kernels are C++ behind a C function")]
    unsafe fn launch(&self, kernel: Kernel, grid: [u32; 2], args: &[Arg<'_, Memory>]) -> Result<(), GpuError> {
        let name = CString::new(kernel.name()).unwrap_or_default();
        // What the kernel takes by value, pointers among it; all at most eight bytes, and aligned for any of them.
        let mut values: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::Buffer(memory, start) => memory.words.as_ptr() as u64 + start as u64,
                Arg::Int(v) => word(&v.to_ne_bytes()),
                Arg::Float(v) => word(&v.to_ne_bytes()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: the name ends with a zero, `pointers` point to `args.len()` values of eight bytes, and the caller promises that the
        // kernel takes arguments of these types and stays inside the buffers, which outlive the call. Atomics are interior mutable.
        let code = unsafe { omnilabel_shim_launch(name.as_ptr(), grid[0], grid[1], pointers.as_mut_ptr(), args.len() as u32) };
        match code {
            0 => Ok(()),
            1 => Err(GpuError::Kernel { kernel: kernel.name(), message: "the shim does not have it".to_owned() }),
            _ => Err(GpuError::Kernel { kernel: kernel.name(), message: format!("does not take {} arguments", args.len()) }),
        }
    }
}

/// Four bytes where the kernel reads them: at the value's own address.
fn word(bytes: &[u8; 4]) -> u64 {
    let mut whole = [0; 8];
    whole[..4].copy_from_slice(bytes);
    u64::from_ne_bytes(whole)
}
