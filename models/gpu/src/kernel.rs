//! The kernels by name, and their source.

/// Threads per block of every launch, as in `common.cuh`.
pub const THREADS: usize = 256;

/// All kernels as one CUDA source.
pub const SOURCE: &str = concat!(
    include_str!("../kernels/common.cuh"),
    include_str!("../kernels/image.cu"),
    include_str!("../kernels/boxes.cu"),
    include_str!("../kernels/roi.cu"),
    include_str!("../kernels/heatmap.cu"),
    include_str!("../kernels/train.cu"),
);

macro_rules! kernels {
    ($($kernel:ident $name:literal),+ $(,)?) => {
        /// A kernel of [`SOURCE`]; what each does is said there.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the sources document them")]
        pub enum Kernel {
            $($kernel),+
        }

        impl Kernel {
            /// Every kernel, in the order of their discriminants.
            pub const ALL: &[Self] = &[$(Self::$kernel),+];

            /// Its name in the source.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kernel => $name),+
                }
            }
        }
    };
}

kernels! {
    ViewImage "view_image",
    MaxPool "max_pool",
    NotFinite "not_finite",
    RpnKeys "rpn_keys",
    SelectCount "select_count",
    SelectDigit "select_digit",
    SelectTake "select_take",
    Rank "rank",
    RpnDecode "rpn_decode",
    NmsMask "nms_mask",
    NmsSweep "nms_sweep",
    TakeBoxes "take_boxes",
    Detect "detect",
    RoiTaps "roi_taps",
    RoiAlign "roi_align",
    Unflip "unflip",
    Scale "scale",
    Decode "decode",
    Agreement "agreement",
    ReluBackward "relu_backward",
    AddRelu "add_relu",
    AddBias "add_bias",
    ScaleRows "scale_rows",
    SumChannels "sum_channels",
    RowProducts "row_products",
    MaxPoolBackward "max_pool_backward",
    DoubleNearest "double_nearest",
    DoubleNearestBackward "double_nearest_backward",
    DoubleBilinear "double_bilinear",
    DoubleBilinearBackward "double_bilinear_backward",
    BatchAlign "batch_align",
    BatchAlignBackward "batch_align_backward",
    SquareSums "square_sums",
    Sgd "sgd",
    Adamw "adamw",
    ToBf16 "to_bf16",
    FromBf16 "from_bf16",
}
