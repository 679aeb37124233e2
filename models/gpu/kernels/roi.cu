// RoIAlign: `detect::roi`. A RoI's weights are products of one per axis; they are made once per RoI (`roi_taps`) and used for all
// channels (`roi_align`), summed in the CPU's order.

#define MAX_SAMPLES 1024

// Levels and weights: one thread per RoI, axis (y, x) and pooled cell. tables: [levels] rows, columns; scales [levels], cells per net
// pixel. counts [count, 2, resolution], taps_at and taps_weight [count, 2, resolution, capacity].
KERNEL(roi_taps)(const Box* rois, const u32* rows, const u32* columns, const float* scales, u32* levels, u32* counts, u32* taps_at,
                 float* taps_weight, int count, int level_count, int resolution, int ratio, int aligned, int capacity, int canonical_level,
                 float canonical_size) {
    PHASE {
        int i = THREAD;
        if (i >= count * 2 * resolution) continue;
        int cell = i % resolution, axis = i / resolution % 2, roi = i / resolution / 2;
        Box r = rois[roi];
        float side = sqrtf((r.x2 - r.x1) * (r.y2 - r.y1));
        float wanted = floorf((float)canonical_level + log2f(side / canonical_size) + 1e-6f);
        // NaN goes to 0.
        int level = wanted >= 1.0f ? (wanted < (float)level_count ? (int)wanted : level_count - 1) : 0;
        if (axis == 0 && cell == 0) levels[roi] = level;
        int cells = axis == 0 ? rows[level] : columns[level];
        float scale = scales[level], offset = aligned ? 0.5f : 0.0f;
        float begin = (axis == 0 ? r.y1 : r.x1) * scale - offset;
        float length = (axis == 0 ? r.y2 : r.x2) * scale - offset - begin;
        if (!aligned && !(length >= 1.0f)) length = 1.0f;
        float bin = length / (float)resolution;
        int samples = ratio;
        if (ratio == 0 && bin > 0.0f) {
            samples = bin < (float)MAX_SAMPLES ? (int)bin : MAX_SAMPLES;
            if ((float)samples < bin) ++samples;
        }
        u32* at = taps_at + (u64)i * capacity;
        float* weight = taps_weight + (u64)i * capacity;
        int taps = 0;
        for (int sample = 0; sample < samples; ++sample) {
            float place = begin + (float)cell * bin + ((float)sample + 0.5f) * bin / (float)samples;
            // Samples more than a cell outside count as 0.
            if (cells == 0 || !(place >= -1.0f && place <= (float)cells)) continue;
            place = place > 0.0f ? place : 0.0f;
            int low = (int)place, high = low + 1;
            float fraction = place - (float)low;
            if (low + 1 >= cells) {
                low = high = cells - 1;
                fraction = 0.0f;
            }
            for (int end = 0; end < 2; ++end) {
                u32 index = end ? high : low;
                float share = (end ? fraction : 1.0f - fraction) / (float)samples;
                int tap = taps - 1;
                // Indices rise by at most one: a known one is among the latest two.
                while (tap >= 0 && at[tap] != index) --tap;
                if (tap >= 0) {
                    weight[tap] += share;
                } else if (taps < capacity) {
                    at[taps] = index;
                    weight[taps++] = share;
                }
            }
        }
        counts[i] = taps;
    }
}

// Pools the RoIs of one level: map [channels, rows, columns], out [count, channels, resolution, resolution]. RoIs on the y axis.
KERNEL(roi_align)(const float* map, const u32* levels, const u32* counts, const u32* taps_at, const float* taps_weight, float* out,
                  int level, int channels, int rows, int columns, int resolution, int capacity) {
    PHASE {
        int i = THREAD, roi = blockIdx.y, one = channels * resolution * resolution;
        if (i >= one || levels[roi] != (u32)level) continue;
        int px = i % resolution, py = i / resolution % resolution, channel = i / resolution / resolution;
        u64 y = ((u64)roi * 2) * resolution + py, x = ((u64)roi * 2 + 1) * resolution + px;
        const float* plane = map + (u64)channel * rows * columns;
        float sum = 0.0f;
        for (u32 tx = 0; tx < counts[x]; ++tx) {
            u32 column = taps_at[x * capacity + tx];
            float down = 0.0f;
            for (u32 ty = 0; ty < counts[y]; ++ty) {
                down += taps_weight[y * capacity + ty] * plane[taps_at[y * capacity + ty] * columns + column];
            }
            sum += taps_weight[x * capacity + tx] * down;
        }
        out[(u64)roi * one + i] = sum;
    }
}
