//! The memory of maps that a graph is done with, for its next maps: neither new pages nor zeros are written for them.

use std::cell::RefCell;
use tract_onnx::prelude::*;

thread_local! {
    static DONE: RefCell<Vec<Tensor>> = const { RefCell::new(Vec::new()) };
}

/// How many maps wait: a residual block has no more in flight, and what was used last is still in the cache.
const WAITING: usize = 3;

/// A map of f32 of `shape`, with whatever values.
pub(crate) fn map(shape: &[usize]) -> TractResult<Tensor> {
    let len: usize = shape.iter().product();
    let found = DONE.with_borrow_mut(|done| done.iter().rposition(|map| map.len() == len).map(|index| done.remove(index)));
    found.map_or_else(|| Tensor::zero::<f32>(shape), |map| map.into_shape(shape))
}

/// Takes the memory of `value` where nothing else reads it, and lets go of what waited longest.
pub(crate) fn done_with(value: TValue) {
    if !value.is_exclusive() || value.datum_type() != f32::datum_type() || value.len() == 0 {
        return;
    }
    DONE.with_borrow_mut(|done| {
        if done.len() == WAITING {
            done.remove(0);
        }
        done.push(value.into_tensor());
    });
}

/// Lets go of all that waits on this thread.
pub(crate) fn clear() {
    DONE.with_borrow_mut(Vec::clear);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_are_read_elsewhere_are_left_alone() {
        let tensor = Tensor::from_shape(&[2, 3], &[1f32; 6]).unwrap().into_tvalue();
        done_with(tensor.clone());
        assert_eq!(map(&[6]).unwrap().try_as_plain_ram().unwrap().as_slice::<f32>().unwrap(), [0.0; 6]);
        done_with(tensor);
        assert_eq!(map(&[7]).unwrap().len(), 7);
        let again = map(&[3, 2]).unwrap();
        assert_eq!((again.shape(), again.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap()), (&[3, 2][..], &[1.0; 6][..]));
        (0..9).for_each(|_| done_with(Tensor::zero::<f32>(&[1]).unwrap().into_tvalue()));
        assert_eq!(DONE.with_borrow(Vec::len), WAITING);
        clear();
        assert_eq!(DONE.with_borrow(Vec::len), 0);
    }
}
