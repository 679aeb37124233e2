// Heatmaps: `keypoints::ensemble` and `keypoints::heatmap`. One block per map, [boxes, k, side, side] throughout.

// A power of two; every phase of a reduction halves it.
#define HALVES for (int half = THREADS / 2; half > 0; half /= 2)

// Un-mirrors a view's maps into `own` (channels permuted by `mirror` [k], x reversed), as probabilities if those are averaged, and adds
// them to `sum`.
KERNEL(unflip)(const float* maps, const u32* mirror, float* own, float* sum, int keypoints, int side, int flip, int probabilities) {
    __shared__ float reduced[THREADS];
    int cells = side * side;
    u32 channel = blockIdx.x % keypoints, source = flip ? mirror[channel] : channel;
    const float* map = maps + (u64)(blockIdx.x - channel + source) * cells;
    float highest = 0.0f, gain = 1.0f;
    if (probabilities) {
        PHASE {
            float best = -INFINITY_F;
            for (int i = threadIdx.x; i < cells; i += THREADS) best = fmaxf(best, map[i]);
            reduced[threadIdx.x] = best;
        }
        HALVES PHASE if ((int)threadIdx.x < half) reduced[threadIdx.x] = fmaxf(reduced[threadIdx.x], reduced[threadIdx.x + half]);
        highest = reduced[0];
        // Everyone has read it before it is written again.
        PHASE {}
        PHASE {
            float total = 0.0f;
            for (int i = threadIdx.x; i < cells; i += THREADS) total += expf(map[i] - highest);
            reduced[threadIdx.x] = total;
        }
        HALVES PHASE if ((int)threadIdx.x < half) reduced[threadIdx.x] += reduced[threadIdx.x + half];
        gain = 1.0f / reduced[0];
    }
    PHASE {
        for (int i = threadIdx.x; i < cells; i += THREADS) {
            float value = map[flip ? i - i % side + side - 1 - i % side : i];
            if (probabilities) value = expf(value - highest) * gain;
            u64 at = (u64)blockIdx.x * cells + i;
            own[at] = value;
            sum[at] += value;
        }
    }
}

KERNEL(scale)(float* values, float factor, int count) {
    PHASE {
        int i = THREAD;
        if (i < count) values[i] *= factor;
    }
}

#define MAX_SIDE 64
#define MAX_RESIZED 4096

// Keys (1981), a = -0.75: PyTorch's `get_cubic_upsample_coefficients`.
static __device__ inline float cubic_near(float x) {
    return ((-0.75f + 2.0f) * x - (-0.75f + 3.0f)) * x * x + 1.0f;
}

static __device__ inline float cubic_far(float x) {
    return ((-0.75f * x - 5.0f * -0.75f) * x + 8.0f * -0.75f) * x - 4.0f * -0.75f;
}

static __device__ inline void cubic_weights(float t, float* w) {
    w[0] = cubic_far(t + 1.0f);
    w[1] = cubic_near(t);
    w[2] = cubic_near(1.0f - t);
    w[3] = cubic_far(2.0f - t);
}

static __device__ inline int resized_of(float length) {
    float whole = ceilf(length);
    return whole >= (float)MAX_RESIZED ? MAX_RESIZED : whole >= 1.0f ? (int)whole : 1;
}

// The source cell left of output `index` (may be -1) and the fraction past its centre.
static __device__ inline int source_of(float scale, int index, float* fraction) {
    float at = scale * ((float)index + 0.5f) - 0.5f, cell = floorf(at);
    *fraction = at - cell;
    return (int)cell;
}

static __device__ inline int bounded(int cell, int side) {
    return cell < 0 ? 0 : cell >= side ? side - 1 : cell;
}

// The value of the resized map at column `x`, row `y`: along the rows first, as PyTorch's CPU kernel does.
static __device__ inline float resized_value(const float* map, int side, float scale_x, float scale_y, int x, int y) {
    float tx, ty, wx[4], wy[4];
    int cx = source_of(scale_x, x, &tx), cy = source_of(scale_y, y, &ty);
    cubic_weights(tx, wx);
    cubic_weights(ty, wy);
    float taps[4];
    for (int j = 0; j < 4; ++j) {
        const float* row = map + bounded(cy - 1 + j, side) * side;
        taps[j] = wx[0] * row[bounded(cx - 1, side)] + wx[1] * row[bounded(cx, side)] + wx[2] * row[bounded(cx + 1, side)] +
                  wx[3] * row[bounded(cx + 2, side)];
    }
    return wy[0] * taps[0] + wy[1] * taps[1] + wy[2] * taps[2] + wy[3] * taps[3];
}

// Whether value v at flat index i comes before (w, j): the first maximum in row-major order.
static __device__ inline bool beats(float v, int i, float w, int j) {
    return v > w || (v == w && i < j);
}

// Reduces the threads' `values` and `places` to the first maximum, in element 0.
#define FIRST_MAXIMUM                                                                                                                     \
    HALVES PHASE {                                                                                                                        \
        int other = threadIdx.x + half;                                                                                                   \
        if ((int)threadIdx.x < half && beats(values[other], places[other], values[threadIdx.x], places[threadIdx.x])) {                   \
            values[threadIdx.x] = values[other];                                                                                          \
            places[threadIdx.x] = places[other];                                                                                          \
        }                                                                                                                                 \
    }

// The first brightest of the `cells` of `map`.
#define BRIGHTEST_CELL                                                                                                                    \
    PHASE {                                                                                                                               \
        float best = -INFINITY_F;                                                                                                         \
        int place = 0;                                                                                                                    \
        for (int i = threadIdx.x; i < cells; i += THREADS) {                                                                              \
            if (map[i] > best) best = map[i], place = i;                                                                                  \
        }                                                                                                                                 \
        values[threadIdx.x] = best;                                                                                                       \
        places[threadIdx.x] = place;                                                                                                      \
    }                                                                                                                                     \
    FIRST_MAXIMUM

// `keypoints::heatmap::decode` of every map: found [boxes, k, 4] is x, y, peak, probability. rects [boxes] in the coordinates of `found`.
// As on the CPU, patches of the resized map that cannot hold its maximum are skipped; the result is the exact search's.
KERNEL(decode)(const float* maps, const Box* rects, float* found, int keypoints, int side, int probabilities) {
    __shared__ float values[THREADS];
    __shared__ int places[THREADS];
    __shared__ int x_start[MAX_SIDE + 1], x_end[MAX_SIDE + 1], y_start[MAX_SIDE + 1], y_end[MAX_SIDE + 1];
    __shared__ int patches[(MAX_SIDE + 1) * (MAX_SIDE + 1)];
    __shared__ u32 patch_count[1];
    int cells = side * side;
    const float* map = maps + (u64)blockIdx.x * cells;
    Box r = rects[blockIdx.x / keypoints];
    float width = fmaxf(r.x2 - r.x1, 1.0f), height = fmaxf(r.y2 - r.y1, 1.0f);
    int columns = resized_of(width), rows = resized_of(height);
    float scale_x = (float)side / (float)columns, scale_y = (float)side / (float)rows;

    // The brightest cell (the first of equals), and from it a first candidate that makes the bounds sharp.
    BRIGHTEST_CELL
    float highest = values[0];
    int brightest = places[0];
    int first_x = (int)(((float)(brightest % side) + 0.5f) / scale_x), first_y = (int)(((float)(brightest / side) + 0.5f) / scale_y);
    if (first_x > columns - 1) first_x = columns - 1;
    if (first_y > rows - 1) first_y = rows - 1;
    float first = resized_value(map, side, scale_x, scale_y, first_x, first_y);
    if (!is_finite(first)) first = -INFINITY_F;

    // Which outputs lie in which source cell (from -1): consecutive ones.
    PHASE {
        if ((int)threadIdx.x <= side) {
            x_start[threadIdx.x] = x_end[threadIdx.x] = 0;
            y_start[threadIdx.x] = y_end[threadIdx.x] = 0;
        }
        if (threadIdx.x == 0) patch_count[0] = 0;
    }
    PHASE {
        float t;
        for (int i = threadIdx.x; i < columns; i += THREADS) {
            int cell = source_of(scale_x, i, &t);
            if (i == 0 || source_of(scale_x, i - 1, &t) != cell) x_start[bounded(cell + 1, side + 1)] = i;
            if (i == columns - 1 || source_of(scale_x, i + 1, &t) != cell) x_end[bounded(cell + 1, side + 1)] = i + 1;
        }
        for (int i = threadIdx.x; i < rows; i += THREADS) {
            int cell = source_of(scale_y, i, &t);
            if (i == 0 || source_of(scale_y, i - 1, &t) != cell) y_start[bounded(cell + 1, side + 1)] = i;
            if (i == rows - 1 || source_of(scale_y, i + 1, &t) != cell) y_end[bounded(cell + 1, side + 1)] = i + 1;
        }
    }
    // The patches that may hold the maximum: see `keypoints::heatmap::OVERSHOOT` and `ROUNDING`.
    PHASE {
        const float overshoot = 2.0f * 0.1875f * 1.1875f, rounding = 32.0f * 1.1920929e-7f;
        for (int i = threadIdx.x; i < (side + 1) * (side + 1); i += THREADS) {
            int cx = i % (side + 1) - 1, cy = i / (side + 1) - 1;
            if (x_start[cx + 1] == x_end[cx + 1] || y_start[cy + 1] == y_end[cy + 1]) continue;
            float low = INFINITY_F, high = -INFINITY_F;
            for (int dy = -1; dy <= 2; ++dy) {
                for (int dx = -1; dx <= 2; ++dx) {
                    float v = map[bounded(cy + dy, side) * side + bounded(cx + dx, side)];
                    low = fminf(low, v);
                    high = fmaxf(high, v);
                }
            }
            float bound = high + overshoot * (high - low) + rounding * fmaxf(fabsf(high), fabsf(low));
            if (bound >= first) patches[atomicAdd(&patch_count[0], 1)] = i;
        }
    }
    PHASE {
        float best = first;
        int place = first_y * columns + first_x;
        for (u32 p = 0; p < patch_count[0]; ++p) {
            int cx = patches[p] % (side + 1), cy = patches[p] / (side + 1);
            int wide = x_end[cx] - x_start[cx], count = wide * (y_end[cy] - y_start[cy]);
            for (int i = threadIdx.x; i < count; i += THREADS) {
                int x = x_start[cx] + i % wide, y = y_start[cy] + i / wide;
                float v = resized_value(map, side, scale_x, scale_y, x, y);
                if (beats(v, y * columns + x, best, place)) best = v, place = y * columns + x;
            }
        }
        values[threadIdx.x] = best;
        places[threadIdx.x] = place;
    }
    FIRST_MAXIMUM
    float peak = values[0];
    int place = places[0];
    PHASE {}
    PHASE {
        float total = 0.0f;
        for (int i = threadIdx.x; i < cells; i += THREADS) total += expf(map[i] - highest);
        values[threadIdx.x] = total;
    }
    HALVES PHASE if ((int)threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
    PHASE {
        if (threadIdx.x != 0) continue;
        float* out = found + 4 * (u64)blockIdx.x;
        if (!is_finite(peak)) {
            out[0] = r.x1 + 0.5f * width;
            out[1] = r.y1 + 0.5f * height;
            out[2] = out[3] = 0.0f;
            continue;
        }
        out[0] = r.x1 + ((float)(place % columns) + 0.5f) * (width / (float)columns);
        out[1] = r.y1 + ((float)(place / columns) + 0.5f) * (height / (float)rows);
        out[2] = peak;
        float probability = probabilities ? highest : expf(peak - highest) / values[0];
        out[3] = is_finite(probability) ? clamp(probability, 0.0f, 1.0f) : 0.0f;
    }
}

// The top of the parabola through three values, at most half a cell off.
static __device__ inline float parabola(float before, float top, float after) {
    float curvature = before - 2.0f * top + after;
    float offset = 0.5f * (before - after) / curvature;
    return curvature < 0.0f && is_finite(offset) ? clamp(offset, -0.5f, 0.5f) : 0.0f;
}

// `keypoints::heatmap::brightest` of every map: found [boxes, k, 2] is x, y.
KERNEL(brightest)(const float* maps, const Box* rects, float* found, int keypoints, int side) {
    __shared__ float values[THREADS];
    __shared__ int places[THREADS];
    int cells = side * side;
    const float* map = maps + (u64)blockIdx.x * cells;
    BRIGHTEST_CELL
    PHASE {
        if (threadIdx.x != 0) continue;
        Box r = rects[blockIdx.x / keypoints];
        float width = fmaxf(r.x2 - r.x1, 1.0f), height = fmaxf(r.y2 - r.y1, 1.0f), top = values[0];
        float* out = found + 2 * (u64)blockIdx.x;
        if (!is_finite(top)) {
            out[0] = r.x1 + 0.5f * width;
            out[1] = r.y1 + 0.5f * height;
            continue;
        }
        int x = places[0] % side, y = places[0] / side, last = side - 1;
        // Beyond the border lies the mirror image.
        int left = x > 0 ? x - 1 : last > 0 ? 1 : 0, right = x < last ? x + 1 : last > 0 ? last - 1 : 0;
        int up = y > 0 ? y - 1 : last > 0 ? 1 : 0, down = y < last ? y + 1 : last > 0 ? last - 1 : 0;
        float dx = parabola(map[y * side + left], top, map[y * side + right]), dy = parabola(map[up * side + x], top, map[down * side + x]);
        out[0] = r.x1 + ((float)x + 0.5f + dx) * (width / (float)side);
        out[1] = r.y1 + ((float)y + 0.5f + dy) * (height / (float)side);
    }
}

// `keypoints::ensemble::agreement`: views [view_count, count, 2] and found [count, 2] as `brightest` gives them; 1 without views.
KERNEL(agreement)(const float* views, const float* found, const Box* rects, const float* sigmas, float* out, int view_count, int count,
                  int keypoints) {
    PHASE {
        int i = THREAD;
        if (i >= count) continue;
        if (view_count == 0) {
            out[i] = 1.0f;
            continue;
        }
        Box r = rects[i / keypoints];
        float sigma = sigmas[i % keypoints];
        float reach = 2.0f * (2.0f * sigma) * (2.0f * sigma) * fmaxf((r.x2 - r.x1) * (r.y2 - r.y1), 1.1920929e-7f);
        float total = 0.0f;
        for (int view = 0; view < view_count; ++view) {
            const float* own = views + 2 * ((u64)view * count + i);
            float dx = own[0] - found[2 * i], dy = own[1] - found[2 * i + 1];
            total += expf(-(dx * dx + dy * dy) / reach);
        }
        float mean = total / (float)view_count;
        out[i] = is_finite(mean) ? clamp(mean, 0.0f, 1.0f) : 0.0f;
    }
}
