//! The kernels by name, and their source.

/// Threads per block of every launch, as in `common.cuh`.
pub const THREADS: usize = 256;

/// Kernels that are compiled together: a camera has no use for those of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Frames to labels.
    Labelling,
    /// What training needs beside them.
    Training,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 2] = [Self::Labelling, Self::Training];

    /// Its CUDA source.
    pub const fn source(self) -> &'static str {
        match self {
            Self::Labelling => concat!(
                include_str!("../kernels/common.cuh"),
                include_str!("../kernels/image.cu"),
                include_str!("../kernels/boxes.cu"),
                include_str!("../kernels/roi.cu"),
                include_str!("../kernels/heatmap.cu"),
            ),
            Self::Training => concat!(include_str!("../kernels/common.cuh"), include_str!("../kernels/train.cu")),
        }
    }

    /// Its kernels, in the order of their discriminants.
    pub fn kernels(self) -> impl Iterator<Item = Kernel> {
        Kernel::ALL.iter().copied().filter(move |kernel| kernel.part() == self)
    }
}

macro_rules! kernels {
    ($($part:ident: $($kernel:ident $name:literal),+);+ $(;)?) => {
        /// A kernel; what each does is said in its [`Part::source`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the sources document them")]
        pub enum Kernel {
            $($($kernel),+),+
        }

        impl Kernel {
            /// Every kernel, in the order of their discriminants.
            pub const ALL: &[Self] = &[$($(Self::$kernel),+),+];

            /// Its name in the source.
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$kernel => $name),+),+
                }
            }

            /// Where its source is.
            pub const fn part(self) -> Part {
                match self {
                    $($(Self::$kernel)|+ => Part::$part),+
                }
            }
        }
    };
}

kernels! {
    Labelling:
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
    Brightest "brightest",
    Agreement "agreement";
    Training:
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
    FromBf16 "from_bf16";
}
