//! Buffers that a thread keeps for its next call.

use crate::Scalar;
use std::any::Any;
use std::cell::RefCell;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers above this many bytes are not kept.
const KEPT_BYTES: usize = 64 << 20;

/// Runs `f` with `len` elements of unspecified value.
pub(crate) fn scratch<T: Scalar, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let mut buffer = BUFFERS
        .with_borrow_mut(|pool| {
            let index = pool.iter().rposition(|buffer| buffer.is::<Vec<T>>())?;
            pool.swap_remove(index).downcast::<Vec<T>>().ok()
        })
        .unwrap_or_default();
    if buffer.len() < len {
        buffer.resize(len, T::ZERO);
    }
    let result = f(&mut buffer[..len]);
    if size_of::<T>() * buffer.capacity() <= KEPT_BYTES {
        BUFFERS.with_borrow_mut(|pool| pool.push(buffer));
    }
    result
}
