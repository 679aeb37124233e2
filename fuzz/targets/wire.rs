//! Every message type reads any bytes without panicking, and what it accepts it writes and reads back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use omnilabel_keypoints::wire::{
    AckMsg, BlockRequest, Encoding, FrameHeader, HistogramMsg, LabelMsg, Message, ModelMsg, ReleaseMsg, StatusMsg,
};

fn check<M: Message + PartialEq + core::fmt::Debug>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else { return };
    for encoding in [Encoding::Cbor, Encoding::Json] {
        let mut out = vec![0; M::MAX_BYTES];
        let n = message.encode(encoding, &mut out).expect("MAX_BYTES is enough");
        assert_eq!(M::decode(&out[..n]).as_ref(), Ok(&message));
    }
}

fuzz_target!(|data: &[u8]| {
    // The first byte chooses the type, so that a corpus entry stays with one.
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 8 {
        0 => check::<LabelMsg>(bytes),
        1 => check::<FrameHeader>(bytes),
        2 => check::<HistogramMsg>(bytes),
        3 => check::<AckMsg>(bytes),
        4 => check::<StatusMsg>(bytes),
        5 => check::<ModelMsg>(bytes),
        6 => check::<ReleaseMsg>(bytes),
        _ => check::<BlockRequest>(bytes),
    }
});
