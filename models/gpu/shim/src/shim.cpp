// The kernels compiled as C++: a launch calls the kernel once per block, and the kernel loops over the block's threads.

#include "../../kernels/common.cuh"

#include "../../kernels/image.cu"
#include "../../kernels/boxes.cu"
#include "../../kernels/roi.cu"
#include "../../kernels/heatmap.cu"
#include "../../kernels/train.cu"

#include <utility>

// `args` point to the arguments, as CUDA's launch takes them.
template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(args[I])...);
}

template <class... A>
static void grid(void (*kernel)(A...), u32 x, u32 y, void** args) {
    gridDim = Index{x, y, 1};
    for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x) call(kernel, args, std::index_sequence_for<A...>());
    }
}

template <class... A>
static constexpr u32 count(void (*)(A...)) {
    return sizeof...(A);
}

#define KERNELS(X)                                                                                                                        \
    X(view_image) X(max_pool) X(not_finite) X(rpn_keys) X(select_count) X(select_digit) X(select_take) X(rank) X(rpn_decode) X(nms_mask)  \
    X(nms_sweep) X(take_boxes) X(detect) X(roi_taps) X(roi_align) X(unflip) X(scale) X(decode) X(brightest) X(agreement) X(relu_backward) X(add_relu)  \
    X(add_bias) X(scale_rows) X(sum_channels) X(row_products) X(max_pool_backward) X(double_nearest) X(double_nearest_backward)           \
    X(double_bilinear) X(double_bilinear_backward) X(batch_align) X(batch_align_backward) X(square_sums) X(sgd) X(adamw) X(to_bf16) X(from_bf16)

// 0 when the kernel ran, 1 when there is none of this name, 2 when it takes another number of arguments.
extern "C" int omnilabel_shim_launch(const char* name, u32 x, u32 y, void** args, u32 arg_count) {
#define X(kernel)                                  \
    if (strcmp(name, #kernel) == 0) {              \
        if (arg_count != count(kernel)) return 2;  \
        grid(kernel, x, y, args);                  \
        return 0;                                  \
    }
    KERNELS(X)
#undef X
    return 1;
}
