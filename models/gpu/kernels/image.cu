// From the frame to the network's input; pooling; a look for values that are not finite.

// `detect::frame`'s `taps`: PyTorch's source pixels of target pixel `i`.
static __device__ inline void tap(int source, int target, int i, int* low, int* high, float* fraction) {
    float ratio = (float)source / (float)target;
    float at = fmaxf(ratio * ((float)i + 0.5f) - 0.5f, 0.0f);
    int cell = (int)at;
    *low = cell < source - 1 ? cell : source - 1;
    *high = *low + 1 < source - 1 ? *low + 1 : source - 1;
    *fraction = clamp(at - (float)*low, 0.0f, 1.0f);
}

// Resize, mirror, normalise, pad: `detect::frame::transform`. rgb [height, width, 3] to out [3, rows, columns]; one thread per pixel.
KERNEL(view_image)(const u8* rgb, float* out, int width, int height, int net_width, int net_height, int rows, int columns, int flip,
                   int bgr, float gain0, float gain1, float gain2, float bias0, float bias1, float bias2) {
    PHASE {
        int plane = rows * columns, i = THREAD;
        if (i >= plane) continue;
        int y = i / columns, x = i % columns;
        if (y >= net_height || x >= net_width) {
            out[i] = out[plane + i] = out[2 * plane + i] = 0.0f;
            continue;
        }
        int left, right, above, below;
        float across, down;
        tap(width, net_width, flip ? net_width - 1 - x : x, &left, &right, &across);
        tap(height, net_height, y, &above, &below, &down);
        const u8* first = rgb + (u64)above * 3 * width;
        const u8* second = rgb + (u64)below * 3 * width;
        for (int c = 0; c < 3; ++c) {
            int at = bgr ? 2 - c : c;
            float gain = c == 0 ? gain0 : c == 1 ? gain1 : gain2, bias = c == 0 ? bias0 : c == 1 ? bias1 : bias2;
            float upper = (float)first[3 * left + at] * (1.0f - across) + (float)first[3 * right + at] * across;
            float lower = (float)second[3 * left + at] * (1.0f - across) + (float)second[3 * right + at] * across;
            out[c * plane + i] = (upper * (1.0f - down) + lower * down) * gain - bias;
        }
    }
}

// The highest of each window, padding left out: in [channels, rows, columns] to out [channels, out_rows, out_columns].
KERNEL(max_pool)(const float* in, float* out, int channels, int rows, int columns, int out_rows, int out_columns, int kernel, int stride,
                 int padding) {
    PHASE {
        int i = THREAD;
        if (i >= channels * out_rows * out_columns) continue;
        int x = i % out_columns, y = i / out_columns % out_rows, channel = i / out_columns / out_rows;
        const float* map = in + (u64)channel * rows * columns;
        float best = -INFINITY_F;
        for (int dy = 0; dy < kernel; ++dy) {
            int row = y * stride - padding + dy;
            if (row < 0 || row >= rows) continue;
            for (int dx = 0; dx < kernel; ++dx) {
                int column = x * stride - padding + dx;
                if (column >= 0 && column < columns) best = fmaxf(best, map[row * columns + column]);
            }
        }
        out[i] = best;
    }
}

// The lowest index of a value that is not finite goes to flags[slot], which starts at 0xffffffff.
KERNEL(not_finite)(const float* values, u32* flags, int count, int slot) {
    PHASE {
        int i = THREAD;
        if (i < count && !is_finite(values[i])) atomicMin(&flags[slot], (u32)i);
    }
}
