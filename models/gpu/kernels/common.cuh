// The few words of CUDA that the kernels use, for two compilers: NVRTC (or nvcc), for a GPU, and C++, where `shim.cpp` calls a
// kernel once per block and each PHASE loops over the block's threads. Both round alike: NVRTC is told not to contract products and
// sums (`--fmad=false`), the C++ compiler likewise (`-ffp-contract=off`), so that a kernel gives its CPU twin's bits wherever it
// does the same operations in the same order.
//
// Rules that keep one source right in both:
// - Every statement that depends on the thread stands in a PHASE. Between two phases lies a barrier. `continue` ends a thread's part.
// - What lives from one phase to the next is __shared__, or the same for all threads of the block.
// - Loops around phases have bounds that are the same for all threads of the block.
// - No kernel reads what another block of the same launch writes, but through atomics.

#define THREADS 256

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC__

#define KERNEL(name) extern "C" __global__ void __launch_bounds__(THREADS) name
#define PHASE for (int once = 1; once; once = 0, __syncthreads())
#define INFINITY_F __int_as_float(0x7f800000)
#define BITS(v) __float_as_uint(v)
#define FLOAT(bits) __uint_as_float(bits)

#else

#include <math.h>
#include <string.h>

struct Index {
    u32 x, y, z;
};
static thread_local Index threadIdx, blockIdx, gridDim;

#define KERNEL(name) static void name
#define PHASE for (threadIdx.x = 0; threadIdx.x < THREADS; ++threadIdx.x)
#define __shared__
#define __device__
#define INFINITY_F __builtin_inff()
#define BITS(v) bits_of(v)
#define FLOAT(bits) float_of(bits)

static inline u32 bits_of(float v) {
    u32 bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static inline float float_of(u32 bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static inline u32 atomicAdd(u32* at, u32 value) {
    u32 old = *at;
    *at += value;
    return old;
}

static inline u32 atomicMin(u32* at, u32 value) {
    u32 old = *at;
    if (value < old) *at = value;
    return old;
}

#endif

// The thread's place among all threads of the launch's x axis.
#define THREAD (blockIdx.x * THREADS + threadIdx.x)

struct Box {
    float x1, y1, x2, y2;
};

// Sorts as Rust's `f32::total_cmp`.
static __device__ inline u32 ordered(float v) {
    u32 bits = BITS(v);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Greater for a higher score, and for the lower index where scores are equal; never 0, which stands for "none".
static __device__ inline u64 key_of(float score, u32 index) {
    return (u64)ordered(score) << 32 | (u32)~index;
}

static __device__ inline u32 index_of(u64 key) {
    return ~(u32)key;
}

static __device__ inline bool is_finite(float v) {
    return fabsf(v) <= 3.402823466e38f;
}

// Rust's `clamp`: NaN stays NaN.
static __device__ inline float clamp(float v, float low, float high) {
    return v < low ? low : v > high ? high : v;
}

static __device__ inline Box clipped(Box b, float width, float height) {
    return Box{clamp(b.x1, 0, width), clamp(b.y1, 0, height), clamp(b.x2, 0, width), clamp(b.y2, 0, height)};
}

// `Rect::is_valid`, and no side shorter than `side`.
static __device__ inline bool is_box(Box b, float side) {
    bool valid = is_finite(b.x1) && is_finite(b.y1) && is_finite(b.x2) && is_finite(b.y2) && b.x1 <= b.x2 && b.y1 <= b.y2;
    return valid && b.x2 - b.x1 >= side && b.y2 - b.y1 >= side;
}

// `BoxCoder::decode`.
static __device__ inline Box decode_box(Box r, float dx, float dy, float dw, float dh) {
    const float most = 4.1351666f;  // ln(1000/16)
    float rw = r.x2 - r.x1, rh = r.y2 - r.y1;
    float rx = r.x1 + 0.5f * rw, ry = r.y1 + 0.5f * rh;
    dw = fminf(dw, most);
    dh = fminf(dh, most);
    float x = dx * rw + rx, y = dy * rh + ry;
    float half_w = 0.5f * (expf(dw) * rw), half_h = 0.5f * (expf(dh) * rh);
    return Box{x - half_w, y - half_h, x + half_w, y + half_h};
}

// `Rect::iou`.
static __device__ inline float iou_of(Box a, Box b) {
    float width = fmaxf(fminf(a.x2, b.x2) - fmaxf(a.x1, b.x1), 0.0f);
    float height = fmaxf(fminf(a.y2, b.y2) - fmaxf(a.y1, b.y1), 0.0f);
    float both = width * height;
    float any = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - both;
    return any > 0.0f ? both / any : 0.0f;
}
