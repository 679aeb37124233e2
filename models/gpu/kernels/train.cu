// What training needs beside convolutions and matrix products: the operations of `rcnn::ops`, forward and backward, and the optimisers.
// Backwards gather: each thread owns what it writes and sums in a fixed order, so that a gradient is the same at every run.

// Before a ReLU whose output was y.
KERNEL(relu_backward)(const float* y, const float* grad, float* out, int count) {
    PHASE {
        int i = THREAD;
        if (i < count) out[i] = y[i] > 0.0f ? grad[i] : 0.0f;
    }
}

static __device__ inline float positive(float v) {
    return v < 0.0f ? 0.0f : v;
}

KERNEL(add_relu)(const float* a, const float* b, float* out, int count) {
    PHASE {
        int i = THREAD;
        if (i < count) out[i] = positive(a[i] + b[i]);
    }
}

// In place: y [count / channels / plane, channels, plane], bias [channels].
KERNEL(add_bias)(float* y, const float* bias, int count, int channels, int plane, int relu) {
    PHASE {
        int i = THREAD;
        if (i >= count) continue;
        float v = y[i] + bias[i / plane % channels];
        y[i] = relu ? positive(v) : v;
    }
}

// out[i] = x[i]·scale[i / width].
KERNEL(scale_rows)(const float* x, const float* scale, float* out, int count, int width) {
    PHASE {
        int i = THREAD;
        if (i < count) out[i] = x[i] * scale[i / width];
    }
}

// Sums of a block's threads, to thread 0.
#define REDUCE(sums)                                                                \
    for (int half = THREADS / 2; half > 0; half /= 2) PHASE {                       \
            if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half]; \
        }

// Gradient of a bias: grad [images, channels, plane] to out [channels]. One block on the y axis per channel.
KERNEL(sum_channels)(const float* grad, float* out, int images, int channels, int plane) {
    __shared__ float sums[THREADS];
    int channel = blockIdx.y;
    PHASE {
        float sum = 0.0f;
        for (int i = threadIdx.x; i < images * plane; i += THREADS) {
            sum += grad[((u64)(i / plane) * channels + channel) * plane + i % plane];
        }
        sums[threadIdx.x] = sum;
    }
    REDUCE(sums)
    PHASE {
        if (threadIdx.x == 0) out[channel] = sums[0];
    }
}

// Products of two rows, summed: a, b [rows, width] to out [rows]. One block on the y axis per row.
KERNEL(row_products)(const float* a, const float* b, float* out, int width) {
    __shared__ float sums[THREADS];
    u64 start = (u64)blockIdx.y * width;
    PHASE {
        float sum = 0.0f;
        for (int i = threadIdx.x; i < width; i += THREADS) sum += a[start + i] * b[start + i];
        sums[threadIdx.x] = sum;
    }
    REDUCE(sums)
    PHASE {
        if (threadIdx.x == 0) out[blockIdx.y] = sums[0];
    }
}

// Gradient of `max_pool`: in [planes, rows, columns], grad [planes, out_rows, out_columns] to out as in. A tie's goes to the first.
KERNEL(max_pool_backward)(const float* in, const float* grad, float* out, int planes, int rows, int columns, int out_rows, int out_columns,
                          int kernel, int stride, int padding) {
    PHASE {
        int i = THREAD;
        if (i >= planes * rows * columns) continue;
        int x = i % columns, y = i / columns % rows, plane = i / columns / rows;
        const float* map = in + (u64)plane * rows * columns;
        const float* grads = grad + (u64)plane * out_rows * out_columns;
        int first_row = y + padding < kernel ? 0 : (y + padding - kernel) / stride + 1, last_row = (y + padding) / stride;
        int first_column = x + padding < kernel ? 0 : (x + padding - kernel) / stride + 1, last_column = (x + padding) / stride;
        float sum = 0.0f;
        for (int oy = first_row; oy <= last_row && oy < out_rows; ++oy) {
            for (int ox = first_column; ox <= last_column && ox < out_columns; ++ox) {
                int top = oy * stride - padding, left = ox * stride - padding;
                int bottom = top + kernel < rows ? top + kernel : rows, right = left + kernel < columns ? left + kernel : columns;
                top = top > 0 ? top : 0;
                left = left > 0 ? left : 0;
                int best = top * columns + left;
                for (int wy = top; wy < bottom; ++wy) {
                    for (int wx = left; wx < right; ++wx) {
                        if (map[wy * columns + wx] > map[best]) best = wy * columns + wx;
                    }
                }
                if (best == y * columns + x) sum += grads[oy * out_columns + ox];
            }
        }
        out[i] = sum;
    }
}

// in [planes, rows, columns] to out [planes, 2·rows, 2·columns]; one thread per cell of out.
KERNEL(double_nearest)(const float* in, float* out, int planes, int rows, int columns) {
    PHASE {
        int i = THREAD;
        if (i >= 4 * planes * rows * columns) continue;
        int x = i % (2 * columns), y = i / (2 * columns) % (2 * rows), plane = i / (2 * columns) / (2 * rows);
        out[i] = in[((u64)plane * rows + y / 2) * columns + x / 2];
    }
}

// Gradient of `double_nearest`: grad [planes, 2·rows, 2·columns] to out [planes, rows, columns].
KERNEL(double_nearest_backward)(const float* grad, float* out, int planes, int rows, int columns) {
    PHASE {
        int i = THREAD;
        if (i >= planes * rows * columns) continue;
        int x = i % columns, row = i / columns;
        const float* upper = grad + (u64)row * 4 * columns + 2 * x;
        const float* lower = upper + 2 * columns;
        out[i] = upper[0] + upper[1] + lower[0] + lower[1];
    }
}

// The far source of cell `i` of a doubled axis; the near one is i / 2.
static __device__ inline int far_source(int i, int cells) {
    int far = i % 2 == 0 ? i / 2 - 1 : i / 2 + 1;
    return far < 0 ? 0 : far < cells ? far : cells - 1;
}

// As `double_nearest`, bilinear with half-pixel centres and the border repeated.
KERNEL(double_bilinear)(const float* in, float* out, int planes, int rows, int columns) {
    PHASE {
        int i = THREAD;
        if (i >= 4 * planes * rows * columns) continue;
        int x = i % (2 * columns), y = i / (2 * columns) % (2 * rows), plane = i / (2 * columns) / (2 * rows);
        const float* near = in + ((u64)plane * rows + y / 2) * columns;
        const float* far = in + ((u64)plane * rows + far_source(y, rows)) * columns;
        int left = x / 2, right = far_source(x, columns);
        out[i] = 0.75f * (0.75f * near[left] + 0.25f * far[left]) + 0.25f * (0.75f * near[right] + 0.25f * far[right]);
    }
}

// How much cell `i` of a doubled axis takes from `source`.
static __device__ inline float share_of(int i, int source, int cells) {
    return (i / 2 == source ? 0.75f : 0.0f) + (far_source(i, cells) == source ? 0.25f : 0.0f);
}

// Gradient of `double_bilinear`.
KERNEL(double_bilinear_backward)(const float* grad, float* out, int planes, int rows, int columns) {
    PHASE {
        int i = THREAD;
        if (i >= planes * rows * columns) continue;
        int x = i % columns, y = i / columns % rows, plane = i / columns / rows;
        const float* map = grad + (u64)plane * 4 * rows * columns;
        float sum = 0.0f;
        for (int oy = 2 * y - 1; oy <= 2 * y + 2; ++oy) {
            if (oy < 0 || oy >= 2 * rows) continue;
            float down = 0.0f;
            for (int ox = 2 * x - 1; ox <= 2 * x + 2; ++ox) {
                if (ox >= 0 && ox < 2 * columns) down += share_of(ox, x, columns) * map[(u64)oy * 2 * columns + ox];
            }
            sum += share_of(oy, y, rows) * down;
        }
        out[i] = sum;
    }
}

// RoIAlign over a batch: maps [images, per_image], of each image its levels behind each other, level l [channels, rows[l], columns[l]]
// from starts[l]; levels and taps from `roi_taps`; images [count]; out [count, channels, resolution, resolution]. RoIs on the y axis.
KERNEL(batch_align)(const float* maps, const u32* images, const u32* starts, const u32* rows, const u32* columns, const u32* levels,
                    const u32* counts, const u32* taps_at, const float* taps_weight, float* out, int per_image, int channels, int resolution,
                    int capacity) {
    PHASE {
        int i = THREAD, roi = blockIdx.y, one = channels * resolution * resolution;
        if (i >= one) continue;
        int px = i % resolution, py = i / resolution % resolution, channel = i / resolution / resolution;
        u32 level = levels[roi];
        u64 y = ((u64)roi * 2) * resolution + py, x = ((u64)roi * 2 + 1) * resolution + px;
        const float* plane = maps + (u64)images[roi] * per_image + starts[level] + (u64)channel * rows[level] * columns[level];
        float sum = 0.0f;
        for (u32 tx = 0; tx < counts[x]; ++tx) {
            u32 column = taps_at[x * capacity + tx];
            float down = 0.0f;
            for (u32 ty = 0; ty < counts[y]; ++ty) {
                down += taps_weight[y * capacity + ty] * plane[taps_at[y * capacity + ty] * columns[level] + column];
            }
            sum += taps_weight[x * capacity + tx] * down;
        }
        out[(u64)roi * one + i] = sum;
    }
}

// First and last cell that the pooled cells of one axis take from; none when last < first. Indices rise within a pooled cell and from
// one to the next.
static __device__ inline void reach(const u32* counts, const u32* at, int resolution, int capacity, int* first, int* last) {
    *first = 0;
    *last = -1;
    for (int cell = resolution - 1; cell >= 0; --cell) {
        if (counts[cell] == 0) continue;
        *first = at[(u64)cell * capacity];
        int end = at[(u64)cell * capacity + counts[cell] - 1];
        *last = end > *last ? end : *last;
    }
}

// The weight with which pooled cell `cell` takes from `index`.
static __device__ inline float weight_of(const u32* counts, const u32* at, const float* weights, int cell, int capacity, u32 index) {
    const u32* own = at + (u64)cell * capacity;
    u32 count = counts[cell];
    if (count == 0 || index < own[0] || index > own[count - 1]) return 0.0f;
    for (u32 tap = 0; tap < count; ++tap) {
        if (own[tap] == index) return weights[(u64)cell * capacity + tap];
    }
    return 0.0f;
}

// Gradient of `batch_align`, added to out [images, per_image]: a block per channel (x) and image (y) goes through the image's RoIs,
// order[firsts[image]..firsts[image + 1]], one after the other; its threads share the cells that a RoI reaches.
KERNEL(batch_align_backward)(const float* grad, const u32* order, const u32* firsts, const u32* starts, const u32* rows, const u32* columns,
                             const u32* levels, const u32* counts, const u32* taps_at, const float* taps_weight, float* out, int per_image,
                             int channels, int resolution, int capacity) {
    int image = blockIdx.y, channel = blockIdx.x;
    for (u32 turn = firsts[image]; turn < firsts[image + 1]; ++turn) {
        u32 roi = order[turn], level = levels[roi];
        u64 y = ((u64)roi * 2) * resolution, x = y + resolution;
        int top, bottom, left, right;
        reach(counts + y, taps_at + y * capacity, resolution, capacity, &top, &bottom);
        reach(counts + x, taps_at + x * capacity, resolution, capacity, &left, &right);
        int width = right - left + 1, cells = (bottom - top + 1) * width;
        float* plane = out + (u64)image * per_image + starts[level] + (u64)channel * rows[level] * columns[level];
        const float* pooled = grad + ((u64)roi * channels + channel) * resolution * resolution;
        PHASE {
            for (int i = threadIdx.x; i < cells; i += THREADS) {
                int row = top + i / width, column = left + i % width;
                float sum = 0.0f;
                for (int py = 0; py < resolution; ++py) {
                    float down = weight_of(counts + y, taps_at + y * capacity, taps_weight + y * capacity, py, capacity, row);
                    if (down == 0.0f) continue;
                    float across = 0.0f;
                    for (int px = 0; px < resolution; ++px) {
                        across += weight_of(counts + x, taps_at + x * capacity, taps_weight + x * capacity, px, capacity, column) *
                                  pooled[py * resolution + px];
                    }
                    sum += down * across;
                }
                plane[row * columns[level] + column] += sum;
            }
        }
    }
}

// Squares, summed by chunk: values [count] to out [blocks on the x axis], `chunk` values each.
KERNEL(square_sums)(const float* values, float* out, int count, int chunk) {
    __shared__ float sums[THREADS];
    PHASE {
        u64 end = ((u64)blockIdx.x + 1) * chunk;
        float sum = 0.0f;
        for (u64 i = (u64)blockIdx.x * chunk + threadIdx.x; i < end && i < (u64)count; i += THREADS) sum += values[i] * values[i];
        sums[threadIdx.x] = sum;
    }
    REDUCE(sums)
    PHASE {
        if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
    }
}

// `optim`: SGD with momentum 0.9.
KERNEL(sgd)(float* weights, float* moments, const float* grad, int count, float rate, float decay, float scale) {
    PHASE {
        int i = THREAD;
        if (i >= count) continue;
        float m = 0.9f * moments[i] + grad[i] * scale + decay * weights[i];
        moments[i] = m;
        weights[i] -= rate * m;
    }
}

// `optim`: AdamW. `shrink`, `rate` and `root` hold weight decay and the corrections of the step.
KERNEL(adamw)(float* weights, float* first, float* second, const float* grad, int count, float scale, float shrink, float rate, float root) {
    PHASE {
        int i = THREAD;
        if (i >= count) continue;
        float g = grad[i] * scale;
        float m = 0.9f * first[i] + 0.1f * g, v = 0.999f * second[i] + 0.001f * g * g;
        first[i] = m;
        second[i] = v;
        weights[i] = weights[i] * shrink - rate * m / (sqrtf(v) * root + 1e-8f);
    }
}

// The nearest bfloat16, ties to even; NaN stays NaN.
KERNEL(to_bf16)(const float* in, u16* out, int count) {
    PHASE {
        int i = THREAD;
        if (i >= count) continue;
        u32 bits = BITS(in[i]);
        bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
        out[i] = (u16)(nan ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
}

KERNEL(from_bf16)(const u16* in, float* out, int count) {
    PHASE {
        int i = THREAD;
        if (i < count) out[i] = FLOAT((u32)in[i] << 16);
    }
}
